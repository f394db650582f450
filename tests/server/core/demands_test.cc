// On the real memory plan: the demand that the scheduler reserves is what the plan sent to the trainer says.
#include "server/core/demands.h"

#include "base/units.h"
#include "gtest/gtest.h"
#include "model/memory_plan.h"

namespace longhaul::server {
namespace {

PlanRequest TinyRequest() {
  PlanRequest request;
  request.model.family = "llama";
  request.model.layers = 8;
  request.model.hidden = 256;
  request.model.intermediate = 512;
  request.model.heads = 8;
  request.model.kv_heads = 4;
  request.model.head_dim = 32;
  request.model.vocab = 4096;
  request.model.max_position_embeddings = 4096;
  request.train.sequence_length = 1024;
  request.train.batch_size = 2;
  request.total_steps = 10;
  return request;
}

DeviceFacts Cpu(int64_t host_bytes) {
  DeviceFacts facts;
  facts.device_class = "cpu-avx2-2t";
  facts.host_bytes = host_bytes;
  facts.disk_bytes = int64_t{100} << 30;
  facts.cpu_threads = 2;
  facts.gemm_flops = 1e11;
  return facts;
}

TEST(DemandsTest, PointsAreOrderedAndEqualThePlan) {
  const PlanRequest request = TinyRequest();
  const DeviceFacts facts = Cpu(8 * kGiB);
  const ClassDemands demands = DemandsOn(MemoryPlanner(), request, facts);
  for (const PlanPoint point : {PlanPoint::kMinimum, PlanPoint::kBalanced, PlanPoint::kWhole}) {
    const Demand& demand = At(demands, point);
    ASSERT_TRUE(demand.fits) << Name(point) << " " << demand.why;
    const auto json = MemoryPlanner().PlanJson(request, facts, point);
    ASSERT_TRUE(json.ok()) << json.status();
    const auto plan = MemoryPlanFromJson(*json);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->host_bytes_total, demand.host_bytes);
    EXPECT_EQ(plan->disk_bytes, demand.disk_bytes);
    EXPECT_EQ(plan->choices.cpu_threads, demand.cpu_threads);
    EXPECT_DOUBLE_EQ(demand.total_seconds, 10 * demand.step_seconds);
  }
  EXPECT_LT(At(demands, PlanPoint::kMinimum).host_bytes, At(demands, PlanPoint::kBalanced).host_bytes);
  EXPECT_LE(At(demands, PlanPoint::kBalanced).host_bytes, At(demands, PlanPoint::kWhole).host_bytes);
}

// A class computes in what is fastest there, whatever class was the fastest when the job was made.
TEST(DemandsTest, AComputeTypeThatIsLeftToTheDeviceIsThatOfEachClass) {
  PlanRequest request = TinyRequest();
  request.train.compute = ComputeType::kBF16;
  const DeviceFacts plain = Cpu(8 * kGiB);
  DeviceFacts fast = plain;
  fast.device_class = "cpu-avx512_bf16-2t";
  fast.isa = "avx512_bf16";
  fast.has_bf16 = true;
  EXPECT_FALSE(At(DemandsOn(MemoryPlanner(), request, plain), PlanPoint::kMinimum).fits) << "as it was asked for";
  request.compute_of_device = true;
  const auto computes_in = [&](const DeviceFacts& facts) {
    const auto json = MemoryPlanner().PlanJson(request, facts, PlanPoint::kMinimum);
    EXPECT_TRUE(json.ok()) << json.status();
    return MemoryPlanFromJson(*json)->train.compute;
  };
  EXPECT_TRUE(At(DemandsOn(MemoryPlanner(), request, plain), PlanPoint::kMinimum).fits);
  EXPECT_EQ(computes_in(plain), ComputeType::kF32);
  EXPECT_EQ(computes_in(fast), ComputeType::kBF16);
}

TEST(DemandsTest, ShareChoosesThePoints) {
  PlanRequest request = TinyRequest();
  const DeviceFacts facts = Cpu(8 * kGiB);
  request.share = DeviceShare::kFit;
  const ClassDemands fit = DemandsOn(MemoryPlanner(), request, facts);
  EXPECT_TRUE(At(fit, PlanPoint::kMinimum).fits);
  EXPECT_FALSE(At(fit, PlanPoint::kWhole).fits);

  request.share = DeviceShare::kBytes;
  request.share_bytes = At(fit, PlanPoint::kMinimum).host_bytes + (8 << 20);
  const ClassDemands bytes = DemandsOn(MemoryPlanner(), request, facts);
  ASSERT_TRUE(At(bytes, PlanPoint::kWhole).fits);
  EXPECT_LE(At(bytes, PlanPoint::kWhole).host_bytes, request.share_bytes);
  EXPECT_FALSE(At(bytes, PlanPoint::kMinimum).fits);

  request.share_bytes = At(fit, PlanPoint::kMinimum).host_bytes / 2;
  const Demand refused = AdmissionDemand(MemoryPlanner(), request, facts);
  EXPECT_FALSE(refused.fits);
  EXPECT_NE(refused.why.find("weights"), std::string::npos) << refused.why;
}

TEST(DemandsTest, ARefusalNamesTheLongestSequenceThatFits) {
  PlanRequest request = TinyRequest();
  request.train.sequence_length = 1 << 20;
  request.model.max_position_embeddings = 1 << 20;
  const DeviceFacts facts = Cpu(kGiB);
  const Demand demand = AdmissionDemand(MemoryPlanner(), request, facts);
  ASSERT_FALSE(demand.fits);
  ASSERT_GT(demand.longest_sequence_length, 0);
  request.train.sequence_length = demand.longest_sequence_length;
  EXPECT_TRUE(AdmissionDemand(MemoryPlanner(), request, facts).fits);
  request.train.sequence_length = demand.longest_sequence_length + 1;
  EXPECT_FALSE(AdmissionDemand(MemoryPlanner(), request, facts).fits);
}

TEST(DemandsTest, AskedThreadsAreTheDemand) {
  PlanRequest request = TinyRequest();
  EXPECT_EQ(AdmissionDemand(MemoryPlanner(), request, Cpu(8 * kGiB)).cpu_threads, 2);
  request.train.cpu_threads = 1;
  EXPECT_EQ(AdmissionDemand(MemoryPlanner(), request, Cpu(8 * kGiB)).cpu_threads, 1);
}

DeviceFacts Gpu(int64_t device_bytes) {
  DeviceFacts facts = Cpu(32 * kGiB);
  facts.device_class = "NVIDIA-H100";
  facts.kind = DeviceKind::kCuda;
  facts.isa = "sm_90";
  facts.has_bf16 = facts.has_fp8 = true;
  facts.device_bytes = device_bytes;
  facts.cpu_threads = 8;
  facts.gemm_flops = 7e14;
  return facts;
}

TEST(DemandsTest, Fp8GoesToHopperAndNowhereElse) {
  PlanRequest request = TinyRequest();
  request.train.compute = ComputeType::kFP8;
  EXPECT_TRUE(AdmissionDemand(MemoryPlanner(), request, Gpu(2 * kGiB)).fits);
  DeviceFacts ada = Gpu(2 * kGiB);
  ada.isa = "sm_89";
  ada.has_fp8 = false;
  for (const DeviceFacts& facts : {ada, Cpu(8 * kGiB)}) {
    const Demand demand = AdmissionDemand(MemoryPlanner(), request, facts);
    EXPECT_FALSE(demand.fits) << facts.device_class;
    EXPECT_NE(demand.why.find("fp8 needs"), std::string::npos) << demand.why;
  }
}

TEST(DemandsTest, AGpuIsReservedWithItsHostMemory) {
  PlanRequest request = TinyRequest();
  request.compute_of_device = true;
  const DeviceFacts facts = Gpu(2 * kGiB);
  const ClassDemands demands = DemandsOn(MemoryPlanner(), request, facts);
  for (const PlanPoint point : {PlanPoint::kMinimum, PlanPoint::kBalanced, PlanPoint::kWhole}) {
    const Demand& demand = At(demands, point);
    ASSERT_TRUE(demand.fits) << Name(point) << " " << demand.why;
    EXPECT_GT(demand.step_seconds, 0);
    EXPECT_LE(demand.device_bytes, 2 * kGiB);
    const auto json = MemoryPlanner().PlanJson(request, facts, point);
    ASSERT_TRUE(json.ok()) << json.status();
    const auto plan = MemoryPlanFromJson(*json);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->device, DeviceKind::kCuda);
    EXPECT_EQ(plan->train.compute, ComputeType::kBF16);
    EXPECT_EQ(plan->device_bytes_total, demand.device_bytes);
    EXPECT_EQ(plan->host_bytes_total, demand.host_bytes);
  }
  EXPECT_LE(At(demands, PlanPoint::kMinimum).device_bytes, At(demands, PlanPoint::kBalanced).device_bytes);
  EXPECT_LE(At(demands, PlanPoint::kBalanced).device_bytes, At(demands, PlanPoint::kWhole).device_bytes);
  EXPECT_GE(At(demands, PlanPoint::kMinimum).step_seconds, At(demands, PlanPoint::kWhole).step_seconds);
}

TEST(DemandsTest, AShareInBytesIsOfTheGpusMemory) {
  PlanRequest request = TinyRequest();
  request.train.compute = ComputeType::kBF16;
  request.share = DeviceShare::kBytes;
  request.share_bytes = kGiB;
  const Demand demand = AdmissionDemand(MemoryPlanner(), request, Gpu(80 * kGiB));
  ASSERT_TRUE(demand.fits) << demand.why;
  EXPECT_LE(demand.device_bytes, kGiB);
}

TEST(DemandsTest, WhatAGpuCannotDoNamesItsClass) {
  PlanRequest request = TinyRequest();
  const Demand f32 = AdmissionDemand(MemoryPlanner(), request, Gpu(80 * kGiB));
  EXPECT_FALSE(f32.fits);
  EXPECT_NE(f32.why.find("\"NVIDIA-H100\": compute type f32"), std::string::npos) << f32.why;
  EXPECT_TRUE(AdmissionDemand(MemoryPlanner(), request, Cpu(8 * kGiB)).fits) << "the CPU has it";
  request.train.compute = ComputeType::kBF16;
  request.train.lora_dropout = true;
  EXPECT_TRUE(AdmissionDemand(MemoryPlanner(), request, Gpu(80 * kGiB)).fits) << "dropout is as on a CPU";
}

// What feeds a GPU does not make it slower.
TEST(DemandsTest, AGpusSpeedIsItsOwn) {
  PlanRequest request = TinyRequest();
  request.train.compute = ComputeType::kBF16;
  const double eight = AdmissionDemand(MemoryPlanner(), request, Gpu(80 * kGiB)).step_seconds;
  request.train.cpu_threads = 1;
  EXPECT_DOUBLE_EQ(AdmissionDemand(MemoryPlanner(), request, Gpu(80 * kGiB)).step_seconds, eight);
}

TEST(DemandsTest, AShareInBytesIsNeverMoreThanThereIs) {
  PlanRequest request;
  request.share = DeviceShare::kBytes;
  request.share_bytes = int64_t{64} << 30;
  DeviceFacts facts;
  facts.host_bytes = int64_t{8} << 30;
  EXPECT_EQ(BudgetOf(request, facts, PlanPoint::kMinimum).host_bytes, facts.host_bytes);
  facts.kind = DeviceKind::kCuda;
  facts.device_bytes = int64_t{24} << 30;
  EXPECT_EQ(BudgetOf(request, facts, PlanPoint::kMinimum).device_bytes, facts.device_bytes);
  request.share_bytes = kGiB;
  EXPECT_EQ(BudgetOf(request, facts, PlanPoint::kWhole).device_bytes, kGiB);
}

}  // namespace
}  // namespace longhaul::server
