#include "wire/device_probe.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/units.h"

namespace longhaul::wire {
namespace {

ProbedGpu H100() {
  ProbedGpu gpu;
  gpu.id = "GPU-00000000-1111-2222-3333-444444444444";
  gpu.name = "NVIDIA H100 80GB HBM3";
  gpu.compute_capability = 90;
  gpu.multiprocessors = 132;
  gpu.memory_bytes = 79 * kGiB;
  gpu.used_bytes = 500 << 20;
  gpu.driver_version = 13000;
  gpu.runtime_version = 13000;
  gpu.libraries = "cuBLASLt 13.1.0, cuDNN 9.14.0";
  gpu.cudnn_version = 91400;
  gpu.has_fp8 = true;
  gpu.gemm_flops = 7e14;
  gpu.copy_bytes_per_second = 5e10;
  gpu.memory_bytes_per_second = 4e12;
  return gpu;
}

std::string ClassOf(const ProbedGpu& gpu, int threads = 8) {
  return FactsOfGpu(gpu, gpu.memory_bytes, {125 * kGiB, 50 * kGiB, threads}).device_class;
}

TEST(DeviceProbeTest, SurvivesItsText) {
  ProbedGpu broken = H100();
  broken.id = "GPU-2";
  broken.problem = "has compute capability 7.5; \"bf16\" needs 8.0 \xff";
  const auto read = DeviceProbeFromJson(DeviceProbeToJson({{H100(), broken}, "none"}));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->problem, "none");
  ASSERT_EQ(read->gpus.size(), 2u);
  EXPECT_EQ(ClassOf(read->gpus[0]), ClassOf(H100()));
  EXPECT_EQ(read->gpus[0].id, H100().id);
  EXPECT_EQ(read->gpus[0].cudnn_version, 91400);
  EXPECT_TRUE(read->gpus[0].has_fp8);
  EXPECT_EQ(read->gpus[0].used_bytes, H100().used_bytes);
  EXPECT_DOUBLE_EQ(read->gpus[0].gemm_flops, 7e14);
  EXPECT_DOUBLE_EQ(read->gpus[0].copy_bytes_per_second, 5e10);
  EXPECT_DOUBLE_EQ(read->gpus[0].memory_bytes_per_second, 4e12);
  EXPECT_EQ(GpuSpeedKey(read->gpus[0]), GpuSpeedKey(H100()));
  EXPECT_EQ(read->gpus[1].problem.rfind("has compute capability 7.5; \"bf16\"", 0), 0u);
}

TEST(DeviceProbeTest, RefusesWhatIsNone) {
  const std::string good = DeviceProbeToJson({{H100()}, ""});
  ASSERT_TRUE(DeviceProbeFromJson(good).ok());
  std::string negative = good;
  negative.replace(negative.find("\"memory_bytes\":") + 15, 1, "-8");
  for (const std::string& text : {std::string(), std::string("[]"), std::string("{}"), good.substr(0, good.size() / 2),
                                  std::string(R"({"gpus":[1],"problem":""})"), negative}) {
    EXPECT_EQ(DeviceProbeFromJson(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(DeviceProbeTest, FactsAreThePlansAndSound) {
  const DeviceFacts facts = FactsOfGpu(H100(), 79 * kGiB, {125 * kGiB, 50 * kGiB, 8});
  EXPECT_EQ(facts.kind, DeviceKind::kCuda);
  EXPECT_EQ(facts.isa, "sm_90");
  EXPECT_EQ(facts.compute_capability, "9.0");
  EXPECT_EQ(facts.device_bytes, 79 * kGiB);
  EXPECT_EQ(facts.host_bytes, 125 * kGiB);
  EXPECT_EQ(facts.disk_bytes, 50 * kGiB);
  EXPECT_EQ(facts.cpu_threads, 8);
  EXPECT_TRUE(facts.has_bf16);
  EXPECT_DOUBLE_EQ(facts.gemm_flops, 7e14);
  EXPECT_DOUBLE_EQ(facts.copy_bytes_per_second, 5e10);
  EXPECT_DOUBLE_EQ(facts.memory_bytes_per_second, 4e12);
  EXPECT_TRUE(ValidateDeviceFacts(facts).ok());
  EXPECT_EQ(facts.device_class.rfind("NVIDIA-H100-80GB-HBM3-79g-8t-125g-", 0), 0u) << facts.device_class;
}

// Two GPUs of a class have the same plans and give the same bits.
TEST(DeviceProbeTest, TheClassIsWhatPlansAndBitsDependOn) {
  const std::string mine = ClassOf(H100());
  ProbedGpu other = H100();
  other.id = "GPU-another";
  other.used_bytes = 0;
  other.gemm_flops = 6e14;
  other.memory_bytes_per_second = 3e12;
  EXPECT_EQ(ClassOf(other), mine);
  other.driver_version = 13010;
  EXPECT_NE(ClassOf(other), mine);
  other = H100();
  other.libraries = "cuBLASLt 13.2.0, cuDNN 9.14.0";
  EXPECT_NE(ClassOf(other), mine);
  other = H100();
  other.memory_bytes -= kGiB / 2;
  EXPECT_NE(ClassOf(other), mine);
  EXPECT_NE(ClassOf(H100(), 4), mine);
}

TEST(DeviceProbeTest, AContextOfOursIsNotOtherProgramsMemory) {
  ProbedGpu gpu = H100();
  EXPECT_EQ(GpuBytesOfOthers(gpu), 0);
  gpu.used_bytes = 20 * kGiB;
  EXPECT_GT(GpuBytesOfOthers(gpu), 19 * kGiB);
  EXPECT_LT(GpuBytesOfOthers(gpu), 20 * kGiB);
}

}  // namespace
}  // namespace longhaul::wire
