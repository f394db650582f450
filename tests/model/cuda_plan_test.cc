// The plan of a CUDA device: what is true of every plan, and what it chooses for real models and cards.
#include "model/cuda_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/error.h"
#include "base/units.h"
#include "model/cost_model.h"
#include "model/cuda_layout.h"
#include "model/memory_plan.h"
#include "tests/model/shapes.h"

namespace longhaul {
namespace {

DeviceFacts Gpu(int64_t device_bytes, const std::string& isa = "sm_90") {
  DeviceFacts facts;
  facts.device_class = "gpu";
  facts.kind = DeviceKind::kCuda;
  facts.isa = isa;
  facts.device_bytes = device_bytes;
  facts.host_bytes = 128 * kGiB;
  facts.cpu_threads = 16;
  facts.cudnn_version = 91400;
  facts.has_fp8 = ComputeCapabilityOf(isa) / 10 == 9;
  return facts;
}

ModelShape Qwen3Of8b() {
  ModelShape s = Llama8bShape();
  s.family = "qwen3";
  s.layers = 36;
  s.intermediate = 12288;
  s.vocab = 151936;
  s.qk_norm = true;
  return s;
}

TrainShape Bf16(int64_t batch, int64_t length, int64_t rank = 16) {
  TrainShape train;
  train.compute = ComputeType::kBF16;
  train.base = BaseWeights::kNf4;
  train.lora_rank = rank;
  train.batch_size = batch;
  train.sequence_length = length;
  return train;
}

void ExpectSound(const MemoryPlan& plan) {
  int64_t ends[2] = {0, 0};
  for (size_t i = 0; i < plan.regions.size(); ++i) {
    const PlanRegion& a = plan.regions[i];
    ASSERT_NE(a.space, PlanSpace::kHost) << a.name;
    EXPECT_EQ(a.offset_bytes % kCudaAlignBytes, 0) << a.name;
    int64_t& end = ends[a.space == PlanSpace::kDevice ? 0 : 1];
    end = std::max(end, a.offset_bytes + a.bytes);
    for (size_t j = 0; j < i; ++j) {
      const PlanRegion& b = plan.regions[j];
      EXPECT_NE(a.name, b.name);
      if (a.space != b.space || (a.live & b.live) == 0) continue;
      EXPECT_TRUE(a.offset_bytes + a.bytes <= b.offset_bytes || b.offset_bytes + b.bytes <= a.offset_bytes)
          << a.name << " and " << b.name;
    }
  }
  EXPECT_EQ(ends[0], plan.device_arena_bytes);
  EXPECT_EQ(ends[1], plan.arena_bytes);
  EXPECT_EQ(plan.device_bytes_total,
            plan.device_arena_bytes + plan.context_bytes + (plan.arena_bytes + 4095) / 4096 * 8);
  int64_t parts = 0;
  for (const PlanPart& part : plan.parts) parts += part.bytes;
  EXPECT_EQ(parts, plan.device_bytes_total);
}

TEST(CudaPlan, IsSoundAndTravelsForRandomShapesAndChoices) {
  std::mt19937 random(5);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  for (int i = 0; i < 100; ++i) {
    ModelShape s = draw(0, 1) == 0 ? Llama8bShape() : Qwen3Of8b();
    s.layers = draw(1, 6);
    s.kv_heads = draw(1, 4);
    s.heads = s.kv_heads * draw(1, 4);
    s.head_dim = 8 * draw(2, 32);
    s.hidden = 8 * draw(4, 300);
    s.intermediate = 8 * draw(4, 600);
    s.vocab = draw(300, 40000);
    s.tied_embeddings = draw(0, 1) == 0;
    TrainShape train = Bf16(draw(1, 3), draw(1, 700), draw(1, 40));
    train.lora_targets = static_cast<uint32_t>(draw(1, kAllLoraTargets));
    train.base = draw(0, 3) == 0 ? BaseWeights::kAsStored : BaseWeights::kNf4;
    train.deterministic = draw(0, 1) == 0;
    train.lora_dropout = draw(0, 2) == 0;
    if (draw(0, 2) == 0) {
      train.compute = ComputeType::kFP8;
      for (int64_t* size : {&s.head_dim, &s.hidden, &s.intermediate}) *size = RoundUp(*size, 16);
    }
    train.accumulation_steps = draw(1, 5);
    PlanBudget budget;
    budget.share = static_cast<PlanShare>(draw(0, 2));
    const auto plan = MakePlan(s, train, Gpu(80 * kGiB), budget);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectSound(*plan);
    const auto again = MemoryPlanFromJson(MemoryPlanToJson(*plan));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->regions, plan->regions);
    EXPECT_EQ(again->choices, plan->choices);
    EXPECT_EQ(again->device_bytes_total, plan->device_bytes_total);
    EXPECT_EQ(again->device, DeviceKind::kCuda);

    if (!CanGroupHeads(train)) continue;
    MemoryPlan grouped = *plan;
    PlanChoices& c = grouped.choices;
    c.grouped_attention = true;
    c.keep_all_layers = 0;
    c.keep_attention_layers = draw(0, s.layers);
    const int64_t calls[] = {1, s.kv_heads, s.heads};
    c.attention_calls = calls[draw(0, 2)];
    c.token_tile_rows = draw(1, PlannedRows(grouped));
    c.host_attention = draw(0, 1) == 0;
    c.host_checkpoints = draw(0, 1) == 0;
    c.host_optimizer = draw(0, 1) == 0;
    c.host_head = !s.tied_embeddings && draw(0, 1) == 0;
    LayOutPlan(&grouped);
    ExpectSound(grouped);
    const auto grouped_again = MemoryPlanFromJson(MemoryPlanToJson(grouped));
    ASSERT_TRUE(grouped_again.ok()) << grouped_again.status();
    EXPECT_EQ(grouped_again->regions, grouped.regions);
    EXPECT_EQ(grouped_again->choices, grouped.choices);
  }
}

TEST(CudaPlan, MoreTokensNeedNoLess) {
  int64_t before = 0;
  for (int64_t length = 128; length <= 65536; length += length < 4096 ? 128 : 4096) {
    const auto plan = MinimumPlan(Llama8bShape(), Bf16(1, length, 32), Gpu(80 * kGiB));
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_GE(plan->device_bytes_total, before) << length;
    before = plan->device_bytes_total;
  }
}

TEST(CudaPlan, SpareMemoryBuysSpeed) {
  const auto roomy = MakePlan(Qwen3Of8b(), Bf16(2, 2048), Gpu(79 * kGiB), {});
  ASSERT_TRUE(roomy.ok()) << roomy.status();
  EXPECT_EQ(roomy->choices.keep_all_layers, 36);
  EXPECT_EQ(roomy->choices.cached_layers, 36);
  const auto small = MakePlan(Qwen3Of8b(), Bf16(2, 2048), Gpu(16 * kGiB), {});
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_LE(small->device_bytes_total, 16 * kGiB);
  EXPECT_LT(small->choices.keep_all_layers, 36);
  ExpectSound(*small);
  // One layer more would not fit.
  MemoryPlan more = *small;
  more.choices.keep_all_layers += 1;
  LayOutPlan(&more);
  EXPECT_GT(more.device_bytes_total, 16 * kGiB);
}

// With heads in groups, layers' inputs, attention's output, the residual's gradient, and keys' and values' gradients
// are there for the whole sequence (8 + 8.1 + 8.1 + 4 KiB a token of an 8B model), and what one call of attention
// needs.
TEST(CudaPlan, LongContextsFitSmallCards) {
  const struct {
    int64_t tokens, device_gib, keep_attention;
  } cases[] = {{65536, 8, 32}, {262144, 24, 20}, {342733, 24, 8}};
  for (const auto& c : cases) {
    SCOPED_TRACE(std::to_string(c.tokens) + " tokens");
    DeviceFacts facts = Gpu(c.device_gib * kGiB);
    facts.host_bytes = 120 * kGiB;  // of 128, what else runs there aside
    const auto plan = MakePlan(Llama8bShape(), Bf16(1, c.tokens, 32), facts, {});
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectSound(*plan);
    EXPECT_TRUE(plan->choices.grouped_attention);
    EXPECT_TRUE(plan->choices.host_attention);
    EXPECT_GE(plan->choices.keep_attention_layers, c.keep_attention);
    EXPECT_LE(plan->device_bytes_total, c.device_gib * kGiB);
    EXPECT_LE(plan->host_bytes_total, facts.host_bytes);
  }
  int64_t bytes[2] = {0, 0};
  for (int64_t i : {0, 1}) {
    const auto plan = MinimumPlan(Llama8bShape(), Bf16(1, 65536 << i, 32), Gpu(80 * kGiB));
    ASSERT_TRUE(plan.ok()) << plan.status();
    bytes[i] = plan->device_bytes_total;
  }
  EXPECT_LE((bytes[1] - bytes[0]) / 65536, 33 * 1024);
  RecordProperty("bytes_a_token", static_cast<int>((bytes[1] - bytes[0]) / 65536));
}

// The longest that fit, in --gtest_output=json as well.
TEST(CudaPlan, TheLongestContextsOfSmallCards) {
  const struct { int64_t device_gib, least; } cases[] = {{8, 102400}, {12, 131072}, {16, 196608}, {24, 342733}};
  for (const auto& c : cases) {
    DeviceFacts facts = Gpu(c.device_gib * kGiB);
    facts.host_bytes = 120 * kGiB;
    const int64_t longest = LongestFittingSequence(Llama8bShape(), Bf16(1, 128, 32), facts, {}, 1'000'000);
    EXPECT_GE(longest, c.least) << c.device_gib << " GiB";
    RecordProperty("longest_in_" + std::to_string(c.device_gib) + "_gib", static_cast<int>(longest));
  }
}

// What is not short of memory computes as ever: all heads of a layer at once.
TEST(CudaPlan, WithRoomHeadsStayTogether) {
  const struct {
    ModelShape shape;
    int64_t batch, tokens, device_gib;
  } cases[] = {{Llama8bShape(), 2, 2048, 79}, {Llama8bShape(), 1, 16384, 79}, {Llama8bShape(), 1, 65536, 79},
               {Qwen3Of8b(), 2, 2048, 79},    {Qwen3Of8b(), 2, 2048, 8},      {Qwen3Of8b(), 1, 4096, 16},
               {SmolLm2Shape(), 8, 1024, 79}};
  for (const auto& c : cases) {
    const auto plan = MakePlan(c.shape, Bf16(c.batch, c.tokens), Gpu(c.device_gib * kGiB), {});
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_FALSE(plan->choices.grouped_attention) << c.shape.family << " " << c.batch << " x " << c.tokens;
    EXPECT_FALSE(plan->choices.host_attention || plan->choices.host_head || plan->choices.host_optimizer);
  }
}

// Both directions of a weight take what one copy in bf16 takes; tokens are quantised a tile at a time.
TEST(CudaPlan, Fp8CountsBothDirectionsOfEveryWeight) {
  TrainShape train = Bf16(2, 2048);
  train.compute = ComputeType::kFP8;
  const auto roomy = MakePlan(Qwen3Of8b(), train, Gpu(79 * kGiB), {});
  ASSERT_TRUE(roomy.ok()) << roomy.status();
  EXPECT_EQ(roomy->choices.cached_layers, 36);
  EXPECT_EQ(roomy->choices.keep_all_layers, 36);
  const auto bytes = [](const MemoryPlan& plan, const std::string& name) {
    for (const PlanRegion& region : plan.regions) {
      if (region.name == name) return region.bytes;
    }
    return int64_t{0};
  };
  const int64_t weights = 36 * Qwen3Of8b().LinearParamsPerLayer();
  EXPECT_NEAR(static_cast<double>(bytes(*roomy, "weights.cache")), 2.0 * static_cast<double>(weights),
              0.002 * static_cast<double>(weights));
  EXPECT_GE(bytes(*roomy, "tile.fp8"), roomy->choices.token_tile_rows * 2 * 12288);
  EXPECT_EQ(bytes(*roomy, "weight.fp8"), 0);
  const auto small = MakePlan(Qwen3Of8b(), train, Gpu(10 * kGiB), {});
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_LT(small->choices.cached_layers, 36);
  EXPECT_GE(bytes(*small, "weight.fp8"), int64_t{2} * 12288 * 4096);
  ExpectSound(*small);
}

TEST(CudaPlan, OnlyBf16WithoutDropoutGoesInGroups) {
  for (const bool fp8 : {false, true}) {
    TrainShape train = Bf16(1, 65536, 32);
    if (fp8) train.compute = ComputeType::kFP8;
    train.lora_dropout = !fp8;
    EXPECT_EQ(ErrorReason(MakePlan(Llama8bShape(), train, Gpu(8 * kGiB), {}).status()), "PLAN_DOES_NOT_FIT");
    const auto plan = MakePlan(Llama8bShape(), train, Gpu(24 * kGiB), {});
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_FALSE(plan->choices.grouped_attention);
  }
}

TEST(CudaPlan, SaysWhatIsShort) {
  const auto plan = MakePlan(Qwen3Of8b(), Bf16(2, 2048), Gpu(4 * kGiB), {});
  EXPECT_EQ(ErrorReason(plan.status()), "PLAN_DOES_NOT_FIT");
  EXPECT_NE(plan.status().message().find("device memory"), std::string::npos) << plan.status();
  DeviceFacts facts = Gpu(80 * kGiB);
  facts.host_bytes = 64 << 20;
  EXPECT_NE(MakePlan(Qwen3Of8b(), Bf16(2, 2048), facts, {}).status().message().find("host memory"), std::string::npos);
}

TEST(CudaPlan, RefusesWhatTheEngineCannotDoThere) {
  const auto reason = [](const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts) {
    return ErrorReason(MakePlan(shape, train, facts, {}).status());
  };
  EXPECT_EQ(reason(Qwen3Of8b(), Bf16(2, 2048), Gpu(80 * kGiB, "sm_75")), "DEVICE_UNSUPPORTED");
  TrainShape train = Bf16(2, 2048);
  train.compute = ComputeType::kF32;
  EXPECT_EQ(reason(Qwen3Of8b(), train, Gpu(80 * kGiB)), "DEVICE_UNSUPPORTED");
  train.compute = ComputeType::kFP8;
  EXPECT_EQ(reason(Qwen3Of8b(), train, Gpu(80 * kGiB, "sm_89")), "DEVICE_UNSUPPORTED");
  EXPECT_EQ(reason(Qwen3Of8b(), train, Gpu(80 * kGiB, "sm_90")), "");
  // Newer is not enough: the library has such products for some generations alone.
  EXPECT_EQ(reason(Qwen3Of8b(), train, Gpu(80 * kGiB, "sm_100")), "DEVICE_UNSUPPORTED");
  ModelShape eighths = Qwen3Of8b();
  eighths.intermediate = 12296;
  EXPECT_EQ(reason(eighths, train, Gpu(80 * kGiB)), "DEVICE_UNSUPPORTED");
  EXPECT_EQ(reason(eighths, Bf16(2, 2048), Gpu(80 * kGiB)), "");
  ModelShape odd = Qwen3Of8b();
  odd.intermediate = 12289;
  EXPECT_EQ(reason(odd, Bf16(2, 2048), Gpu(80 * kGiB)), "DEVICE_UNSUPPORTED");
  EXPECT_EQ(ErrorReason(MakeGeneratePlan(Qwen3Of8b(), Bf16(1, 128), Gpu(80 * kGiB)).status()), "DEVICE_UNSUPPORTED");
}

TEST(CudaPlan, WhoComputesPackedAttentionFollowsFromTheLibrary) {
  const auto who = [](int64_t head_dim, bool deterministic, const std::string& isa, int cudnn) {
    ModelShape shape = SmolLm2Shape();
    shape.head_dim = head_dim;
    TrainShape train = Bf16(1, 512);
    train.deterministic = deterministic;
    DeviceFacts facts = Gpu(80 * kGiB, isa);
    facts.cudnn_version = cudnn;
    const auto plan = MakePlan(shape, train, facts, {});
    EXPECT_TRUE(plan.ok()) << plan.status();
    // It travels, and is said where it is slow.
    const auto again = MemoryPlanFromJson(MemoryPlanToJson(*plan));
    EXPECT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->choices, plan->choices);
    const bool reference = plan->choices.packed_attention == PackedAttention::kReference;
    EXPECT_EQ(PlanWarnings(*plan).size(), reference ? 1u : 0u);
    EXPECT_EQ(DescribeChoices(*plan).find("reference kernels") != std::string::npos, reference);
    return plan->choices.packed_attention;
  };
  EXPECT_EQ(who(128, false, "sm_90", 91400), PackedAttention::kTogether);
  EXPECT_EQ(who(128, true, "sm_90", 91400), PackedAttention::kEach);
  EXPECT_EQ(who(256, false, "sm_90", 91400), PackedAttention::kReference);
  EXPECT_EQ(who(256, true, "sm_90", 91400), PackedAttention::kReference);
  EXPECT_EQ(who(64, false, "sm_86", 91800), PackedAttention::kReference);
  EXPECT_EQ(who(64, false, "sm_86", 0), PackedAttention::kReference) << "not known: nothing newer is counted on";
  EXPECT_EQ(who(64, false, "sm_86", 91801), PackedAttention::kTogether);
  EXPECT_EQ(who(64, true, "sm_86", 91801), PackedAttention::kReference);
  EXPECT_EQ(who(64, true, "sm_100", 91400), PackedAttention::kReference);
  EXPECT_EQ(who(64, true, "sm_100", 91800), PackedAttention::kEach);
  EXPECT_EQ(who(64, true, "sm_120", 91400), PackedAttention::kReference) << "no statistics by rows";
}

// Two bytes a score of the longest document and of a call's heads; where that is too much, our own kernels.
TEST(CudaPlan, DeterministicAttentionGivesWayWhereItsWorkspaceDoesNotFit) {
  TrainShape train = Bf16(1, 32768, 32);
  train.longest_document = 20000;
  train.deterministic = true;
  const auto roomy = MakePlan(Llama8bShape(), train, Gpu(79 * kGiB), {});
  ASSERT_TRUE(roomy.ok()) << roomy.status();
  EXPECT_EQ(roomy->choices.packed_attention, PackedAttention::kEach);
  const kernels::cuda::SdpaShape shape = PlanPackedAttention(*roomy);
  EXPECT_EQ(shape.batch, 1);
  EXPECT_TRUE(shape.deterministic);
  int64_t workspace = 0, index = 0;
  for (const PlanRegion& region : roomy->regions) {
    if (region.name == "attention.backward") workspace = region.bytes;
    if (region.name == "attention.index") index = region.bytes;
  }
  EXPECT_GE(workspace, shape.heads * 20000 * 20000 * 2);
  EXPECT_GE(index, roomy->choices.documents * kernels::cuda::SdpaIndexBytes(shape));
  PlanBudget budget;
  for (const bool tight : {false, true}) {
    budget.device_bytes = tight ? 6400 * kMiB : 12 * kGiB;
    const auto small = MakePlan(Llama8bShape(), train, Gpu(79 * kGiB), budget);
    ASSERT_TRUE(small.ok()) << small.status();
    EXPECT_LE(small->device_bytes_total, budget.device_bytes);
    EXPECT_EQ(small->choices.packed_attention, tight ? PackedAttention::kReference : PackedAttention::kEach);
    ExpectSound(*small);
  }
  EXPECT_NE(PlanWarnings(*MakePlan(Llama8bShape(), train, Gpu(79 * kGiB), budget))[0].find("does not fit"),
            std::string::npos);
}

// What cuda_kernels.md measured, put to work: the same job is predicted to take what its attention takes.
TEST(CudaPlan, ReferenceAttentionIsPriced) {
  DeviceFacts facts = Gpu(79 * kGiB, "sm_86");
  facts.gemm_flops = 7e14;
  const auto old_library = MakePlan(Llama8bShape(), Bf16(1, 16384), facts, {});
  facts.cudnn_version = 91900;
  const auto new_library = MakePlan(Llama8bShape(), Bf16(1, 16384), facts, {});
  ASSERT_TRUE(old_library.ok() && new_library.ok());
  const double attention = CountFlops(*old_library).attention;
  EXPECT_EQ(CountFlops(*new_library).attention, attention);
  // 1.35 TFLOP/s, within a fifth; a second of the rest.
  EXPECT_NEAR(old_library->step_seconds, attention / 1.35e12, 0.2 * attention / 1.35e12);
  EXPECT_LT(new_library->step_seconds, 3);
  // Nothing is worth more than not to do it twice.
  EXPECT_EQ(old_library->choices.keep_all_layers + old_library->choices.keep_attention_layers, 32);
}

// What moves in memory is priced by the measured rate: weights that are dequantised, and the moments.
TEST(CudaPlan, MemoryTrafficIsPriced) {
  DeviceFacts facts = Gpu(79 * kGiB);
  facts.gemm_flops = 7e14;
  facts.copy_bytes_per_second = 5e10;
  facts.memory_bytes_per_second = 4e12;
  DeviceFacts slow = facts;
  slow.memory_bytes_per_second = 1e12;
  PlanBudget tight;
  tight.device_bytes = 8 * kGiB;
  const TrainShape train = Bf16(2, 2048);
  const auto seconds = [&](const DeviceFacts& of, const PlanBudget& budget) {
    const auto plan = MakePlan(Llama8bShape(), train, of, budget);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan.ok() ? plan->step_seconds : 0;
  };
  const auto small = MakePlan(Llama8bShape(), train, facts, tight), large = MakePlan(Llama8bShape(), train, facts, {});
  ASSERT_TRUE(small.ok() && large.ok());
  ASSERT_EQ(large->choices.cached_layers, 32);
  EXPECT_EQ(DequantiseBytes(*large), 0);
  // 218 M weights a layer, 58.7 M of them down's: 2.5 bytes each, twice, and once more, without down's, where the
  // forward is done again; all of it for each token tile.
  const auto uncached = static_cast<double>(32 - small->choices.cached_layers);
  const auto again = static_cast<double>(32 - std::max(small->choices.cached_layers, small->choices.keep_all_layers));
  const double bytes = (2 * uncached * 218103808 + again * (218103808 - 58720256)) * (2.5 + 1.0 / 64);
  EXPECT_GT(again, 0);
  ASSERT_EQ(small->choices.token_tile_rows, 4096);
  EXPECT_DOUBLE_EQ(DequantiseBytes(*small), bytes);
  MemoryPlan tiled = *small;
  tiled.choices.token_tile_rows = 1000;
  EXPECT_DOUBLE_EQ(DequantiseBytes(tiled), 5 * bytes);
  const double params = static_cast<double>(AdapterParams(Llama8bShape(), train));
  EXPECT_NEAR(seconds(slow, {}) - seconds(facts, {}), params * 28 * 0.75e-12, 1e-9);
  // Moments in host memory move at the copies' rate.
  const double moments = small->choices.host_optimizer ? 16 : 0;
  EXPECT_NEAR(seconds(slow, tight) - seconds(facts, tight), (bytes / 0.47 + params * (28 - moments)) * 0.75e-12, 1e-9);
  facts.memory_bytes_per_second = 0;
  EXPECT_DOUBLE_EQ(seconds(facts, tight), seconds(slow, tight)) << "not measured";
}

TEST(CudaPlan, ADamagedPlanIsRefused) {
  const auto plan = MakePlan(Qwen3Of8b(), Bf16(1, 256), Gpu(80 * kGiB), {});
  ASSERT_TRUE(plan.ok());
  MemoryPlan damaged = *plan;
  damaged.regions[3].offset_bytes += kCudaAlignBytes;
  EXPECT_EQ(ErrorReason(MemoryPlanFromJson(MemoryPlanToJson(damaged)).status()), "INVALID_PLAN");
  damaged = *plan;
  damaged.device_arena_bytes -= 1;
  EXPECT_FALSE(MemoryPlanFromJson(MemoryPlanToJson(damaged)).ok());
  for (const auto change :
       {+[](PlanChoices* c) { c->grouped_attention = true; }, +[](PlanChoices* c) { c->host_attention = true; }}) {
    damaged = *plan;
    ASSERT_GT(damaged.choices.keep_all_layers, 0);
    change(&damaged.choices);
    LayOutPlan(&damaged);
    EXPECT_EQ(ErrorReason(MemoryPlanFromJson(MemoryPlanToJson(damaged)).status()), "INVALID_PLAN");
  }
  damaged = *plan;
  damaged.choices.packed_attention = PackedAttention::kEach;  // of deterministic plans alone
  LayOutPlan(&damaged);
  EXPECT_EQ(ErrorReason(MemoryPlanFromJson(MemoryPlanToJson(damaged)).status()), "INVALID_PLAN");
  damaged = *plan;
  damaged.choices.isa = "sm_70";
  EXPECT_FALSE(MemoryPlanFromJson(MemoryPlanToJson(damaged)).ok());
}

}  // namespace
}  // namespace longhaul
