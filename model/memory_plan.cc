#include "model/memory_plan.h"

#include <algorithm>

#include "base/error.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/status_macros.h"
#include "model/cost_model.h"
#include "model/cuda_attention.h"
#include "model/cuda_plan.h"
#include "model/plan_layout.h"
#include "model/plan_search.h"

namespace longhaul {
namespace {

// Tile sizes. Fast: tiles whose operands stay in a core's share of the caches; small: what still feeds a GEMM.
constexpr int64_t kFastTileRows = 256;
constexpr int64_t kMostTileRows = 2048;
constexpr int64_t kSmallTileRows = 64;
constexpr int64_t kFastLossTileBytes = int64_t{64} << 20;
constexpr int64_t kSmallLossTileBytes = int64_t{16} << 20;
constexpr int64_t kLeastLossTileRows = 32;
constexpr int64_t kBlockRows = 128;  // rows that a thread multiplies at once: a tile gives every thread as many

PlanChoices ChooseTiles(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts, bool small) {
  PlanChoices choices;
  choices.isa = facts.isa;
  choices.packed_weights = PacksWeights(train, facts);
  choices.cpu_threads = train.cpu_threads > 0 ? train.cpu_threads : facts.cpu_threads;
  const int64_t n = train.tokens();
  const int64_t fast = std::clamp<int64_t>(RoundUp(choices.cpu_threads, 2) * 64, kFastTileRows, kMostTileRows);
  choices.token_tile_rows = std::min(n, small ? kSmallTileRows : fast);
  const int64_t row_bytes = shape.vocab * (train.compute == ComputeType::kF64 ? 8 : 4);
  const int64_t most = (small ? kSmallLossTileBytes : kFastLossTileBytes) / row_bytes;
  const int64_t even = kBlockRows * choices.cpu_threads;
  const int64_t rows = most >= even ? most / even * even : most / kLeastLossTileRows * kLeastLossTileRows;
  choices.loss_tile_rows = std::min(n, std::max(kLeastLossTileRows, std::min(rows, kMostTileRows)));
  return choices;
}

absl::Status CheckInputs(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts) {
  LH_RETURN_IF_ERROR(ValidateModelShape(shape));
  LH_RETURN_IF_ERROR(ValidateTrainShape(train));
  LH_RETURN_IF_ERROR(ValidateDeviceFacts(facts));
  if (facts.kind == DeviceKind::kCuda) return CheckCudaInputs(shape, train, facts);
  if (train.compute == ComputeType::kFP8) {
    return MakeError(absl::StatusCode::kUnimplemented, "DEVICE_UNSUPPORTED",
                     "compute type fp8 needs a GPU with such products (Hopper, compute capability 9.x); \"" +
                         facts.device_class + "\" is a CPU. Use f32, or bf16 where the CPU has it");
  }
  if (train.compute == ComputeType::kBF16 && !(facts.has_bf16 && DevicePacksWeights(facts))) {
    return MakeError(absl::StatusCode::kUnimplemented, "DEVICE_UNSUPPORTED",
                     "compute type bf16 needs a CPU with AVX512_BF16; \"" + facts.device_class + "\" has \"" +
                         facts.isa + "\". Use f32");
  }
  if (train.cpu_threads > facts.cpu_threads) {
    return InvalidField("cpu_threads", "is " + std::to_string(train.cpu_threads) + "; the device has " +
                                           std::to_string(facts.cpu_threads));
  }
  return absl::OkStatus();
}

MemoryPlan Skeleton(PlanKind kind, const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                    bool small) {
  MemoryPlan plan;
  plan.kind = kind;
  plan.shape = shape;
  plan.train = train;
  plan.choices = ChooseTiles(shape, train, facts, small);
  plan.runtime_host_bytes = RuntimeHostBytes(facts, shape.vocab);
  return plan;
}

absl::Status TooLarge(const TrainShape& train) {
  return MakeError(absl::StatusCode::kResourceExhausted, "PLAN_DOES_NOT_FIT",
                   "a micro-batch of " + FormatCount(train.tokens()) + " tokens of this model needs more than " +
                       FormatBytes(static_cast<int64_t>(kMaxPlanBytes)));
}

// Lays out `plan` with the most keep-all layers, up to `most`, within `available` bytes. REQUIRES: none fits.
void KeepMostLayers(int64_t most, int64_t available, MemoryPlan* plan) {
  const auto fits = [&](int64_t k) {
    plan->choices.keep_all_layers = k;
    LayOutPlan(plan);
    return plan->host_bytes_total <= available;
  };
  // Keeping all saves the recompute slot, so it may fit where one less does not.
  if (most == plan->shape.layers && fits(most)) return;
  fits(MostThatFits(0, std::min(most, plan->shape.layers - 1), fits));
}

int64_t Available(const DeviceFacts& facts, const PlanBudget& budget) {
  return budget.host_bytes > 0 ? budget.host_bytes : facts.host_bytes;
}

DeviceFacts Budgeted(DeviceFacts facts, const PlanBudget& budget) {
  if (budget.host_bytes > 0) facts.host_bytes = budget.host_bytes;
  if (budget.device_bytes > 0) facts.device_bytes = budget.device_bytes;
  return facts;
}

// PLAN_DOES_NOT_FIT with what is short.
absl::Status CheckFits(const MemoryPlan& plan, const DeviceFacts& facts, const PlanBudget& budget) {
  const auto short_of = [](const std::string& what) {
    return MakeError(absl::StatusCode::kResourceExhausted, "PLAN_DOES_NOT_FIT", what);
  };
  const int64_t available = Available(facts, budget);
  if (plan.device == DeviceKind::kCpu) {
    return plan.host_bytes_total <= available ? absl::OkStatus() : short_of(DescribeShortage(plan, available));
  }
  const int64_t device = AvailableDeviceBytes(facts, budget);
  if (plan.device_bytes_total > device) return short_of("device memory: " + DescribeShortage(plan, device));
  if (plan.host_bytes_total <= available) return absl::OkStatus();
  return short_of("host memory: needs " + FormatBytes(plan.host_bytes_total) + ", " + FormatBytes(available) +
                  " are there");
}

}  // namespace

absl::StatusOr<MemoryPlan> MinimumPlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts) {
  LH_RETURN_IF_ERROR(CheckInputs(shape, train, facts));
  if (train.lora_targets == 0) return InvalidField("target_modules", "is empty; a training needs at least one");
  MemoryPlan plan = facts.kind == DeviceKind::kCuda ? MinimumCudaPlan(shape, train, facts)
                                                    : Skeleton(PlanKind::kTrain, shape, train, facts, /*small=*/true);
  if (ApproximateBytes(plan) > kMaxPlanBytes) return TooLarge(train);
  LayOutPlan(&plan);
  plan.step_seconds = PredictStepSeconds(plan, facts);
  return plan;
}

absl::StatusOr<MemoryPlan> MakePlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                                    const PlanBudget& budget) {
  const DeviceFacts budgeted = Budgeted(facts, budget);
  LH_ASSIGN_OR_RETURN(MemoryPlan minimum, MinimumPlan(shape, train, budgeted));
  const int64_t available = Available(facts, budget);
  LH_RETURN_IF_ERROR(CheckFits(minimum, facts, budget));
  if (budget.share == PlanShare::kMinimum) return minimum;
  if (facts.kind == DeviceKind::kCuda) {
    MemoryPlan fastest = MakeCudaPlan(shape, train, budgeted, budget);
    fastest.step_seconds = PredictStepSeconds(fastest, facts);
    return fastest;
  }

  MemoryPlan plan = Skeleton(PlanKind::kTrain, shape, train, facts, /*small=*/false);
  LayOutPlan(&plan);
  if (plan.host_bytes_total > available) plan = minimum;
  KeepMostLayers(budget.share == PlanShare::kWhole ? shape.layers : shape.layers / 2, available, &plan);
  plan.step_seconds = PredictStepSeconds(plan, facts);
  return plan;
}

absl::StatusOr<MemoryPlan> MakeGeneratePlan(const ModelShape& shape, const TrainShape& train,
                                            const DeviceFacts& facts) {
  TrainShape one = train;
  one.batch_size = 1;
  one.accumulation_steps = 1;
  one.lora_dropout = false;
  one.dataset_tokens = 0;
  one.dataset_bytes = 0;
  LH_RETURN_IF_ERROR(CheckInputs(shape, one, facts));
  if (facts.kind == DeviceKind::kCuda) {
    return MakeError(absl::StatusCode::kUnimplemented, "DEVICE_UNSUPPORTED",
                     "device class \"" + facts.device_class + "\" is a GPU, and text is generated on the CPU only");
  }
  MemoryPlan plan = Skeleton(PlanKind::kGenerate, shape, one, facts, /*small=*/false);
  plan.choices.loss_tile_rows = 1;
  if (ApproximateBytes(plan) > kMaxPlanBytes) return TooLarge(one);
  LayOutPlan(&plan);
  plan.disk_bytes = 0;
  return plan;
}

int64_t LongestFittingSequence(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                               const PlanBudget& budget, int64_t limit) {
  const auto fits = [&](int64_t length) {
    TrainShape longer = train;
    longer.sequence_length = length;
    longer.longest_document = 0;
    const absl::StatusOr<MemoryPlan> plan = MinimumPlan(shape, longer, Budgeted(facts, budget));
    return plan.ok() && CheckFits(*plan, facts, budget).ok();
  };
  return MostThatFits(0, limit, fits);
}

std::string DescribeShortage(const MemoryPlan& plan, int64_t available_bytes) {
  const int64_t needed = plan.device == DeviceKind::kCuda ? plan.device_bytes_total : plan.host_bytes_total;
  std::string text = "needs " + FormatBytes(needed) + ", " + FormatBytes(available_bytes) + " are there: ";
  std::vector<PlanPart> parts = plan.parts;
  std::stable_sort(parts.begin(), parts.end(), [](const PlanPart& a, const PlanPart& b) { return a.bytes > b.bytes; });
  for (size_t i = 0; i < parts.size(); ++i) {
    text += (i > 0 ? ", " : "") + parts[i].name + " " + FormatBytes(parts[i].bytes);
  }
  return text;
}

namespace {

const char* PackedWords(PackedAttention packed) {
  switch (packed) {
    case PackedAttention::kTogether:
      return "";
    case PackedAttention::kEach:
      return "attention a document at a time, ";
    case PackedAttention::kReference:
      return "attention of packed documents by reference kernels, ";
  }
  return "";
}

}  // namespace

std::vector<std::string> PlanWarnings(const MemoryPlan& plan) {
  std::string attention = ReferenceAttentionWarning(plan);
  if (attention.empty()) return {};
  return {std::move(attention)};
}

std::string DescribeChoices(const MemoryPlan& plan) {
  const PlanChoices& c = plan.choices;
  if (plan.device == DeviceKind::kCuda) {
    return "keeps " + std::to_string(c.keep_all_layers) + " of " + std::to_string(plan.shape.layers) +
           " layers, attention of " + std::to_string(c.keep_attention_layers) + ", " + std::to_string(c.cached_layers) +
           (plan.train.compute == ComputeType::kFP8 ? " in fp8, " : " in bf16, ") + PackedWords(c.packed_attention) +
           (c.attention_calls > 1 ? std::to_string(c.attention_calls) + " attention calls, " : "") +
           (c.host_checkpoints ? "checkpoints on the host, " : "") +
           (c.host_embedding ? "embedding on the host, " : "") + (c.grouped_attention ? "heads in groups, " : "") +
           (c.host_attention ? "attention on the host, " : "") + (c.host_head ? "head on the host, " : "") +
           (c.host_optimizer ? "moments on the host, " : "") + "token tiles of " + std::to_string(c.token_tile_rows) +
           ", loss tiles of " + std::to_string(c.loss_tile_rows) + ", " + c.isa;
  }
  return "keeps " + std::to_string(c.keep_all_layers) + " of " + std::to_string(plan.shape.layers) +
         " layers, token tiles of " + std::to_string(c.token_tile_rows) + ", loss tiles of " +
         std::to_string(c.loss_tile_rows) + ", " + std::to_string(c.cpu_threads) + " threads, " +
         (c.packed_weights ? "packed " : "plain ") + ComputeTypeName(plan.train.compute) + " weights";
}

int64_t CheckpointBytes(const ModelShape& shape, int64_t tokens) { return tokens * shape.layers * shape.hidden * 2; }

std::string PlanSignature(const MemoryPlan& plan, const std::string& gemm_library) {
  const PlanChoices& c = plan.choices;
  std::string text = "plan " + std::to_string(kPlanBits);
  text +=
      std::string("; compute ") + ComputeTypeName(plan.train.compute) + "; base " + BaseWeightsName(plan.train.base);
  text += "; token tile " + std::to_string(c.token_tile_rows) + "; loss tile " + std::to_string(c.loss_tile_rows);
  text += "; threads " + std::to_string(c.cpu_threads) + "; isa " + c.isa;
  text += std::string("; weights ") + (c.packed_weights ? "packed" : "plain") + "; gemm " + gemm_library;
  // Other products, of other shapes.
  if (c.grouped_attention) text += "; heads in " + std::to_string(c.attention_calls) + " groups";
  return Sha256Hex(text);
}

}  // namespace longhaul
