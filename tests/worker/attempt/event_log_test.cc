#include "worker/attempt/event_log.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "tests/worker/attempt/temp_dir.h"

namespace longhaul::attempt {
namespace {

v1::TrainerEvent Progress(int64_t step) {
  v1::TrainerEvent event;
  event.set_wall_micros(1'700'000'000'000'000 + step);
  event.mutable_progress()->set_step(step);
  event.mutable_progress()->set_loss(1.0 / static_cast<double>(step));
  return event;
}

std::vector<int64_t> Steps(const std::vector<v1::TrainerEvent>& events) {
  std::vector<int64_t> steps;
  for (const auto& event : events) steps.push_back(event.progress().step());
  return steps;
}

std::vector<int64_t> AllSteps(const std::string& path) {
  EventLogReader reader(path);
  return Steps(*reader.ReadNew());
}

void Put(const std::string& path, const std::string& bytes) { ASSERT_TRUE(WriteFileAtomic(path, bytes).ok()); }

TEST(EventLogTest, TailsByOffset) {
  TempDir temp;
  const std::string path = temp.At("events.log");
  EventLogReader reader(path);
  EXPECT_TRUE(reader.ReadNew()->empty());  // no file yet
  auto writer = EventLogWriter::Open(path);
  ASSERT_TRUE(writer.ok());
  EXPECT_TRUE(reader.ReadNew()->empty());
  ASSERT_TRUE(writer->Append(Progress(1)).ok());
  ASSERT_TRUE(writer->Append(Progress(2)).ok());
  EXPECT_EQ(Steps(*reader.ReadNew()), (std::vector<int64_t>{1, 2}));
  EXPECT_TRUE(reader.ReadNew()->empty());
  ASSERT_TRUE(writer->Append(Progress(3)).ok());
  EXPECT_EQ(Steps(*reader.ReadNew()), (std::vector<int64_t>{3}));
  EXPECT_EQ(reader.offset(), *FileSize(path));
  EventLogReader later(path, reader.offset());
  EXPECT_TRUE(later.ReadNew()->empty());
}

// A log of two frames cut after every byte: a reader sees the whole frames and no more, and the rest when it arrives; a
// writer that re-opens there continues with a sound log.
TEST(EventLogTest, TornAtEveryByte) {
  TempDir temp;
  const std::string first = EncodeEventFrame(Progress(1));
  const std::string whole = first + EncodeEventFrame(Progress(2));
  for (size_t cut = 0; cut < whole.size(); ++cut) {
    SCOPED_TRACE(cut);
    const std::string path = temp.At("torn-" + std::to_string(cut));
    Put(path, whole.substr(0, cut));
    EventLogReader reader(path);
    const std::vector<int64_t> before = Steps(*reader.ReadNew());
    EXPECT_EQ(before, cut < first.size() ? std::vector<int64_t>{} : std::vector<int64_t>{1});
    auto writer = EventLogWriter::Open(path);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(writer->Append(Progress(9)).ok());
    std::vector<int64_t> expected = before;
    expected.push_back(9);
    EXPECT_EQ(AllSteps(path), expected);
    EXPECT_EQ(Steps(*reader.ReadNew()), std::vector<int64_t>{9});  // a reader that waited at the tear goes on

    Put(path, whole.substr(0, cut));
    EventLogReader waiting(path);
    ASSERT_TRUE(waiting.ReadNew().ok());
    Put(path, whole);
    std::vector<int64_t> rest = Steps(*waiting.ReadNew());
    EXPECT_EQ(rest.size(), cut < first.size() ? 2u : 1u);
    EXPECT_EQ(rest.back(), 2);
  }
}

// Every single damaged byte ends the log before its frame.
TEST(EventLogTest, DamageAtEveryByteStopsTheReader) {
  TempDir temp;
  const std::string first = EncodeEventFrame(Progress(1));
  const std::string whole = first + EncodeEventFrame(Progress(2));
  for (size_t at = 0; at < whole.size(); ++at) {
    SCOPED_TRACE(at);
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x41);
    const std::string path = temp.At("damaged");
    Put(path, damaged);
    EXPECT_EQ(AllSteps(path), at < first.size() ? std::vector<int64_t>{} : std::vector<int64_t>{1});
  }
}

TEST(EventLogTest, LyingLengthAllocatesNothing) {
  TempDir temp;
  const std::string path = temp.At("events.log");
  Put(path, EncodeEventFrame(Progress(1)) + std::string("\xff\xff\xff\xff\0\0\0\0", 8) + std::string(100, 'x'));
  EXPECT_EQ(AllSteps(path), std::vector<int64_t>{1});
}

TEST(EventLogTest, SoundFrameThatIsNoEventEndsTheLog) {
  TempDir temp;
  const std::string path = temp.At("events.log");
  // Field 2 with a length beyond the payload, under a right checksum.
  const std::string payload = "\x12\x7f";
  std::string frame = EncodeEventFrame(Progress(1));
  std::string bad("\x02\0\0\0", 4);
  const uint32_t crc = Crc32c(payload);
  for (int shift = 0; shift < 32; shift += 8) bad.push_back(static_cast<char>((crc >> shift) & 0xff));
  Put(path, frame + bad + payload + frame);
  EXPECT_EQ(AllSteps(path), std::vector<int64_t>{1});
}

TEST(EventLogTest, ManyAndLargeEventsInOrder) {
  TempDir temp;
  const std::string path = temp.At("events.log");
  auto writer = EventLogWriter::Open(path);
  ASSERT_TRUE(writer.ok());
  constexpr int64_t kEvents = 2500;
  for (int64_t step = 1; step <= kEvents; ++step) {
    v1::TrainerEvent event = Progress(step);
    if (step % 500 == 0) event.mutable_warning()->set_message(std::string(limits::kMaxTrainerEventBytes - 100, 'w'));
    ASSERT_TRUE(writer->Append(event).ok());
  }
  EventLogReader reader(path);
  int64_t count = 0;
  while (true) {
    const auto events = reader.ReadNew();
    ASSERT_TRUE(events.ok());
    if (events->empty()) break;
    EXPECT_LE(static_cast<int>(events->size()), limits::kMaxEventsPerRead);
    for (const auto& event : *events) {
      ++count;
      EXPECT_EQ(event.wall_micros() == 0 ? 0 : event.wall_micros() - 1'700'000'000'000'000, count);
    }
  }
  EXPECT_EQ(count, kEvents);
  // And a writer finds the end of such a log.
  auto again = EventLogWriter::Open(path);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*FileSize(path), reader.offset());
}

TEST(EventLogTest, RefusesAnEventPastTheLimit) {
  TempDir temp;
  auto writer = EventLogWriter::Open(temp.At("events.log"));
  ASSERT_TRUE(writer.ok());
  v1::TrainerEvent event;
  event.mutable_warning()->set_message(std::string(limits::kMaxTrainerEventBytes + 1, 'w'));
  EXPECT_EQ(ErrorReason(writer->Append(event)), "EVENT_TOO_LARGE");
  EXPECT_EQ(*FileSize(temp.At("events.log")), 0);
}

}  // namespace
}  // namespace longhaul::attempt
