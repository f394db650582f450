#include "kernels/cuda/device_activity.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/error.h"
#include "kernels/exec.h"
#include "kernels/ops.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace longhaul::kernels {
namespace {

TEST(DeviceActivity, TheUnionCountsWhatOverlapsOnceAndGapsNotAtAll) {
  EXPECT_EQ(UnionNanos({}), 0u);
  EXPECT_EQ(UnionNanos({{10, 20}, {30, 35}}), 15u);
  EXPECT_EQ(UnionNanos({{30, 35}, {10, 20}, {15, 25}, {12, 13}}), 20u);
  EXPECT_EQ(UnionNanos({{1, 5}, {5, 9}, {2, 3}}), 8u);
}

// A fill of 1 GiB takes a third of a millisecond and more; a gap of 50 ms between two is no work.
TEST(DeviceActivity, KernelsCountAndWhatIsBetweenThemDoesNot) {
  auto exec = Exec::CreateCuda(0);
  ASSERT_TRUE(exec.ok()) << exec.status();
  constexpr int64_t kBytes = int64_t{1} << 30;
  const cuda::DeviceBytes memory(kBytes);
  const Tensor all = MakeTensor(memory.data(), DType::kU8, 1, kBytes);
  Zero(**exec, all);
  (*exec)->Synchronize();
  auto activity = DeviceActivity::Begin();
  if (!activity.ok()) {
    EXPECT_EQ(ErrorReason(activity.status()), "CUPTI_MISSING") << activity.status();
    GTEST_SKIP() << activity.status();
  }
  for (int i = 0; i < 2; ++i) {
    Zero(**exec, all);
    (*exec)->Synchronize();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  const auto sum = (*activity)->End();
  ASSERT_TRUE(sum.ok()) << sum.status();
  EXPECT_GE(sum->records, 2);
  EXPECT_GT(sum->seconds, 2 * 0.1e-3);
  EXPECT_LT(sum->seconds, 20e-3);
  EXPECT_GT(sum->all_seconds, 50e-3);
}

TEST(DeviceActivity, NothingRecordedIsNoSum) {
  auto exec = Exec::CreateCuda(0);
  ASSERT_TRUE(exec.ok()) << exec.status();
  auto activity = DeviceActivity::Begin();
  if (!activity.ok()) GTEST_SKIP() << activity.status();
  EXPECT_EQ(ErrorReason((*activity)->End().status()), "CUPTI_FAILED");
}

}  // namespace
}  // namespace longhaul::kernels
