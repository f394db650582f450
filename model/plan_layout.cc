#include "model/plan_layout.h"

#include <algorithm>
#include <bit>

#include "model/cuda_layout.h"
#include "model/plan_parts.h"
#include "model/region_builder.h"

namespace longhaul {
namespace {

int64_t MaxLinearBytesF32(const ModelShape& shape) {
  int64_t most = shape.vocab * shape.hidden;
  for (int i = 0; i < kFusedLinears; ++i) {
    const FusedLinear linear = static_cast<FusedLinear>(i);
    most = std::max(most, FusedOut(shape, linear) * FusedIn(shape, linear));
  }
  return most * 4;
}

void AddWeights(const MemoryPlan& plan, RegionBuilder* b) {
  const ModelShape& s = plan.shape;
  const int64_t elt = plan.element_bytes();
  int64_t layer = 0;
  for (int i = 0; i < kFusedLinears; ++i) {
    const FusedLinear linear = static_cast<FusedLinear>(i);
    layer +=
        FrozenWeightBytes(plan.train, plan.choices.packed_weights, FusedOut(s, linear), FusedIn(s, linear), plan.kind)
            .total();
  }
  b->Add("weights.layers", s.layers * layer, kAlways);
  b->Add("weights.head",
         FrozenWeightBytes(plan.train, plan.choices.packed_weights, s.vocab, s.hidden, plan.kind).total(), kAlways);
  if (!SharesHeadWithEmbedding(plan)) {
    b->Add("weights.embedding", s.vocab * s.hidden * EmbeddingElementBytes(plan.train), kAlways);
  }
  b->Add("weights.norms", (s.hidden * (2 * s.layers + 1) + (s.qk_norm ? 2 * s.head_dim * s.layers : 0)) * elt, kAlways);
  b->Add("rope", plan.train.longest() * s.head_dim * elt, kAlways);
  // Plain f32 weights are read where they stay.
  if (plan.choices.packed_weights || plan.train.compute == ComputeType::kF64) {
    b->Add("load.staging", MaxLinearBytesF32(s), kPhaseLoad);
  }
}

// What layers that do not keep everything share: written by the forward pass, again by the recompute.
void AddSlot(const MemoryPlan& plan, RegionBuilder* b) {
  const int64_t n = plan.train.tokens();
  for (int i = 0; i < kFirstMlpAct; ++i) {
    const Act act = static_cast<Act>(i);
    uint32_t live = kPhaseForwardAttention | kBackward;
    if (act == Act::kXMid || act == Act::kRstd2) live |= kPhaseForwardMlp;
    b->Add(std::string("slot.") + ActName(act), ActBytes(plan.shape, plan.train, act, n), live);
  }
}

void AddHostTiles(const MemoryPlan& plan, RegionBuilder* b) {
  const ModelShape& s = plan.shape;
  const TrainShape& t = plan.train;
  const int64_t elt = plan.element_bytes();
  const int64_t rows = plan.choices.token_tile_rows;
  b->Add("tile.h", rows * s.hidden * elt, kForward | kBackward);
  b->Add("tile.act", rows * s.intermediate * elt, kPhaseForwardMlp | kPhaseBackwardMlp);
  if (plan.choices.keep_all_layers < s.layers) {
    for (Act act : {Act::kGateUp, Act::kUGateUp, Act::kUDown}) {
      b->Add(std::string("tile.") + ActName(act), ActBytes(s, t, act, rows), kPhaseForwardMlp | kPhaseBackwardMlp);
    }
  }
  int64_t widest = 0;
  for (int i = 0; i < kFusedLinears; ++i) {
    const FusedLinear linear = static_cast<FusedLinear>(i);
    widest = std::max({widest, FusedIn(s, linear), FusedOut(s, linear)});
  }
  b->Add("gemm.scratch", PlanGemmScratchBytes(t, rows, widest, widest), kForward | kBackward);
  b->Add("gemm.factors", PlanFactorBytes(s, t), kForward | kBackward);
  if (t.lora_dropout)
    b->Add("tile.dropout", rows * std::max({s.hidden, s.q_dim(), s.intermediate}) * elt, kForward | kBackward);
  b->Add("attention.forward", PlanAttentionScratchBytes(s, t, plan.choices.cpu_threads, false),
         kPhaseForwardAttention | kPhaseRecompute);
}

void AddBackward(const MemoryPlan& plan, RegionBuilder* b) {
  const ModelShape& s = plan.shape;
  const TrainShape& t = plan.train;
  const int64_t elt = plan.element_bytes();
  const int64_t n = t.tokens();
  const int64_t rows = plan.choices.token_tile_rows;
  int64_t most_targets = 0;
  for (int i = 0; i < kFusedLinears; ++i) {
    most_targets = std::max(most_targets, TargetsInGroup(t.lora_targets, static_cast<FusedLinear>(i)));
  }
  b->Add("tile.d_act", rows * s.intermediate * elt, kPhaseBackwardMlp);
  b->Add("tile.d_h", rows * s.hidden * elt, kPhaseBackwardMlp | kPhaseBackwardAttention);
  b->Add("tile.v", rows * most_targets * t.lora_rank * elt, kPhaseBackwardMlp | kPhaseBackwardAttention);
  b->Add("d_x", n * s.hidden * elt, kPhaseLoss | kBackward);
  b->Add("d_o", n * s.q_dim() * elt, kPhaseBackwardAttention);
  b->Add("d_qkv", n * (s.q_dim() + 2 * s.kv_dim()) * elt, kPhaseBackwardAttention);
  b->Add("attention.backward", PlanAttentionScratchBytes(s, t, plan.choices.cpu_threads, true),
         kPhaseBackwardAttention);
}

void AddHostLoss(const MemoryPlan& plan, RegionBuilder* b) {
  const ModelShape& s = plan.shape;
  const int64_t elt = plan.element_bytes();
  const int64_t rows = plan.choices.loss_tile_rows;
  b->Add("loss.rows", plan.train.tokens() * 4, kPhaseLoss);
  b->Add("loss.labels", plan.train.tokens() * 4, kPhaseLoss);
  b->Add("loss.hidden", rows * s.hidden * elt, kPhaseLoss);
  b->Add("loss.rstd", rows * elt, kPhaseLoss);
  b->Add("loss.logits", rows * s.vocab * elt, kPhaseLoss);
  b->Add("loss.scratch", PlanGemmScratchBytes(plan.train, rows, s.vocab, s.hidden), kPhaseLoss);
}

void FillHostParts(MemoryPlan* plan) {
  FillArenaParts(PlanSpace::kHost, plan->arena_bytes, plan);
  if (const int64_t dataset = DatasetHostBytes(plan->train); dataset > 0) plan->parts.push_back({"dataset", dataset});
  plan->parts.push_back({"runtime", plan->runtime_host_bytes});
  plan->host_bytes_total = 0;
  for (const PlanPart& part : plan->parts) plan->host_bytes_total += part.bytes;
}

}  // namespace

int64_t FusedOut(const ModelShape& s, FusedLinear linear) {
  switch (linear) {
    case FusedLinear::kQkv:
      return s.q_dim() + 2 * s.kv_dim();
    case FusedLinear::kGateUp:
      return 2 * s.intermediate;
    default:
      return s.hidden;
  }
}

int64_t FusedIn(const ModelShape& s, FusedLinear linear) {
  switch (linear) {
    case FusedLinear::kO:
      return s.q_dim();
    case FusedLinear::kDown:
      return s.intermediate;
    default:
      return s.hidden;
  }
}

bool PacksWeights(const TrainShape& train, const DeviceFacts& facts) {
  return train.compute != ComputeType::kF64 && DevicePacksWeights(facts);
}

int64_t WeightElementBytes(const TrainShape& train, bool packed) {
  if (train.compute == ComputeType::kF64) return 8;
  return packed && train.compute == ComputeType::kBF16 ? 2 : 4;
}

FrozenBytes FrozenWeightBytes(const TrainShape& train, bool packed, int64_t out, int64_t in, PlanKind kind) {
  const int64_t elt = WeightElementBytes(train, packed);
  if (!packed) return {RoundUp(out * in * elt, kPlanAlignBytes), 0};
  const int64_t bytes = RoundUp(out, 64) * RoundUp(in, 64) * elt;
  return {bytes, kind == PlanKind::kTrain ? bytes : 0};
}

bool SharesHeadWithEmbedding(const MemoryPlan& plan) {
  return plan.shape.tied_embeddings && !plan.choices.packed_weights;
}

int64_t EmbeddingElementBytes(const TrainShape& train) {
  switch (train.compute) {
    case ComputeType::kF64:
      return 8;
    case ComputeType::kBF16:
      return 2;
    default:
      return 4;
  }
}

int64_t TargetsInGroup(uint32_t targets, FusedLinear group) {
  constexpr uint32_t kGroups[kFusedLinears] = {0b0000111u, 0b0001000u, 0b0110000u, 0b1000000u};
  return std::popcount(targets & kGroups[static_cast<int>(group)]);
}

int64_t ActColumns(const ModelShape& s, const TrainShape& t, Act act) {
  const auto lora = [&](FusedLinear group) { return t.lora_rank * TargetsInGroup(t.lora_targets, group); };
  switch (act) {
    case Act::kRstd1:
    case Act::kRstd2:
      return 1;
    case Act::kQkv:
      return s.q_dim() + 2 * s.kv_dim();
    case Act::kQkRaw:
      return s.qk_norm ? s.q_dim() + s.kv_dim() : 0;
    case Act::kRstdQ:
      return s.qk_norm ? s.heads : 0;
    case Act::kRstdK:
      return s.qk_norm ? s.kv_heads : 0;
    case Act::kO:
      return s.q_dim();
    case Act::kLse:
      return s.heads;
    case Act::kXMid:
      return s.hidden;
    case Act::kUQkv:
      return lora(FusedLinear::kQkv);
    case Act::kUO:
      return lora(FusedLinear::kO);
    case Act::kGateUp:
      return 2 * s.intermediate;
    case Act::kUGateUp:
      return lora(FusedLinear::kGateUp);
    case Act::kUDown:
      return lora(FusedLinear::kDown);
  }
  return 0;
}

RowStrides StridesOf(const MemoryPlan& plan) {
  if (plan.device == DeviceKind::kCuda) return CudaStrides(plan);
  const ModelShape& s = plan.shape;
  return {.h = s.hidden, .act = s.intermediate, .d_x = s.hidden, .d_qkv = FusedOut(s, FusedLinear::kQkv)};
}

ActField FieldOf(const MemoryPlan& plan, Act act) {
  if (plan.device == DeviceKind::kCuda) return CudaField(plan, act);
  const int64_t cols = ActColumns(plan.shape, plan.train, act);
  return {.cols = cols, .stride = cols};
}

int64_t FieldBytes(const MemoryPlan& plan, Act act, int64_t rows) {
  if (plan.device == DeviceKind::kCuda) return CudaFieldBytes(plan, act, rows);
  return ActBytes(plan.shape, plan.train, act, rows);
}

int64_t KeptBytes(const MemoryPlan& plan) {
  int64_t bytes = 0;
  for (int i = 0; i < kActs; ++i) bytes += FieldBytes(plan, static_cast<Act>(i), PlannedRows(plan));
  return bytes;
}

int64_t KeptAttentionBytes(const MemoryPlan& plan) {
  const int64_t rows = PlannedRows(plan);
  return FieldBytes(plan, Act::kO, rows) + FieldBytes(plan, Act::kLse, rows);
}

int64_t StreamCount(const MemoryPlan& plan) {
  if (plan.kind == PlanKind::kGenerate) return 2;
  if (!plan.choices.host_checkpoints) return plan.shape.layers + 1;
  return plan.choices.grouped_attention ? 1 : std::min(kStreamSlots, plan.shape.layers + 1);
}

int64_t StreamBytes(const MemoryPlan& plan) {
  if (plan.device == DeviceKind::kCuda) return RoundUp(PlannedRows(plan) * plan.shape.hidden * 2, kCudaAlignBytes);
  return RoundUp(plan.train.tokens() * plan.shape.hidden * plan.element_bytes(), kPlanAlignBytes);
}

int64_t PlannedRows(const MemoryPlan& plan) {
  return plan.device == DeviceKind::kCuda ? RoundUp(plan.train.tokens(), kCudaRowUnit) : plan.train.tokens();
}

int64_t LossRows(const MemoryPlan& plan) {
  if (plan.device == DeviceKind::kCuda) return std::min(PlannedRows(plan), kCudaLossRows);
  return plan.choices.loss_tile_rows;
}

const char* ActName(Act act) {
  constexpr const char* kNames[kActs] = {"rstd1", "qkv",   "qk_raw", "rstd_q", "rstd_k",  "o",         "lse",
                                         "x_mid", "u_qkv", "u_o",    "rstd2",  "gate_up", "u_gate_up", "u_down"};
  return kNames[static_cast<int>(act)];
}

int64_t ActBytes(const ModelShape& s, const TrainShape& t, Act act, int64_t rows) {
  const int64_t elt = t.compute == ComputeType::kF64 ? 8 : 4;
  return RoundUp(rows * ActColumns(s, t, act) * elt, kPlanAlignBytes);
}

int64_t KeptLayerBytes(const ModelShape& shape, const TrainShape& train) {
  int64_t bytes = 0;
  for (int i = 0; i < kActs; ++i) bytes += ActBytes(shape, train, static_cast<Act>(i), train.tokens());
  return bytes;
}

int64_t PlanGemmScratchBytes(const TrainShape& train, int64_t rows, int64_t out, int64_t in) {
  constexpr int64_t kRowGranule = 64;  // rows are rounded to bf16 in blocks of so many
  return train.compute == ComputeType::kBF16 ? RoundUp(rows, kRowGranule) * std::max(out, in) * 2 : 0;
}

int64_t PlanFactorBytes(const ModelShape& shape, const TrainShape& train) {
  if (train.compute != ComputeType::kBF16) return 0;
  int64_t most = 0;
  for (int i = 0; i < kFusedLinears; ++i) {
    int64_t columns = 0;
    for (int target = 0; target < kLoraTargets; ++target) {
      const uint32_t bit = train.lora_targets & (1u << target);
      if (TargetsInGroup(bit, static_cast<FusedLinear>(i)) == 0) continue;
      columns +=
          LoraTargetIn(shape, static_cast<LoraTarget>(target)) + LoraTargetOut(shape, static_cast<LoraTarget>(target));
    }
    most = std::max(most, columns * train.lora_rank * 2);
  }
  return most;
}

int64_t PlanAttentionScratchBytes(const ModelShape&, const TrainShape& t, int threads, bool backward) {
  const int64_t elt = t.compute == ComputeType::kF64 ? 8 : 4;
  constexpr int64_t kQueryBlock = 128;
  // One block of scores a thread; in the backward pass also one of their gradients.
  return threads * (backward ? 2 : 1) * std::min(kQueryBlock, t.longest()) * RoundUp(t.longest(), 16) * elt;
}

int64_t TrainingDiskBytes(const TrainShape& train, int64_t adapter_bytes) {
  constexpr int64_t kLogAndStateBytes = int64_t{17} << 20;
  return train.dataset_bytes + 3 * 3 * adapter_bytes + adapter_bytes + kLogAndStateBytes;
}

void LayOutPlan(MemoryPlan* plan) {
  if (plan->device == DeviceKind::kCuda) return LayOutCudaPlan(plan);
  const ModelShape& s = plan->shape;
  const TrainShape& t = plan->train;
  const int64_t elt = plan->element_bytes();
  const int64_t adapter = AdapterParams(s, t) * elt;
  RegionBuilder b(PlanSpace::kHost, kPlanAlignBytes);
  AddWeights(*plan, &b);
  b.Add("adapter.master", adapter, kAlways);
  AddHostTiles(*plan, &b);
  if (plan->choices.keep_all_layers < s.layers) AddSlot(*plan, &b);
  if (plan->kind == PlanKind::kTrain) {
    b.Add("adapter.grad", adapter, kAlways);
    b.Add("adapter.m1", adapter, kAlways);
    b.Add("adapter.m2", adapter, kAlways);
    b.Add("stream", (s.layers + 1) * RoundUp(t.tokens() * s.hidden * elt, kPlanAlignBytes), kStep);
    b.Add("kept", plan->choices.keep_all_layers * KeptLayerBytes(s, t), kStep);
    AddBackward(*plan, &b);
    AddHostLoss(*plan, &b);
  } else {
    b.Add("stream", 2 * RoundUp(t.tokens() * s.hidden * elt, kPlanAlignBytes), kForward | kPhaseLoss);
    b.Add("kv_cache", s.layers * t.tokens() * 2 * s.kv_dim() * elt, kAlways);
    b.Add("scores", t.tokens() * (s.heads / s.kv_heads) * elt, kPhaseForwardAttention);
    AddHostLoss(*plan, &b);
  }
  plan->regions = b.Pack(&plan->arena_bytes);
  FillHostParts(plan);
  plan->disk_bytes = TrainingDiskBytes(t, adapter);
}

double ApproximateBytes(const MemoryPlan& plan) {
  const ModelShape& s = plan.shape;
  const double n = static_cast<double>(plan.train.tokens()) + static_cast<double>(plan.choices.token_tile_rows);
  double columns = 0;
  for (int i = 0; i < kActs; ++i) columns += static_cast<double>(ActColumns(s, plan.train, static_cast<Act>(i)));
  const double per_layer =
      n * (columns + static_cast<double>(s.hidden)) + 16.0 * static_cast<double>(s.LinearParamsPerLayer());
  const double fixed =
      n * (columns + 16.0 * static_cast<double>(s.hidden)) +
      static_cast<double>(plan.choices.loss_tile_rows) * static_cast<double>(s.vocab) +
      6.0 * static_cast<double>(s.vocab) * static_cast<double>(s.hidden) +
      4.0 * static_cast<double>(AdapterParams(s, plan.train)) +
      static_cast<double>(plan.choices.cpu_threads) * 1024.0 * static_cast<double>(plan.train.longest());
  return 8.0 * (per_layer * static_cast<double>(s.layers) + fixed);
}

}  // namespace longhaul
