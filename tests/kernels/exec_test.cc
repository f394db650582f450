#include <sched.h>

#include "base/error.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

TEST(ExecTest, ProbesTheCpu) {
  const CpuFacts facts = ProbeCpu();
  EXPECT_FALSE(facts.isa.empty());
  EXPECT_FALSE(facts.model_name.empty());
  EXPECT_EQ(facts.gemm_library.rfind("oneDNN ", 0), 0u);
  EXPECT_EQ(facts.has_bf16, facts.isa == "avx512_bf16" || facts.isa == "avx512_amx");
}

TEST(ExecTest, Bf16IsRefusedWhereTheCpuHasNone) {
  const auto exec = Exec::CreateCpu(1, GemmType::kBF16, false);
  EXPECT_EQ(exec.ok(), ProbeCpu().has_bf16);
  if (exec.ok()) {
    EXPECT_EQ((*exec)->gemm_type(), GemmType::kBF16);
    return;
  }
  EXPECT_EQ(exec.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(exec.status()), "NO_BF16");
  EXPECT_NE(std::string(exec.status().message()).find(ProbeCpu().isa), std::string::npos);
}

TEST(ExecTest, RefusesThreadCountsThatCannotBe) {
  EXPECT_EQ(Exec::CreateCpu(0, GemmType::kF32, false).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ErrorReason(Exec::CreateCpu(4096, GemmType::kF32, true).status()), "TOO_FEW_PROCESSORS");
}

TEST(ExecTest, PinsTheCallingThreadFirst) {
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_TRUE(Exec::CreateCpu(1, GemmType::kF32, true).ok());
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  EXPECT_EQ(CPU_COUNT(&after), 1);
  EXPECT_TRUE(CPU_ISSET(first, &after));
}

TEST(ExecTest, MeasuresAPlausibleRate) {
  const double flops = MeasureGemmFlops(1, GemmType::kF32);
  EXPECT_GT(flops, 1e8);
  EXPECT_LT(flops, 1e13);
}

TEST(ExecTest, WithoutCudaOrADeviceTheReasonIsSaid) {
  const auto devices = CudaDevices();
  if (devices.ok() && !devices->empty()) GTEST_SKIP() << "this machine has a CUDA device";
  const auto exec = Exec::CreateCuda(0);
  EXPECT_EQ(exec.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(exec.status()), BuiltWithCuda() ? "NO_CUDA_DEVICE" : "NO_CUDA");
}

TEST(ExecTest, CopiesBetweenTheHostAndItself) {
  const auto exec = MakeExec(1);
  const int32_t from = 7;
  int32_t held = 0, to = 0;
  exec->Upload(&held, &from, sizeof held);
  exec->Download(&to, &held, sizeof held);
  exec->Synchronize();
  EXPECT_EQ(to, 7);
}

}  // namespace
}  // namespace longhaul::kernels
