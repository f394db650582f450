#include "storage/log_store.h"

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
  ASSERT_TRUE(logs_->MarkComplete("ftjob-a", 3).ok());
  ASSERT_TRUE(logs_->MarkComplete("ftjob-a", 3).ok());
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

TEST_F(LogStoreTest, FullAtItsLimit) {
  const std::string piece(1 << 20, 'l');
  for (int64_t at = 0; at < limits::kMaxStoredLogBytes; at += static_cast<int64_t>(piece.size())) {
    ASSERT_TRUE(logs_->Append("ftjob-a", 1, at, piece, false).ok());
  }
  EXPECT_EQ(ErrorReason(logs_->Append("ftjob-a", 1, limits::kMaxStoredLogBytes, "x", false).status()), "LOG_FULL");
  EXPECT_EQ(*logs_->Append("ftjob-a", 1, limits::kMaxStoredLogBytes, "", true), limits::kMaxStoredLogBytes);
  ASSERT_TRUE(logs_->Delete("ftjob-a").ok());
  EXPECT_EQ(logs_->Read("ftjob-a", 1, 0, 10)->data, "");
  ASSERT_TRUE(logs_->Delete("ftjob-a").ok());
}

}  // namespace
}  // namespace longhaul::storage
