#include "base/error.h"
#include "gtest/gtest.h"
#include "worker/bench_train.h"

namespace longhaul {
namespace {

// Nothing would be recorded, and the report would not say why.
TEST(BenchTrainOptions, KernelsAreRecordedOfAGpusMeasuredStepsAlone) {
  BenchTrainOptions options;
  options.record_kernels = true;
  options.device = "cpu";
  EXPECT_EQ(BenchTrain(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.device = "cuda";
  options.steps = 0;
  EXPECT_EQ(BenchTrain(options).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace longhaul
