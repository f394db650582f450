#include "worker/train/cuda_ops.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kernels/cuda_error.h"
#include "model/cuda_layout.h"
#include "worker/train/cuda_weights.h"

namespace longhaul::train {
namespace {

using kernels::CudaEngineMemory;
using kernels::CudaLinear;
using kernels::Tensor;

size_t Index(const QloraLinear& linear) {
  return static_cast<size_t>(linear.layer * kFusedLinears + static_cast<int64_t>(linear.linear));
}

CudaEngineMemory::Block BlockOf(const EngineMemory& memory, const char* region) {
  return {memory.GetOrNull(region), memory.BytesOrZero(region)};
}

// The adapter's arrays for one linear, its parts without LoRA included.
std::vector<kernels::CudaLoraPart> LoraParts(const ModelShape& shape, int64_t layer, FusedLinear linear,
                                             const LoraGroup& group) {
  const FusedParts parts = PartsOf(shape, linear);
  std::vector<kernels::CudaLoraPart> all;
  int64_t member = 0;
  for (int i = 0; i < parts.count; ++i) {
    kernels::CudaLoraPart part;
    part.out = parts.parts[i].out;
    part.dropout_number = DropoutNumber(layer, parts.parts[i].target);
    if (member < group.count && group.members[member].target == parts.parts[i].target) {
      const LoraGroup::Member& m = group.members[member];
      part.rank = group.rank;
      part.a = group.a.Rows(member * group.rank, (member + 1) * group.rank).as<float>();
      part.grad_a = group.grad_a.Rows(member * group.rank, (member + 1) * group.rank).as<float>();
      part.b = m.b.as<float>();
      part.grad_b = m.grad_b.as<float>();
      ++member;
    }
    all.push_back(part);
  }
  LH_CHECK(member == group.count);
  return all;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaOps>> CudaOps::Create(const EngineMemory& memory, const ModelWeights& weights,
                                                         const Adapter& adapter, double lora_scale) {
  const MemoryPlan& plan = memory.plan();
  std::unique_ptr<CudaOps> ops(new CudaOps(memory));
  const CudaEngineMemory blocks{.gemm = BlockOf(memory, "gemm.workspace"),
                                .weight = BlockOf(memory, "weight.buffer"),
                                .attention_forward = BlockOf(memory, "attention.forward"),
                                .attention_backward = BlockOf(memory, "attention.backward"),
                                .attention_index = BlockOf(memory, "attention.index"),
                                .document_offsets = BlockOf(memory, "batch.offsets"),
                                .packed_kv = BlockOf(memory, "attention.kv"),
                                .loss = BlockOf(memory, "loss.workspace"),
                                .attention_weight = BlockOf(memory, "weight.attention"),
                                .group_offset = GroupWeightOffset(plan),
                                .fp8_weight = BlockOf(memory, "weight.fp8"),
                                .fp8_rows = BlockOf(memory, "tile.fp8"),
                                .dropout = BlockOf(memory, "tile.dropout")};
  kernels::CudaEngineShapes shapes;
  shapes.attention_calls = plan.choices.attention_calls;
  shapes.head_groups = plan.choices.grouped_attention ? HeadGroupsOf(plan).count : 1;
  shapes.packed = PlanPackedAttention(plan);
  shapes.documents = plan.choices.documents;
  shapes.packed_by_reference = plan.choices.packed_attention == PackedAttention::kReference;
  shapes.loss = PlanLoss(plan, LossRows(plan));
  shapes.fp8 = ComputesInFp8(plan);
  if (HasDenseAttention(plan)) shapes.dense = PlanDenseAttention(plan);
  std::vector<CudaLinear> linears;
  for (int64_t layer = 0; layer < plan.shape.layers; ++layer) {
    for (int i = 0; i < kFusedLinears; ++i) {
      const FusedLinear which = static_cast<FusedLinear>(i);
      CudaLinear linear;
      linear.fold = PlanFold(plan.shape, plan.train, which);
      linear.cache = CachedWeight(memory, layer, which);
      if (linear.cache == nullptr) linear.quantised = QuantisedParts(memory, layer, which);
      linear.parts = LoraParts(plan.shape, layer, which, adapter.Group(layer, which));
      linear.lora_scale = lora_scale;
      // q, k and v's weight is wanted while attention has its buffers: not where the larger ones of the MLP are.
      if (which == FusedLinear::kQkv) linear.buffer = blocks.attention_weight.data;
      linear.adapter = AdapterBlock(memory, layer, which);
      linears.push_back(std::move(linear));
    }
  }
  LH_ASSIGN_OR_RETURN(ops->engine_, kernels::CudaEngine::Create(memory.exec(), blocks, shapes, std::move(linears),
                                                                weights.head.forward));
  ops->graphs_ = std::make_unique<GraphCache>(
      GraphCache::Limits{limits::kMaxCudaGraphs, limits::kMaxCudaGraphNodes, limits::kCudaGraphStaleUses},
      [engine = ops->engine_.get()](const std::function<void()>& body, int64_t most_nodes) {
        return engine->Capture(body, most_nodes);
      });
  if (plan.choices.grouped_attention) ops->groups_ = std::make_unique<CudaGroups>(memory, ops->engine_.get());
  const int64_t n = PlannedRows(plan);
  ops->host_ids_ = memory.Int32s("batch.ids.host", kStepSlots * n);
  ops->host_positions_ = memory.Int32s("batch.positions.host", kStepSlots * n);
  ops->host_offsets_ = static_cast<int64_t*>(memory.GetOrNull("batch.offsets.host"));
  ops->device_ids_ = memory.Int32s("batch.ids", n);
  ops->device_positions_ = memory.Int32s("batch.positions", n);
  return ops;
}

bool CudaOps::RunOrReplay(const GraphCache::Key& key, absl::FunctionRef<bool()> body) {
  // Copies beside the ops are not captured: where they are, steps are long. A mask's key is another in each
  // micro-batch. A fault in a graph would be no op's. A graph takes device memory by its launches, and of a call a
  // document there are too many.
  const PlanChoices& choices = memory_.plan().choices;
  const bool is_captured = !rehearses_ && !engine_->is_profiling() && !choices.host_checkpoints &&
                           !choices.host_attention && dropout_ == 0 && engine_->batch_form() <= 1 &&
                           !kernels::CudaLaunchesBlock();
  return is_captured ? graphs_->Run(key, body) : body();
}

bool CudaOps::Queue(Part part, int64_t rows, absl::FunctionRef<bool()> body) {
  if (part == Part::kForward) engine_->Mark(BatchCopied(batch_slot_));
  // The loss sees no documents.
  return RunOrReplay({static_cast<int>(part), rows, part == Part::kLoss ? 0 : engine_->batch_form()}, body);
}

void CudaOps::AdapterChanged() {
  // No part has no rows.
  RunOrReplay({}, [this] {
    engine_->PlaceAdapters();
    return true;
  });
}

void CudaOps::BeginRehearsal() {
  rehearses_ = true;
  engine_->BeginPlanning();
}

absl::Status CudaOps::EndRehearsal() {
  rehearses_ = false;
  if (groups_ != nullptr) groups_->Forget();
  return engine_->EndPlanning();
}

bool CudaOps::Leaves(int64_t l) const {
  const MemoryPlan& plan = memory_.plan();
  return plan.choices.host_checkpoints && l >= 0 && l <= plan.shape.layers - StreamCount(plan);
}

void* CudaOps::StreamOnDevice(int64_t l) const {
  const MemoryPlan& plan = memory_.plan();
  return static_cast<char*>(memory_.GetOrNull("stream")) + StreamSlot(plan, l) * StreamBytes(plan);
}

void* CudaOps::StreamOnHost(int64_t l) const {
  return static_cast<char*>(memory_.GetOrNull("stream.host")) + l * StreamBytes(memory_.plan());
}

void CudaOps::StreamWritten(int64_t l) {
  if (Leaves(l))
    engine_->CopyOut(static_cast<size_t>(l), StreamOnHost(l), StreamOnDevice(l), StreamBytes(memory_.plan()));
}

// Writing x_l takes the slot of x_{l - slots}, whose copy must have ended: so all has left when the last x is written.
// Before the backward pass of layer l, x_{l-1} is sent for: its slot's last reader was the backward pass of layer
// l + slots - 1, which is queued.
void CudaOps::BeginStream(int64_t l, bool written) {
  const MemoryPlan& plan = memory_.plan();
  if (!plan.choices.host_checkpoints) return;
  const int64_t slots = StreamCount(plan);
  if (written) {
    if (Leaves(l - slots)) engine_->WaitForCopy(static_cast<size_t>(l - slots));
    return;
  }
  const auto arrival = [&plan](int64_t x) { return static_cast<size_t>(plan.shape.layers + x); };
  if (Leaves(l)) engine_->WaitForCopy(arrival(l));
  if (Leaves(l - 1)) {
    engine_->CopyIn(arrival(l - 1), StreamOnDevice(l - 1), StreamOnHost(l - 1), StreamBytes(plan));
  }
}

void CudaOps::SetDropout(double probability, uint64_t key) {
  dropout_ = probability;
  engine_->SetDropout(probability, key);
}

TokenBatch CudaOps::Bring(const TokenBatch& batch) {
  const int64_t most = PlannedRows(memory_.plan()), most_documents = memory_.plan().choices.documents;
  const int64_t rows = RoundUp(batch.rows, kCudaRowUnit);
  LH_CHECK(batch.rows > 0 && rows <= most);
  batch_slot_ = (batch_slot_ + 1) % kStepSlots;
  engine_->WaitFor(BatchCopied(batch_slot_));
  int32_t* const ids = host_ids_ + batch_slot_ * most;
  int32_t* const positions = host_positions_ + batch_slot_ * most;
  int64_t* const offsets = host_offsets_ + batch_slot_ * (most_documents + 1);
  std::copy(batch.ids, batch.ids + batch.rows, ids);
  if (!rehearses_ && !Failpoint("cuda_wrong_token").ok()) ids[0] = std::numeric_limits<int32_t>::max();
  std::copy(batch.positions, batch.positions + batch.rows, positions);
  // No row may belong to no document: what attention leaves there is not defined, and gradients sum over all rows. Its
  // positions stay at 0: the table of RoPE may be shorter than it.
  std::fill(ids + batch.rows, ids + rows, 0);
  std::fill(positions + batch.rows, positions + rows, 0);
  const int64_t docs = batch.docs + (rows > batch.rows ? 1 : 0);
  LH_CHECK(docs <= most_documents, std::to_string(docs) + " documents");
  std::copy(batch.doc_offsets, batch.doc_offsets + batch.docs + 1, offsets);
  std::fill(offsets + batch.docs + 1, offsets + most_documents + 1, rows);
  const kernels::Exec& exec = memory_.exec();
  engine_->BeginPart("copies");
  exec.Upload(device_ids_, ids, rows * 4);
  exec.Upload(device_positions_, positions, rows * 4);
  TokenBatch brought = batch;
  brought.rows = rows;
  brought.ids = device_ids_;
  brought.positions = device_positions_;
  brought.doc_offsets = offsets;
  brought.docs = docs;
  engine_->BeginBatch(brought.doc_offsets, brought.docs);
  engine_->EndPart();
  return brought;
}

void CudaOps::Forward(const QloraLinear& linear, const Tensor& x, int64_t first_row, const Tensor& residual,
                      const Tensor& y, const Tensor& u) {
  engine_->Forward(Index(linear), x, first_row, residual, y, u);
}

void CudaOps::Input(const QloraLinear& linear, const Tensor& x, int64_t first_row, const Tensor& u) {
  engine_->Input(Index(linear), x, first_row, u);
}

void CudaOps::BackwardInput(const QloraLinear& linear, const Tensor& dy, int64_t first_row, const Tensor& dx) {
  engine_->BackwardInput(Index(linear), dy, first_row, dx);
}

void CudaOps::Gradients(const QloraLinear& linear, const Tensor& dy, const Tensor& x, int64_t first_row,
                        const Tensor& u) {
  engine_->Gradients(Index(linear), dy, x, first_row, u);
}

void CudaOps::AttentionForward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse) {
  engine_->AttentionForward(q, k, v, o, lse);
}

void CudaOps::AttentionBackward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  engine_->AttentionBackward(d_o, q, k, v, o, lse, dq, dk, dv);
}

void CudaOps::BringHead() {
  const EngineMemory& m = memory_;
  if (!m.plan().choices.host_head || rehearses_) return;
  engine_->BeginPart("copies");
  m.exec().Upload(m.GetOrNull("weights.head"), m.GetOrNull("weights.head.host"), m.BytesOrZero("weights.head"));
  engine_->EndPart();
}

void CudaOps::HeadLoss(const Tensor& hidden, const int32_t* labels, const double* grad_scale,
                       kernels::LossTotals* totals, const Tensor& d_hidden) {
  engine_->HeadLoss(hidden, labels, grad_scale, totals, d_hidden);
}

}  // namespace longhaul::train
