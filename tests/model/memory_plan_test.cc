#include "model/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/error.h"
#include "model/cost_model.h"
#include "model/plan_layout.h"
#include "tests/model/shapes.h"

namespace longhaul {
namespace {

using ::testing::HasSubstr;

TrainShape TwoTimes512() {
  TrainShape train;
  train.base = BaseWeights::kAsStored;
  train.batch_size = 2;
  train.sequence_length = 512;
  return train;
}

void ExpectSoundOnHost(const MemoryPlan& plan) {
  std::set<std::string> names;
  int64_t end = 0;
  for (size_t i = 0; i < plan.regions.size(); ++i) {
    const PlanRegion& a = plan.regions[i];
    EXPECT_TRUE(names.insert(a.name).second) << a.name;
    EXPECT_EQ(a.offset_bytes % 64, 0);
    EXPECT_GE(a.offset_bytes, 0);
    EXPECT_GT(a.bytes, 0);
    end = std::max(end, a.offset_bytes + a.bytes);
    for (size_t j = 0; j < i; ++j) {
      const PlanRegion& b = plan.regions[j];
      if ((a.live & b.live) == 0) continue;
      EXPECT_TRUE(a.offset_bytes + a.bytes <= b.offset_bytes || b.offset_bytes + b.bytes <= a.offset_bytes)
          << a.name << " lies on " << b.name;
    }
  }
  EXPECT_EQ(end, plan.arena_bytes);
  int64_t sum = 0;
  for (const PlanPart& part : plan.parts) sum += part.bytes;
  EXPECT_EQ(sum, plan.host_bytes_total);
}

// Bytes of the busiest phase: no packing can do better.
int64_t LowerBound(const MemoryPlan& plan) {
  int64_t most = 0;
  for (uint32_t phase = 1; phase <= kPhaseSave; phase <<= 1) {
    int64_t bytes = 0;
    for (const PlanRegion& region : plan.regions) bytes += (region.live & phase) != 0 ? region.bytes : 0;
    most = std::max(most, bytes);
  }
  return most;
}

TEST(CheckpointBytes, ReproducesThePublishedFigures) {
  const double gib = 1 << 30;
  EXPECT_NEAR(static_cast<double>(CheckpointBytes(Llama70bShape(), 89000)) / gib, 109, 0.5);
  EXPECT_NEAR(static_cast<double>(CheckpointBytes(Llama8bShape(), 342733)) / gib, 84, 0.5);
}

TEST(MemoryPlan, SmolLm2FitsItsBudgets) {
  const auto f32 = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {});
  ASSERT_TRUE(f32.ok()) << f32.status();
  ExpectSoundOnHost(*f32);
  EXPECT_EQ(f32->choices.keep_all_layers, 30);
  EXPECT_LE(f32->host_bytes_total, int64_t{2200} << 20);
  const auto bf16 = [] {
    TrainShape train = TwoTimes512();
    train.compute = ComputeType::kBF16;
    return MakePlan(SmolLm2Shape(), train, Bf16Cpu(), {int64_t{1200} << 20, 0, PlanShare::kWhole});
  }();
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  ExpectSoundOnHost(*bf16);
  EXPECT_LE(bf16->host_bytes_total, int64_t{1200} << 20);
  EXPECT_TRUE(bf16->choices.packed_weights);
}

TEST(MemoryPlan, SharesAreOrderedAndCheaperInTime) {
  const auto minimum = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {0, 0, PlanShare::kMinimum});
  const auto balanced = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {0, 0, PlanShare::kBalanced});
  const auto whole = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {0, 0, PlanShare::kWhole});
  ASSERT_TRUE(minimum.ok() && balanced.ok() && whole.ok());
  EXPECT_LT(minimum->host_bytes_total, balanced->host_bytes_total);
  EXPECT_LT(balanced->host_bytes_total, whole->host_bytes_total);
  EXPECT_GT(minimum->step_seconds, balanced->step_seconds);
  EXPECT_GT(balanced->step_seconds, whole->step_seconds);
  EXPECT_EQ(minimum->choices.keep_all_layers, 0);
  EXPECT_EQ(balanced->choices.keep_all_layers, 15);
}

TEST(MemoryPlan, UsesTheBudgetToKeepLayers) {
  const auto whole = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {});
  ASSERT_TRUE(whole.ok());
  for (int percent = 95; percent >= 60; percent -= 5) {
    const int64_t budget = whole->host_bytes_total * percent / 100;
    const auto plan = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {budget, 0, PlanShare::kWhole});
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->host_bytes_total, budget);
    EXPECT_LT(plan->choices.keep_all_layers, 30);
    // One more layer would not fit.
    EXPECT_GT(plan->host_bytes_total + KeptLayerBytes(plan->shape, plan->train), budget);
  }
}

TEST(MemoryPlan, MoreTokensNeedMoreBytesInEveryShare) {
  for (PlanShare share : {PlanShare::kMinimum, PlanShare::kWhole}) {
    int64_t before = 0;
    for (int64_t length = 64; length <= 8192; length *= 2) {
      TrainShape train = TwoTimes512();
      train.sequence_length = length;
      DeviceFacts facts = SmallCpu();
      facts.host_bytes = int64_t{1} << 40;
      const auto plan = MakePlan(SmolLm2Shape(), train, facts, {0, 0, share});
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_GT(plan->arena_bytes, before) << length;
      before = plan->arena_bytes;
    }
  }
}

TEST(MemoryPlan, RandomShapesAreSoundAndTightlyPacked) {
  std::mt19937 random(7);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  for (int i = 0; i < 300; ++i) {
    ModelShape shape = SmolLm2Shape();
    shape.layers = draw(1, 12);
    shape.kv_heads = draw(1, 4);
    shape.heads = shape.kv_heads * draw(1, 4);
    shape.head_dim = 2 * draw(1, 64);
    shape.hidden = 8 * draw(1, 200);
    shape.intermediate = 8 * draw(1, 400);
    shape.vocab = draw(2, 60000);
    shape.qk_norm = draw(0, 1) == 1;
    shape.tied_embeddings = draw(0, 1) == 1;
    TrainShape train;
    train.lora_rank = draw(1, 64);
    train.lora_targets = static_cast<uint32_t>(draw(1, kAllLoraTargets));
    train.lora_dropout = draw(0, 1) == 1;
    train.batch_size = draw(1, 4);
    train.sequence_length = draw(1, 700);
    DeviceFacts facts = draw(0, 1) == 1 ? Bf16Cpu() : SmallCpu();
    if (facts.has_bf16 && draw(0, 1) == 1) train.compute = ComputeType::kBF16;
    facts.host_bytes = int64_t{64} << 30;
    const PlanShare share = static_cast<PlanShare>(draw(0, 2));
    const auto plan = MakePlan(shape, train, facts, {0, 0, share});
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectSoundOnHost(*plan);
    EXPECT_LE(static_cast<double>(plan->arena_bytes), 1.02 * static_cast<double>(LowerBound(*plan)) + 65536.0) << i;
    const auto again = MemoryPlanFromJson(MemoryPlanToJson(*plan));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(MemoryPlanToJson(*again), MemoryPlanToJson(*plan));
  }
}

TEST(MemoryPlan, RefusesWithBytesByPartAndTheLongestSequenceThatFits) {
  DeviceFacts facts = SmallCpu();
  facts.host_bytes = int64_t{1} << 30;
  TrainShape train = TwoTimes512();
  train.sequence_length = 8192;
  const auto plan = MakePlan(SmolLm2Shape(), train, facts, {});
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(plan.status()), "PLAN_DOES_NOT_FIT");
  const std::string message(plan.status().message());
  for (const char* part : {"needs ", "1.00 GiB are there", "weights ", "checkpoints ", "activations ", "runtime "}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
  const int64_t longest = LongestFittingSequence(SmolLm2Shape(), train, facts, {}, 8192);
  ASSERT_GT(longest, 64);
  train.sequence_length = longest;
  EXPECT_TRUE(MakePlan(SmolLm2Shape(), train, facts, {}).ok());
  train.sequence_length = longest + 1;
  EXPECT_FALSE(MakePlan(SmolLm2Shape(), train, facts, {}).ok());
}

TEST(MemoryPlan, HugeRequestsAreRefusedNotOverflowed) {
  TrainShape train;
  train.batch_size = 127;
  train.sequence_length = int64_t{1} << 24;
  ModelShape shape = Llama70bShape();
  shape.layers = 1024;
  shape.intermediate = 1 << 19;
  const auto plan = MakePlan(shape, train, SmallCpu(), {});
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(ErrorReason(plan.status()), "PLAN_DOES_NOT_FIT");
  EXPECT_EQ(LongestFittingSequence(shape, train, SmallCpu(), {}, int64_t{1} << 24), 0);
}

TEST(MemoryPlan, RefusesWhatTheDeviceLacks) {
  TrainShape train = TwoTimes512();
  train.compute = ComputeType::kBF16;
  EXPECT_EQ(ErrorReason(MakePlan(SmolLm2Shape(), train, SmallCpu(), {}).status()), "DEVICE_UNSUPPORTED");
  train.compute = ComputeType::kFP8;
  const absl::Status fp8 = MakePlan(SmolLm2Shape(), train, SmallCpu(), {}).status();
  EXPECT_EQ(ErrorReason(fp8), "DEVICE_UNSUPPORTED");
  EXPECT_NE(fp8.message().find("compute capability 9.x"), std::string::npos) << fp8;
  DeviceFacts gpu = SmallCpu();
  gpu.kind = DeviceKind::kCuda;
  EXPECT_EQ(ErrorReason(MakePlan(SmolLm2Shape(), TwoTimes512(), gpu, {}).status()), "DEVICE_UNSUPPORTED");
  train = TwoTimes512();
  train.cpu_threads = 3;
  EXPECT_EQ(MakePlan(SmolLm2Shape(), train, SmallCpu(), {}).status().code(), absl::StatusCode::kInvalidArgument);
  train = TwoTimes512();
  train.lora_targets = 0;
  EXPECT_FALSE(MakePlan(SmolLm2Shape(), train, SmallCpu(), {}).ok());
}

TEST(MemoryPlan, SignatureFollowsBitsNotMemory) {
  const auto whole = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {});
  const auto balanced = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {0, 0, PlanShare::kBalanced});
  ASSERT_TRUE(whole.ok() && balanced.ok());
  EXPECT_EQ(PlanSignature(*whole, "oneDNN 2.6.3"), PlanSignature(*balanced, "oneDNN 2.6.3"));
  EXPECT_NE(PlanSignature(*whole, "oneDNN 2.6.3"), PlanSignature(*whole, "oneDNN 2.7.0"));
  MemoryPlan other = *whole;
  other.choices.cpu_threads = 1;
  EXPECT_NE(PlanSignature(*whole, "a"), PlanSignature(other, "a"));
  other = *whole;
  other.choices.isa = "avx512";
  EXPECT_NE(PlanSignature(*whole, "a"), PlanSignature(other, "a"));
  other = *whole;
  other.choices.token_tile_rows = 128;
  EXPECT_NE(PlanSignature(*whole, "a"), PlanSignature(other, "a"));
}

// Of checkpoints that are there: another signature ends their jobs. SHA-256 of "plan 5; compute f32; base nf4; token
// tile 256; loss tile 128; threads 2; isa avx2; weights packed; gemm oneDNN 2.6.3".
TEST(MemoryPlan, SignatureOfAPlanStaysWhileItsBitsDo) {
  MemoryPlan plan;
  plan.train.compute = ComputeType::kF32;
  plan.train.base = BaseWeights::kNf4;
  plan.choices.token_tile_rows = 256;
  plan.choices.loss_tile_rows = 128;
  plan.choices.cpu_threads = 2;
  plan.choices.isa = "avx2";
  plan.choices.packed_weights = true;
  const std::string kept = "b19fdd6a5646ff9c5ad89a43a5855631c16d3be9860e7bd08cc47587dc5bb9fc";
  EXPECT_EQ(PlanSignature(plan, "oneDNN 2.6.3"), kept);
  plan.version = kPlanVersion + 1;  // other regions
  EXPECT_EQ(PlanSignature(plan, "oneDNN 2.6.3"), kept);
}

TEST(MemoryPlan, GenerationNeedsNoTrainingRegions) {
  TrainShape train = TwoTimes512();
  train.lora_targets = 0;
  const auto plan = MakeGeneratePlan(SmolLm2Shape(), train, SmallCpu());
  ASSERT_TRUE(plan.ok()) << plan.status();
  ExpectSoundOnHost(*plan);
  for (const PlanRegion& region : plan->regions) {
    EXPECT_TRUE(region.name.rfind("adapter", 0) != 0 && region.name.rfind("d_", 0) != 0) << region.name;
  }
  EXPECT_TRUE(MemoryPlanFromJson(MemoryPlanToJson(*plan)).ok());
}

TEST(CostModel, CountsTheStepOfSmolLm2) {
  auto plan = MakePlan(SmolLm2Shape(), TwoTimes512(), SmallCpu(), {});
  ASSERT_TRUE(plan.ok());
  const StepFlops flops = CountFlops(*plan);
  const double per_token = 1.0 / 1024.0;
  // 106.2M linear parameters, 28.3M of the head: 2 FLOP forward and 2 backward each.
  EXPECT_NEAR(flops.linear * per_token, 4 * 106.168e6, 1e5);
  EXPECT_NEAR(flops.head * per_token, 4 * 28.311552e6, 1);
  EXPECT_NEAR(flops.lora * per_token, 6 * 4.884480e6, 1e5);
  EXPECT_EQ(flops.recompute, 0);
  plan->choices.keep_all_layers = 0;
  EXPECT_GT(CountFlops(*plan).recompute, 0);
}

}  // namespace
}  // namespace longhaul
