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
                         return stuck_.contains(id) ? absl::InternalError("it stays") : absl::OkStatus();
                       },
                       [this](const std::vector<std::string>& ids) {
                         for (const std::string& id : ids) deleted_.erase(id);
                         return absl::OkStatus();
                       }}};
  std::set<std::string> deleted_;
  std::set<std::string> stuck_;
};

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
