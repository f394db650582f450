#include "storage/log_store.h"

#include <set>

#include "base/error.h"
#include "base/limits.h"
#include "gtest/gtest.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

class LogStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto logs = LogStore::Open(dir_.path());
    ASSERT_TRUE(logs.ok());
    logs_ = *std::move(logs);
  }
  TempDir dir_;
  std::unique_ptr<LogStore> logs_;
};

TEST_F(LogStoreTest, AppendIsIdempotentAndRefusesGaps) {
  EXPECT_EQ(*logs_->Append("ftjob-a", 1, 0, "hello ", false), 6);
  EXPECT_EQ(*logs_->Append("ftjob-a", 1, 0, "hello ", false), 6);
  EXPECT_EQ(*logs_->Append("ftjob-a", 1, 3, "lo world", false), 11);
  const absl::Status gap = logs_->Append("ftjob-a", 1, 20, "x", false).status();
  EXPECT_EQ(gap.code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(ErrorReason(gap), "LOG_GAP");
  EXPECT_EQ(logs_->Append("ftjob-a", 1, -1, "x", false).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(logs_->Read("ftjob-a", 1, 0, 100)->data, "hello world");
  EXPECT_EQ(logs_->Read("ftjob-a", 1, 6, 3)->data, "wor");
  EXPECT_EQ(logs_->Read("ftjob-a", 1, 50, 3)->data, "");
}

TEST_F(LogStoreTest, LeavesTheDatabaseItsRoom) {
  auto logs = LogStore::Open(dir_.path(), INT64_MAX);
  const absl::Status full = (*logs)->Append("ftjob-a", 1, 0, "hello", false).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(full), "DISK_FULL");
  EXPECT_EQ(*(*logs)->Append("ftjob-a", 1, 0, "", true), 0) << "an end takes no room";
}

TEST_F(LogStoreTest, CompleteOnlyAtTheEnd) {
  EXPECT_FALSE(logs_->Read("ftjob-a", 2, 0, 10)->complete) << "nothing there yet";
  ASSERT_TRUE(logs_->Append("ftjob-a", 2, 0, "abcdef", true).ok());
  auto chunk = logs_->Read("ftjob-a", 2, 0, 3);
  EXPECT_EQ(chunk->data, "abc");
  EXPECT_FALSE(chunk->complete);
  chunk = logs_->Read("ftjob-a", 2, 3, 3);
  EXPECT_TRUE(chunk->complete);
  EXPECT_TRUE(logs_->Read("ftjob-a", 2, 6, 3)->complete);
  // An attempt that wrote nothing has a complete, empty log.
  ASSERT_TRUE(logs_->Append("ftjob-a", 3, 0, "", true).ok());
  ASSERT_TRUE(logs_->Append("ftjob-a", 3, 0, "", true).ok());
  EXPECT_TRUE(logs_->Read("ftjob-a", 3, 0, 10)->complete);
}

TEST_F(LogStoreTest, NamesNeverLeaveTheFolder) {
  for (const std::string bad : {"..", "../x", "a/b", "", ".", "a\n", "/etc"}) {
    EXPECT_EQ(logs_->Append(bad, 1, 0, "x", false).status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(logs_->Read(bad, 1, 0, 1).status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_FALSE(logs_->Delete(bad).ok()) << bad;
  }
  EXPECT_FALSE(logs_->Append("ftjob-a", 0, 0, "x", false).ok());
  EXPECT_FALSE(logs_->Append("ftjob-a", -1, 0, "x", false).ok());
}

TEST_F(LogStoreTest, CutAtItsLimitWithALineThatSaysSo) {
  const std::string piece(1 << 20, 'l');
  const int64_t most = limits::kMaxStoredLogBytes;
  for (int64_t at = 0; at < most; at += static_cast<int64_t>(piece.size())) {
    ASSERT_EQ(*logs_->Append("ftjob-a", 1, at, piece, false), at + static_cast<int64_t>(piece.size()));
  }
  // Taken and not kept, also what begins past the limit, so that its agent comes to the end.
  EXPECT_EQ(*logs_->Append("ftjob-a", 1, most, "more", false), most + 4);
  EXPECT_EQ(*logs_->Append("ftjob-a", 1, most + 4, "and more", false), most + 12);
  EXPECT_EQ(*logs_->Append("ftjob-a", 1, 0, "", false), most) << "asked by an agent that has restarted";
  EXPECT_EQ(*logs_->Append("ftjob-a", 1, most + 12, "", true), most + 12);
  const auto end = logs_->Read("ftjob-a", 1, most - 100, 200);
  EXPECT_EQ(end->data.size(), 100u);
  EXPECT_NE(end->data.find("l\n[the rest of this log is not kept"), std::string::npos);
  EXPECT_EQ(end->data.back(), '\n');
  EXPECT_TRUE(end->complete);
  ASSERT_TRUE(logs_->Delete("ftjob-a").ok());
  EXPECT_EQ(logs_->Read("ftjob-a", 1, 0, 10)->data, "");
  ASSERT_TRUE(logs_->Delete("ftjob-a").ok());
}

TEST_F(LogStoreTest, ItsJobsComeInPieces) {
  std::set<std::string> jobs;
  for (int i = 0; i < 7; ++i) jobs.insert("ftjob-" + std::to_string(i));
  for (const std::string& id : jobs) ASSERT_TRUE(logs_->Append(id, 1, 0, "line\n", false).ok());
  for (int round = 0; round < 2; ++round) {
    std::set<std::string> seen;
    for (const size_t count : {3u, 3u, 1u}) {
      const auto ids = logs_->NextJobs(3);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(ids->size(), count);
      seen.insert(ids->begin(), ids->end());
      // What is deleted under way disturbs none.
      if (round == 0) {
        EXPECT_TRUE(logs_->Delete(ids->front()).ok());
      }
    }
    EXPECT_EQ(seen, jobs);
    if (round == 0) {
      for (const std::string& id : jobs) ASSERT_TRUE(logs_->Append(id, 2, 0, "again\n", false).ok());
    }
  }
}

}  // namespace
}  // namespace longhaul::storage
