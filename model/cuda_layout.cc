#include "model/cuda_layout.h"

#include <algorithm>
#include <charconv>

#include "model/plan_parts.h"
namespace longhaul {
namespace {

using kernels::cuda::LoraFold;

// The phases of a layer's two halves.
constexpr uint32_t kAttention = kPhaseForwardAttention | kPhaseRecompute | kPhaseBackwardAttention;
constexpr uint32_t kMlp = kPhaseForwardMlp | kPhaseBackwardMlp;

// With heads in groups: all of q, k and v's weight; or o's, and behind it the rows of a call.
int64_t AttentionWeightBytes(const MemoryPlan& plan) {
  return std::max(PlanFold(plan.shape, plan.train, FusedLinear::kQkv).weight_bytes(),
                  GroupWeightOffset(plan) + PlanGroupFold(plan).weight_bytes());
}

template <typename BytesOf>
int64_t MostOfLinears(const BytesOf& bytes_of) {
  int64_t most = 0;
  for (int i = 0; i < kFusedLinears; ++i) most = std::max(most, bytes_of(static_cast<FusedLinear>(i)));
  return most;
}

// Where a linear that is not cached is dequantised to, for each use; in FP8 W alone, from which its operands are made
// there and, for the layers that are cached, once.
void AddWeightBuffers(const MemoryPlan& plan, RegionBuilder* b) {
  const bool uses = plan.choices.cached_layers < plan.shape.layers;
  if (!ComputesInFp8(plan)) {
    const auto bytes = [&](FusedLinear l) { return PlanFold(plan.shape, plan.train, l).weight_bytes(); };
    // With heads in groups: the largest are the MLP's, and while attention has its buffers they need not be there.
    const bool grouped = plan.choices.grouped_attention;
    if (uses) b->Add("weight.buffer", MostOfLinears(bytes), grouped ? kMlp : kForward | kBackward);
    if (grouped) b->Add("weight.attention", AttentionWeightBytes(plan), kAttention);
    return;
  }
  const auto fp8 = [&](FusedLinear l) { return PlanFp8Linear(plan.shape, plan.train, l); };
  b->Add("weight.buffer", MostOfLinears([&](FusedLinear l) { return fp8(l).source_bytes(); }),
         kPhaseLoad | (uses ? kForward | kBackward : 0));
  if (uses) {
    b->Add("weight.fp8", MostOfLinears([&](FusedLinear l) { return fp8(l).one_way_bytes(); }), kForward | kBackward);
  }
  int64_t adapters = 0;
  for (int i = 0; i < kFusedLinears; ++i) adapters += fp8(static_cast<FusedLinear>(i)).adapter_bytes();
  b->Add("weights.adapter", plan.shape.layers * adapters, kAlways);
}

void AddWeights(const MemoryPlan& plan, RegionBuilder* b, RegionBuilder* pinned) {
  const ModelShape& s = plan.shape;
  int64_t quantised = 0, largest = 0, most_blocks = 0;
  for (int i = 0; i < kFusedLinears; ++i) {
    const FusedLinear linear = static_cast<FusedLinear>(i);
    const int64_t bytes = Nf4LinearBytes(s, linear);
    quantised += bytes;
    largest = std::max(largest, bytes);
    const FusedParts parts = PartsOf(s, linear);
    for (int p = 0; p < parts.count; ++p) {
      most_blocks = std::max(most_blocks, RoundUp(parts.parts[p].out * FusedIn(s, linear), kNf4Block) / kNf4Block);
    }
  }
  const int64_t cached = plan.choices.cached_layers;
  b->Add("weights.nf4", (s.layers - cached) * quantised, kAlways);
  b->Add("weights.cache", cached * CachedLayerBytes(s, plan.train), kAlways);
  b->Add("weights.head", s.vocab * s.hidden * 2, plan.choices.host_head ? kPhaseLoss : kAlways);
  if (plan.choices.host_head) pinned->Add("weights.head.host", s.vocab * s.hidden * 2, kAlways);
  if (!s.tied_embeddings) {
    (plan.choices.host_embedding ? pinned : b)->Add("weights.embedding", s.vocab * s.hidden * 2, kAlways);
  }
  b->Add("weights.norms", (s.hidden * (2 * s.layers + 1) + (s.qk_norm ? 2 * s.head_dim * s.layers : 0)) * 4, kAlways);
  b->Add("rope", plan.train.longest() * s.head_dim * 4, kAlways);
  AddWeightBuffers(plan, b);
  // A linear's values on their way: f32 rows, the scales of the largest part, its 4-bit form where only bf16 stays.
  const int64_t widest = std::max({s.hidden, s.q_dim(), s.intermediate});
  b->Add("load.rows", std::max(kCudaLoadRowsBytes, kNf4Block * widest * 4), kPhaseLoad);
  b->Add("load.absmax", most_blocks * 4, kPhaseLoad);
  if (cached > 0 && plan.train.base == BaseWeights::kNf4) b->Add("load.nf4", largest, kPhaseLoad);
}

// With heads in groups: what is there for the whole sequence, for one call of it, and for a tile.
void AddGroupedAttention(const MemoryPlan& plan, RegionBuilder* b) {
  const ModelShape& s = plan.shape;
  const PlanChoices& c = plan.choices;
  const int64_t n = PlannedRows(plan), rows = c.token_tile_rows;
  const HeadGroups group = HeadGroupsOf(plan);
  // Attention's output, of which the backward pass makes q's gradient in place, call by call.
  if (c.host_attention || c.keep_attention_layers < s.layers) {
    b->Add("slot.o", CudaFieldBytes(plan, Act::kO, n), kForward | kBackward);
    b->Add("slot.lse", CudaFieldBytes(plan, Act::kLse, n), kForward | kBackward);
  }
  b->Add("slot.u_qkv", CudaFieldBytes(plan, Act::kUQkv, n), kAttention);
  b->Add("group.q", n * group.q_cols * 2, kAttention);
  b->Add("group.k", n * group.kv_cols * 2, kAttention);
  b->Add("group.v", n * group.kv_cols * 2, kAttention);
  if (s.qk_norm) {
    b->Add("group.raw", n * (group.q_cols + group.kv_cols) * 2, kAttention);
    b->Add("group.rstd_q", n * group.heads * 4, kAttention);
    b->Add("group.rstd_k", n * group.kv_heads * 4, kAttention);
  }
  b->Add("group.d_o", n * group.call_cols() * 2, kPhaseBackwardAttention);
  b->Add("group.d_k", n * group.kv_cols * 2, kPhaseBackwardAttention);
  b->Add("group.d_v", n * group.kv_cols * 2, kPhaseBackwardAttention);
  b->Add("d_kv", n * 2 * s.kv_dim() * 2, kPhaseBackwardAttention);
  b->Add("group.tile", rows * group.cols() * 2, kAttention);
  b->Add("tile.d_qkv", rows * CudaStrides(plan).d_qkv * 2, kPhaseBackwardAttention);
  b->Add("tile.rstd1", CudaFieldBytes(plan, Act::kRstd1, rows), kPhaseBackwardAttention);
  for (Act act : {Act::kXMid, Act::kRstd2, Act::kUO}) {
    b->Add(std::string("tile.") + ActName(act), CudaFieldBytes(plan, act, rows), kMlp);
  }
}

void AddAttentionHalf(const MemoryPlan& plan, RegionBuilder* b) {
  if (plan.choices.grouped_attention) return AddGroupedAttention(plan, b);
  const int64_t n = PlannedRows(plan);
  if (plan.choices.keep_all_layers == plan.shape.layers) return;
  for (int i = 0; i < kFirstMlpAct; ++i) {
    const Act act = static_cast<Act>(i);
    uint32_t live = kPhaseForwardAttention | kBackward;
    // What the MLP half starts from is not looked at again below it.
    if (act == Act::kXMid || act == Act::kRstd2) live = kForward | kPhaseRecompute | kPhaseBackwardMlp;
    b->Add(std::string("slot.") + ActName(act), CudaFieldBytes(plan, act, n), live);
  }
}

void AddTiles(const MemoryPlan& plan, RegionBuilder* b) {
  const ModelShape& s = plan.shape;
  const RowStrides strides = CudaStrides(plan);
  const int64_t rows = plan.choices.token_tile_rows, n = PlannedRows(plan);
  b->Add("tile.h", rows * strides.h * 2, kForward | kBackward);
  b->Add("tile.act", rows * strides.act * 2, kPhaseForwardMlp | kPhaseBackwardMlp);
  if (plan.choices.keep_all_layers < s.layers) {
    for (Act act : {Act::kGateUp, Act::kUGateUp, Act::kUDown}) {
      b->Add(std::string("tile.") + ActName(act), CudaFieldBytes(plan, act, rows),
             kPhaseForwardMlp | kPhaseBackwardMlp);
    }
  }
  b->Add("tile.d_act", rows * s.intermediate * 2, kPhaseBackwardMlp);
  b->Add("tile.d_h", rows * s.hidden * 2, kPhaseBackwardMlp | kPhaseBackwardAttention);
  b->Add("d_x", n * strides.d_x * 2, kPhaseLoss | kBackward);
  if (!plan.choices.grouped_attention) {
    b->Add("d_o", n * s.q_dim() * 2, kPhaseBackwardAttention);
    b->Add("d_qkv", n * strides.d_qkv * 2, kPhaseBackwardAttention);
    b->Add("attention.kv", 4 * n * s.kv_dim() / plan.choices.attention_calls * 2, kAttention);
  }
  b->Add("gemm.workspace", kCudaGemmWorkspaceBytes, kForward | kBackward);
  if (plan.train.lora_dropout) {
    b->Add("tile.dropout", rows * std::max({s.hidden, s.q_dim(), s.intermediate}) * 2, kForward | kBackward);
  }
  if (ComputesInFp8(plan)) {
    // The widest operand of a product: an input, or the gradient of an output.
    const int64_t widest = MostOfLinears([&](FusedLinear l) { return std::max(FusedIn(s, l), FusedOut(s, l)); });
    b->Add("tile.fp8", kernels::cuda::Fp8RowsBytes(rows, widest), kForward | kBackward);
  }

  const kernels::cuda::SdpaDevice device = PlanSdpaDevice(plan);
  const kernels::cuda::SdpaShape packed = PlanPackedAttention(plan);
  const bool reference = plan.choices.packed_attention == PackedAttention::kReference;
  const auto most = [&](auto bytes_of, int64_t ours) {
    const int64_t bytes = reference ? ours : bytes_of(packed, device);
    return HasDenseAttention(plan) ? std::max(bytes, bytes_of(PlanDenseAttention(plan), device)) : bytes;
  };
  b->Add("attention.forward", most(kernels::cuda::SdpaForwardWorkspaceBytes, 0),
         kPhaseForwardAttention | kPhaseRecompute);
  b->Add("attention.backward",
         most(kernels::cuda::SdpaBackwardWorkspaceBytes, kernels::cuda::SdpaReferenceWorkspaceBytes(packed, device)),
         kPhaseBackwardAttention);
  b->Add("attention.index", PlanAttentionIndexBytes(plan), kStep);
}

void AddAdapter(const MemoryPlan& plan, RegionBuilder* device, RegionBuilder* pinned) {
  const int64_t bytes = AdapterParams(plan.shape, plan.train) * 4;
  const bool away = plan.choices.host_optimizer;
  device->Add("adapter.master", bytes, kAlways);
  device->Add("adapter.grad", bytes, kAlways);
  for (const char* moment : {"adapter.m1", "adapter.m2"}) (away ? pinned : device)->Add(moment, bytes, kAlways);
  // What is on the device, to and from files: masters, moments.
  pinned->Add("adapter.host", (away ? 1 : 3) * RoundUp(bytes, kCudaAlignBytes), kAlways);
}

void AddBatch(const MemoryPlan& plan, RegionBuilder* device, RegionBuilder* pinned) {
  const int64_t n = PlannedRows(plan);
  device->Add("batch.ids", n * 4, kAlways);
  device->Add("batch.positions", n * 4, kAlways);
  device->Add("batch.offsets", (plan.choices.documents + 1) * 8, kAlways);
  device->Add("scalars", kCudaScalarBytes, kAlways);
  pinned->Add("scalars.host", kCudaScalarBytes, kAlways);
  pinned->Add("loss.numbers.host", kStepSlots * plan.train.accumulation_steps * kCudaMicroBatchBytes, kAlways);
  // A batch is written while the one before leaves.
  for (const char* name : {"batch.ids.host", "batch.positions.host", "loss.rows.host", "loss.labels.host"}) {
    pinned->Add(name, kStepSlots * n * 4, kAlways);
  }
  pinned->Add("batch.offsets.host", kStepSlots * (plan.choices.documents + 1) * 8, kAlways);
}

void AddLoss(const MemoryPlan& plan, RegionBuilder* b) {
  const int64_t n = PlannedRows(plan), rows = LossRows(plan);
  b->Add("loss.rows", n * 4, kAlways);
  b->Add("loss.labels", n * 4, kAlways);
  // Of each row the hidden state in bf16, then its gradient in f32 over it.
  b->Add("loss.hidden", rows * plan.shape.hidden * 4, kPhaseLoss);
  b->Add("loss.rstd", rows * 4, kPhaseLoss);
  b->Add("loss.workspace", kernels::cuda::CceWorkspace(PlanLoss(plan, rows), kCudaGemmWorkspaceBytes).bytes,
         kPhaseLoss);
}

void FillParts(MemoryPlan* plan) {
  FillArenaParts(PlanSpace::kDevice, plan->device_arena_bytes, plan);
  const int64_t outside = plan->context_bytes + PinnedTableBytes(plan->arena_bytes);
  plan->parts.push_back({"context", outside});
  plan->device_bytes_total = plan->device_arena_bytes + outside;
  plan->host_bytes_total = plan->arena_bytes + DatasetHostBytes(plan->train) + plan->runtime_host_bytes;
}

}  // namespace

int64_t PinnedTableBytes(int64_t pinned_bytes) {
  constexpr int64_t kPageBytes = 4096, kEntryBytes = 8;
  return RoundUp(pinned_bytes, kPageBytes) / kPageBytes * kEntryBytes;
}

int ComputeCapabilityOf(const std::string& isa) {
  int value = 0;
  if (isa.rfind("sm_", 0) != 0) return 0;
  const auto [at, error] = std::from_chars(isa.data() + 3, isa.data() + isa.size(), value);
  return error == std::errc() && at == isa.data() + isa.size() ? value : 0;
}

FusedParts PartsOf(const ModelShape& s, FusedLinear linear) {
  switch (linear) {
    case FusedLinear::kQkv:
      return {{{LoraTarget::kQ, s.q_dim()}, {LoraTarget::kK, s.kv_dim()}, {LoraTarget::kV, s.kv_dim()}}, 3};
    case FusedLinear::kO:
      return {{{LoraTarget::kO, s.hidden}}, 1};
    case FusedLinear::kGateUp:
      return {{{LoraTarget::kGate, s.intermediate}, {LoraTarget::kUp, s.intermediate}}, 2};
    case FusedLinear::kDown:
      return {{{LoraTarget::kDown, s.hidden}}, 1};
  }
  return {};
}

Nf4Bytes Nf4BytesOf(int64_t out, int64_t in) {
  const int64_t blocks = RoundUp(out * in, kNf4Block) / kNf4Block;
  Nf4Bytes bytes;
  bytes.codes = RoundUp((out * in + 1) / 2, kCudaAlignBytes);
  bytes.nested = bytes.codes + RoundUp(blocks, kCudaAlignBytes);
  bytes.offset = bytes.nested + RoundUp(RoundUp(blocks, kNf4NestedBlocks) / kNf4NestedBlocks * 4, kCudaAlignBytes);
  bytes.total = bytes.offset + kCudaAlignBytes;
  return bytes;
}

int64_t Nf4LinearBytes(const ModelShape& shape, FusedLinear linear) {
  const FusedParts parts = PartsOf(shape, linear);
  int64_t bytes = 0;
  for (int i = 0; i < parts.count; ++i) bytes += Nf4BytesOf(parts.parts[i].out, FusedIn(shape, linear)).total;
  return bytes;
}

LoraFold PlanFold(const ModelShape& shape, const TrainShape& train, FusedLinear linear) {
  return kernels::cuda::MakeLoraFold(
      FusedOut(shape, linear), FusedIn(shape, linear),
      kernels::cuda::PaddedLoraRank(train.lora_rank) * TargetsInGroup(train.lora_targets, linear));
}

kernels::cuda::Fp8Linear PlanFp8Linear(const ModelShape& shape, const TrainShape& train, FusedLinear linear) {
  return {FusedOut(shape, linear), FusedIn(shape, linear), PlanFold(shape, train, linear).rank};
}

int64_t CachedLinearBytes(const ModelShape& shape, const TrainShape& train, FusedLinear linear) {
  const int64_t bytes = train.compute == ComputeType::kFP8 ? PlanFp8Linear(shape, train, linear).cache_bytes()
                                                           : PlanFold(shape, train, linear).weight_bytes();
  return RoundUp(bytes, kCudaAlignBytes);
}

int64_t CachedLayerBytes(const ModelShape& shape, const TrainShape& train) {
  int64_t bytes = 0;
  for (int i = 0; i < kFusedLinears; ++i) bytes += CachedLinearBytes(shape, train, static_cast<FusedLinear>(i));
  return bytes;
}

HeadGroups HeadGroupsOf(const MemoryPlan& plan) {
  const ModelShape& s = plan.shape;
  HeadGroups groups;
  groups.count = std::min(plan.choices.attention_calls, s.kv_heads);
  groups.calls_each = plan.choices.attention_calls / groups.count;
  groups.heads = s.heads / groups.count;
  groups.kv_heads = s.kv_heads / groups.count;
  groups.q_cols = groups.heads * s.head_dim;
  groups.kv_cols = groups.kv_heads * s.head_dim;
  return groups;
}

bool CanGroupHeads(const TrainShape& train) { return train.compute == ComputeType::kBF16 && !train.lora_dropout; }

bool CanCutHeads(const ModelShape& s, int64_t calls, bool grouped) {
  if (calls <= s.kv_heads) return s.kv_heads % calls == 0;
  return grouped && calls % s.kv_heads == 0 && s.heads % calls == 0;
}

LoraFold PlanGroupFold(const MemoryPlan& plan) {
  return kernels::cuda::MakeLoraFold(HeadGroupsOf(plan).cols(), plan.shape.hidden,
                                     PlanFold(plan.shape, plan.train, FusedLinear::kQkv).rank);
}

int64_t GroupWeightOffset(const MemoryPlan& plan) {
  return RoundUp(PlanFold(plan.shape, plan.train, FusedLinear::kO).weight_bytes(), kCudaAlignBytes);
}

RowStrides CudaStrides(const MemoryPlan& plan) {
  const LoraFold qkv = PlanFold(plan.shape, plan.train, FusedLinear::kQkv);
  const LoraFold o = PlanFold(plan.shape, plan.train, FusedLinear::kO);
  const LoraFold gate_up = PlanFold(plan.shape, plan.train, FusedLinear::kGateUp);
  const LoraFold down = PlanFold(plan.shape, plan.train, FusedLinear::kDown);
  return {.h = std::max(qkv.x_stride, gate_up.x_stride),
          .act = down.x_stride,
          .d_x = std::max(o.y_stride, down.y_stride),
          .d_qkv = qkv.y_stride};
}

ActField CudaField(const MemoryPlan& plan, Act act) {
  const ModelShape& s = plan.shape;
  const TrainShape& t = plan.train;
  const auto plain = [](int64_t cols) { return ActField{cols, cols, false}; };
  const auto lora = [&](FusedLinear group) { return plain(PlanFold(s, t, group).rank); };
  switch (act) {
    case Act::kRstd1:
    case Act::kRstd2:
    case Act::kRstdQ:
    case Act::kRstdK:
    case Act::kLse: {
      const int64_t cols = ActColumns(s, t, act);
      return {cols, cols, true};
    }
    case Act::kQkv:
      // As its gradient: cuDNN wants dq at q's stride.
      return {FusedOut(s, FusedLinear::kQkv), PlanFold(s, t, FusedLinear::kQkv).y_stride, false};
    case Act::kO:
      return {s.q_dim(), PlanFold(s, t, FusedLinear::kO).x_stride, false};
    case Act::kGateUp:
      return {2 * s.intermediate, PlanFold(s, t, FusedLinear::kGateUp).y_stride, false};
    case Act::kUQkv:
      return lora(FusedLinear::kQkv);
    case Act::kUO:
      return lora(FusedLinear::kO);
    case Act::kUGateUp:
      return lora(FusedLinear::kGateUp);
    case Act::kUDown:
      return lora(FusedLinear::kDown);
    default:
      return plain(ActColumns(s, t, act));
  }
}

int64_t CudaFieldBytes(const MemoryPlan& plan, Act act, int64_t rows) {
  if (act == Act::kLse) {
    // Older devices keep the statistics of packed documents by sequence, not by row.
    const int64_t packed =
        plan.choices.attention_calls * kernels::cuda::SdpaStatsBytes(PlanPackedAttention(plan), PlanSdpaDevice(plan));
    return RoundUp(std::max(packed, rows * plan.shape.heads * 4), kCudaAlignBytes);
  }
  const ActField field = CudaField(plan, act);
  if (field.cols == 0) return 0;
  return RoundUp(rows * field.stride * (field.is_stat ? 4 : 2), kCudaAlignBytes);
}

kernels::cuda::CceShape PlanLoss(const MemoryPlan& plan, int64_t rows) {
  auto shape = kernels::cuda::MakeCceShape(rows, plan.shape.hidden, plan.shape.vocab, plan.choices.loss_tile_rows);
  shape.hidden_stride = 2 * plan.shape.hidden;  // "loss.hidden"
  return shape;
}

void LayOutCudaPlan(MemoryPlan* plan) {
  RegionBuilder device(PlanSpace::kDevice, kCudaAlignBytes);
  RegionBuilder pinned(PlanSpace::kPinned, kCudaAlignBytes);
  AddWeights(*plan, &device, &pinned);
  AddAdapter(*plan, &device, &pinned);
  device.Add("stream", StreamCount(*plan) * StreamBytes(*plan), kStep);
  if (plan->choices.host_checkpoints) pinned.Add("stream.host", plan->shape.layers * StreamBytes(*plan), kStep);
  device.Add("kept", plan->choices.keep_all_layers * KeptBytes(*plan), kStep);
  const int64_t kept_attention = plan->choices.keep_attention_layers * KeptAttentionBytes(*plan);
  if (plan->choices.host_attention) {
    pinned.Add("kept_attention.host", kept_attention, kStep);
  } else {
    device.Add("kept_attention", kept_attention, kStep);
  }
  AddAttentionHalf(*plan, &device);
  AddTiles(*plan, &device);
  AddBatch(*plan, &device, &pinned);
  AddLoss(*plan, &device);
  plan->regions = device.Pack(&plan->device_arena_bytes);
  for (PlanRegion& region : pinned.Pack(&plan->arena_bytes)) plan->regions.push_back(std::move(region));
  FillParts(plan);
  plan->disk_bytes = TrainingDiskBytes(plan->train, AdapterParams(plan->shape, plan->train) * 4);
}

}  // namespace longhaul
