#include "worker/agent/host_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <vector>

#include "base/env.h"
#include "base/process.h"
#include "base/units.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/attempt/attempt_dir.h"

namespace longhaul::agent {
namespace {

TEST(HostMemoryTest, PlannableIsTheSameOnMachinesOfAKind) {
  EXPECT_EQ(PlannableHostBytes(64 * kGiB - 3 * kMiB), 62 * kGiB);
  EXPECT_EQ(PlannableHostBytes(64 * kGiB - 900 * kMiB), 62 * kGiB) << "the kernel's share differs from boot to boot";
  EXPECT_EQ(PlannableHostBytes(8 * kGiB - 100 * kMiB), 7 * kGiB - 256 * kMiB);
  EXPECT_EQ(PlannableHostBytes(1 * kGiB), 512 * kMiB);
  EXPECT_EQ(PlannableHostBytes(300 * kMiB), 150 * kMiB);
}

TEST(HostMemoryTest, OffersWhatOthersLeave) {
  EXPECT_EQ(OfferedHostBytes(62 * kGiB, 63 * kGiB, 0), 62 * kGiB);
  EXPECT_EQ(OfferedHostBytes(62 * kGiB, 21 * kGiB, 0), 20 * kGiB) << "40 GiB are somebody else's";
  // Its own trainers have taken 15 of them by the time it starts again.
  EXPECT_EQ(OfferedHostBytes(62 * kGiB, 6 * kGiB, 15 * kGiB), 20 * kGiB);
  EXPECT_EQ(OfferedHostBytes(62 * kGiB, 0, 0), 0);
}

TEST(HostMemoryTest, CountsTheTrainersThatAreAtWork) {
  const TempDir temp;
  EXPECT_EQ(OwnTrainersBytes(temp.path()), 0);
  const attempt::AttemptDir ours(temp.At("attempts/a.1.1"));
  const attempt::AttemptDir gone(temp.At("attempts/b.1.1"));
  ASSERT_TRUE(ours.Create().ok());
  ASSERT_TRUE(gone.Create().ok());
  ProcessId self = *SelfProcessId();
  ASSERT_TRUE(gone.WritePid({self.pid, self.start_ticks + 1}).ok());  // another process had that number
  EXPECT_EQ(OwnTrainersBytes(temp.path()), 0);
  ASSERT_TRUE(ours.WritePid(self).ok());
  const int64_t before = OwnTrainersBytes(temp.path());
  EXPECT_GT(before, 0);
  const std::vector<char> touched(static_cast<size_t>(64 * kMiB), 1);
  EXPECT_GE(OwnTrainersBytes(temp.path()), before + 63 * kMiB) << touched[4096];
}

}  // namespace
}  // namespace longhaul::agent
