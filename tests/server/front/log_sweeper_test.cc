#include "server/log_sweeper.h"

#include <set>
#include <string>

#include "base/limits.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

class LogSweeperTest : public testing::Test {
 protected:
  static std::string IdOf(int number) { return "ftjob-" + std::to_string(10'000 + number); }

  LogSweeper sweeper_{{[this](const std::string& after, int most) -> absl::StatusOr<std::vector<std::string>> {
                         std::vector<std::string> ids;
                         for (auto at = deleted_.upper_bound(after); at != deleted_.end(); ++at) {
                           if (static_cast<int>(ids.size()) < most) ids.push_back(*at);
                         }
                         return ids;
                       },
                       [this](const std::string& id) {
                         if (stuck_.contains(id)) return absl::InternalError("it stays");
                         logs_.erase(id);
                         return absl::OkStatus();
                       },
                       [this](const std::vector<std::string>& ids) {
                         for (const std::string& id : ids) deleted_.erase(id);
                         return absl::OkStatus();
                       },
                       [this](int most) -> absl::StatusOr<std::vector<std::string>> {
                         EXPECT_GT(most, 0);
                         return std::vector<std::string>(logs_.begin(), logs_.end());
                       },
                       [this](const std::string& id) -> absl::StatusOr<bool> {
                         if (unreadable_) return absl::UnavailableError("the store does not answer");
                         return jobs_.contains(id);
                       }}};
  std::set<std::string> deleted_;
  std::set<std::string> stuck_;
  std::set<std::string> logs_;
  std::set<std::string> jobs_;
  bool unreadable_ = false;
};

// A piece that was let in before the deletion was written after it.
TEST_F(LogSweeperTest, LogsWithoutAJobGo) {
  for (int i = 0; i < 4; ++i) logs_.insert(IdOf(i));
  jobs_ = {IdOf(1), IdOf(9)};
  stuck_ = {IdOf(2)};
  unreadable_ = true;
  sweeper_.Sweep();
  EXPECT_EQ(logs_.size(), 4u) << "a store that does not answer says nothing of a job";
  unreadable_ = false;
  sweeper_.Sweep();
  EXPECT_EQ(logs_, (std::set<std::string>{IdOf(1), IdOf(2)}));
  stuck_.clear();
  sweeper_.Sweep();
  EXPECT_EQ(logs_, (std::set<std::string>{IdOf(1)}));
}

TEST_F(LogSweeperTest, WhatCannotBeRemovedKeepsNoLaterOneFromBeingFinished) {
  constexpr int kStuck = 2 * limits::kMaxDeletedJobsPerSweep;
  for (int i = 0; i < kStuck + 3; ++i) deleted_.insert(IdOf(i));
  for (int i = 0; i < kStuck; ++i) stuck_.insert(IdOf(i));
  for (int i = 0; i < 3; ++i) sweeper_.Sweep();
  EXPECT_EQ(deleted_, stuck_);
  // It begins again: those that can be removed by now go.
  stuck_.erase(IdOf(1));
  sweeper_.Sweep();
  EXPECT_EQ(deleted_, stuck_);
  // Those that come meanwhile, too.
  deleted_.insert(IdOf(0) + "a");
  for (int i = 0; i < 3; ++i) sweeper_.Sweep();
  EXPECT_EQ(deleted_, stuck_);
}

TEST_F(LogSweeperTest, ASweepIsOnePage) {
  for (int i = 0; i < limits::kMaxDeletedJobsPerSweep + 1; ++i) deleted_.insert(IdOf(i));
  sweeper_.Sweep();
  EXPECT_EQ(deleted_.size(), 1u);
  sweeper_.Sweep();
  sweeper_.Sweep();  // of none
  EXPECT_TRUE(deleted_.empty());
}

}  // namespace
}  // namespace longhaul::server
