#include "worker/attempt/event_log.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul::attempt {
namespace {

// Read in pieces that hold at least one frame of the largest size.
constexpr int64_t kReadBytes = limits::kMaxTrainerEventBytes + kEventFrameHeaderBytes;

void PutU32(uint32_t value, std::string* out) {
  for (int shift = 0; shift < 32; shift += 8) out->push_back(static_cast<char>((value >> shift) & 0xff));
}

uint32_t GetU32(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = (value << 8) | static_cast<uint8_t>(bytes[static_cast<size_t>(i)]);
  return value;
}

// Bytes of the whole, undamaged frame at the start of `bytes`; 0 where there is none (yet).
int64_t WholeFrameBytes(std::string_view bytes) {
  if (static_cast<int64_t>(bytes.size()) < kEventFrameHeaderBytes) return 0;
  const int64_t length = GetU32(bytes);
  if (length > limits::kMaxTrainerEventBytes) return 0;
  if (static_cast<int64_t>(bytes.size()) < kEventFrameHeaderBytes + length) return 0;
  const std::string_view payload = bytes.substr(kEventFrameHeaderBytes, static_cast<size_t>(length));
  return Crc32c(payload) == GetU32(bytes.substr(4)) ? kEventFrameHeaderBytes + length : 0;
}

}  // namespace

std::string EncodeEventFrame(const v1::TrainerEvent& event) {
  const std::string payload = event.SerializeAsString();
  LH_CHECK(static_cast<int64_t>(payload.size()) <= limits::kMaxTrainerEventBytes);
  std::string frame;
  frame.reserve(payload.size() + kEventFrameHeaderBytes);
  PutU32(static_cast<uint32_t>(payload.size()), &frame);
  PutU32(Crc32c(payload), &frame);
  frame += payload;
  return frame;
}

absl::StatusOr<EventLogWriter> EventLogWriter::Open(const std::string& path) {
  EventLogReader reader(path);
  while (true) {
    LH_ASSIGN_OR_RETURN(const std::vector<v1::TrainerEvent> events, reader.ReadNew());
    if (events.empty()) break;
  }
  LH_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path, reader.offset()));
  return EventLogWriter(std::move(file));
}

absl::Status EventLogWriter::Append(const v1::TrainerEvent& event) {
  const int64_t bytes = static_cast<int64_t>(event.ByteSizeLong());
  if (bytes > limits::kMaxTrainerEventBytes) {
    return MakeError(absl::StatusCode::kResourceExhausted, "EVENT_TOO_LARGE",
                     "a trainer event of " + std::to_string(bytes) + " bytes; at most " +
                         std::to_string(limits::kMaxTrainerEventBytes));
  }
  return file_.Append(EncodeEventFrame(event));
}

absl::StatusOr<std::vector<v1::TrainerEvent>> EventLogReader::ReadNew(std::vector<int64_t>* ends) {
  std::vector<v1::TrainerEvent> events;
  if (offset_ == 0 && !FileExists(path_)) return events;
  while (static_cast<int>(events.size()) < limits::kMaxEventsPerRead) {
    const absl::StatusOr<std::string> bytes = ReadFileRange(path_, offset_, kReadBytes);
    // What has been read is told before what went wrong, which the next call finds again.
    if (!bytes.ok() && events.empty()) return bytes.status();
    if (!bytes.ok()) return events;
    std::string_view rest = *bytes;
    while (static_cast<int>(events.size()) < limits::kMaxEventsPerRead) {
      const int64_t frame = WholeFrameBytes(rest);
      if (frame == 0) break;
      v1::TrainerEvent event;
      if (!event.ParseFromArray(rest.data() + kEventFrameHeaderBytes,
                                static_cast<int>(frame - kEventFrameHeaderBytes))) {
        return events;  // sound bytes that are no event: the log ends here, as with damage
      }
      events.push_back(std::move(event));
      offset_ += frame;
      if (ends != nullptr) ends->push_back(offset_);
      rest.remove_prefix(static_cast<size_t>(frame));
    }
    if (rest.size() == bytes->size() || static_cast<int64_t>(bytes->size()) < kReadBytes) break;
  }
  return events;
}

}  // namespace longhaul::attempt
