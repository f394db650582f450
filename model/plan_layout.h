// How shapes and choices become regions. Shared by the plan (which sums sizes) and the engine (which carves views), so
// that no size is written down twice.
#pragma once

#include <cstdint>
#include <vector>

#include "model/memory_plan.h"
#include "model/region_builder.h"

namespace longhaul {

inline constexpr int64_t kPlanAlignBytes = 64;

// Phases that regions are often live in.
inline constexpr uint32_t kForward = kPhaseForwardAttention | kPhaseForwardMlp;
inline constexpr uint32_t kBackward = kPhaseRecompute | kPhaseBackwardMlp | kPhaseBackwardAttention;
inline constexpr uint32_t kStep = kForward | kPhaseLoss | kBackward;
inline constexpr uint32_t kAlways = (kPhaseSave << 1) - 1;

// ---- Frozen weights ----

// The fused linears of a layer, as the engine multiplies them: W_qkv [q+2kv, hidden], W_o [hidden, q],
// W_gate_up [2 intermediate, hidden], W_down [hidden, intermediate].
enum class FusedLinear : int { kQkv = 0, kO, kGateUp, kDown };
inline constexpr int kFusedLinears = 4;
int64_t FusedOut(const ModelShape& shape, FusedLinear linear);
int64_t FusedIn(const ModelShape& shape, FusedLinear linear);

// Bytes of W [out, in]: one plain copy, or one packed copy a direction with both dimensions rounded up to 64.
struct FrozenBytes {
  int64_t forward = 0;
  int64_t backward = 0;  // 0 where the plain copy serves both directions
  int64_t total() const { return forward + backward; }
};
FrozenBytes FrozenWeightBytes(const TrainShape& train, bool packed, int64_t out, int64_t in, PlanKind kind);
int64_t WeightElementBytes(const TrainShape& train, bool packed);
// f64 is plain; bf16 exists packed only.
bool PacksWeights(const TrainShape& train, const DeviceFacts& facts);
// The gather table is the head's own matrix where the embedding is tied and the head is plain.
bool SharesHeadWithEmbedding(const MemoryPlan& plan);
int64_t EmbeddingElementBytes(const TrainShape& train);

// ---- Activations of one layer ----

// In this order. Columns are elements a token, of the compute type. Fields of the MLP half live in token tiles unless
// the layer keeps everything.
enum class Act : int {
  kRstd1 = 0,  // [n, 1]            1/rms of the layer input
  kQkv,        // [n, q + 2 kv]     after q/k norm and RoPE
  kQkRaw,      // [n, q + kv]       before q/k norm; qk_norm only
  kRstdQ,      // [n, heads]        qk_norm only
  kRstdK,      // [n, kv_heads]     qk_norm only
  kO,          // [n, q]            attention output
  kLse,        // [n, heads]
  kXMid,       // [n, hidden]       residual after attention
  kUQkv,       // [n, r x targets among q,k,v]   LoRA: x A^T
  kUO,         // [n, r]
  kRstd2,      // [n, 1]
  kGateUp,     // [n, 2 intermediate]
  kUGateUp,    // [n, r x targets among gate,up]
  kUDown,      // [n, r]
};
inline constexpr int kActs = 14;
inline constexpr int kFirstMlpAct = static_cast<int>(Act::kGateUp);
int64_t ActColumns(const ModelShape& shape, const TrainShape& train, Act act);
const char* ActName(Act act);
// Bytes of `rows` tokens of one field, rounded up to the alignment; 0 where the shape has no such field.
int64_t ActBytes(const ModelShape& shape, const TrainShape& train, Act act, int64_t rows);
// All fields of a layer that keeps everything, on a CPU device.
int64_t KeptLayerBytes(const ModelShape& shape, const TrainShape& train);

// ---- What the engine carves, on either kind of device ----

// A field as it lies in memory: `stride` elements from one token to the next. `is_stat`: statistics, of StatType.
struct ActField {
  int64_t cols = 0;
  int64_t stride = 0;
  bool is_stat = false;
};
ActField FieldOf(const MemoryPlan& plan, Act act);
int64_t FieldBytes(const MemoryPlan& plan, Act act, int64_t rows);
// All fields of a layer that keeps everything; of one that keeps attention's output and statistics.
int64_t KeptBytes(const MemoryPlan& plan);
int64_t KeptAttentionBytes(const MemoryPlan& plan);

// Elements from one row to the next of buffers whose rows have room behind them (CUDA: for what LoRA adds to a product,
// kernels/shapes/lora_fold.h).
struct RowStrides {
  int64_t h = 0;      // norms' outputs: inputs of q,k,v and of gate,up
  int64_t act = 0;    // input of down
  int64_t d_x = 0;    // gradient of the residual stream: of o's and of down's output
  int64_t d_qkv = 0;  // gradient of q,k,v
};
RowStrides StridesOf(const MemoryPlan& plan);

// Rows that a micro-batch may have in the Exec's memory: its tokens, on CUDA up to a multiple of kCudaRowUnit.
int64_t PlannedRows(const MemoryPlan& plan);
// Residual streams x_l that are there at once, and where x_l is among them; in a training l = 0 to layers.
// Where checkpoints leave: one is read, one written, one copied. With heads in groups a layer's output takes its
// input's place tile by tile, and one slot does.
inline constexpr int64_t kStreamSlots = 3;
int64_t StreamCount(const MemoryPlan& plan);
inline int64_t StreamSlot(const MemoryPlan& plan, int64_t l) { return l % StreamCount(plan); }
// One residual stream of PlannedRows.
int64_t StreamBytes(const MemoryPlan& plan);
// Rows that the loss takes at a time.
int64_t LossRows(const MemoryPlan& plan);

// LoRA targets that share an input, in order: {q,k,v}, {o}, {gate,up}, {down}.
int64_t TargetsInGroup(uint32_t targets, FusedLinear group);

// Scratch formulas of the kernels (kernels/ops.h), kept equal by tests/worker/train/plan_allocation_test.cc.
int64_t PlanAttentionScratchBytes(const ModelShape& shape, const TrainShape& train, int threads, bool backward);
int64_t PlanGemmScratchBytes(const TrainShape& train, int64_t rows, int64_t out, int64_t in);
// The A's and B's that share a linear's input, rounded to bf16: of the linear with the most. 0 in f32.
int64_t PlanFactorBytes(const ModelShape& shape, const TrainShape& train);

// Dataset, local checkpoints (those kept and the one being written, each masters and two moments), the artifact, the
// log.
int64_t TrainingDiskBytes(const TrainShape& train, int64_t adapter_bytes);

// Fills plan->regions, arena_bytes, totals and parts from plan's kind, shapes, choices and runtime_host_bytes.
// REQUIRES: shapes are valid and ApproximateBytes(*plan) is below kMaxPlanBytes.
void LayOutPlan(MemoryPlan* plan);

// Upper bound in floating point, against overflow.
double ApproximateBytes(const MemoryPlan& plan);
inline constexpr double kMaxPlanBytes = 1e15;

}  // namespace longhaul
