// A CUDA plan's regions, and the shapes of library calls that they are sized by: shared by the plan and by the engine
// (worker/train/cuda_ops.cc), so that no size is written down twice.
//
// Rows of a micro-batch are filled up to a multiple of kCudaRowUnit with a document of their own. Activations are bf16,
// statistics, adapter and norms f32. What LoRA adds to a product lies behind the row that it belongs to
// (kernels/shapes/lora_fold.h): u behind a linear's input, v behind the gradient of its output.
#pragma once

#include <cstdint>

#include "kernels/shapes/cce_shape.h"
#include "kernels/shapes/fp8_linear.h"
#include "kernels/shapes/lora_fold.h"
#include "model/cuda_attention.h"
#include "model/memory_plan.h"
#include "model/plan_layout.h"

namespace longhaul {

inline constexpr int64_t kCudaAlignBytes = 256;
inline constexpr int64_t kCudaRowUnit = 128;    // what cuDNN's dense attention wants, and GEMM tiles fill
inline constexpr int64_t kCudaLossRows = 8192;  // trained rows that are gathered at a time
inline constexpr int64_t kCudaGemmWorkspaceBytes = int64_t{32} << 20;
inline constexpr int64_t kCudaScalarBytes = 512;                  // what an update is made of, one number each
inline constexpr int64_t kCudaMicroBatchBytes = 24;               // what a micro-batch gives besides gradients
inline constexpr int64_t kStepSlots = 2;                          // one step runs while the next is queued
inline constexpr int64_t kCudaLoadRowsBytes = int64_t{64} << 20;  // f32 rows on their way to the device
inline constexpr int64_t kNf4Block = 64;
inline constexpr int64_t kNf4NestedBlocks = 256;

// 90 of "sm_90"; 0 where it is not of that form.
int ComputeCapabilityOf(const std::string& isa);

// A part of a fused linear that is quantised by itself (q, k and v; gate and up), by rows in order.
struct FusedPart {
  LoraTarget target;
  int64_t out = 0;
};
struct FusedParts {
  FusedPart parts[3];
  int count = 0;
};
FusedParts PartsOf(const ModelShape& shape, FusedLinear linear);

// Where the arrays of one quantised matrix lie, from its first byte.
struct Nf4Bytes {
  int64_t codes = 0;   // packed values first; then u8 codes of the scales
  int64_t nested = 0;  // f32 scales of those
  int64_t offset = 0;  // one f32
  int64_t total = 0;
};
Nf4Bytes Nf4BytesOf(int64_t out, int64_t in);
int64_t Nf4LinearBytes(const ModelShape& shape, FusedLinear linear);

// A linear and its adapter; x_stride, y_stride and dx_stride are the buffers' business.
kernels::cuda::LoraFold PlanFold(const ModelShape& shape, const TrainShape& train, FusedLinear linear);
// The same in FP8, where the job computes in that.
kernels::cuda::Fp8Linear PlanFp8Linear(const ModelShape& shape, const TrainShape& train, FusedLinear linear);
inline bool ComputesInFp8(const MemoryPlan& plan) { return plan.train.compute == ComputeType::kFP8; }
// A cached layer: its linears one behind the other, each from a multiple of kCudaAlignBytes on.
int64_t CachedLinearBytes(const ModelShape& shape, const TrainShape& train, FusedLinear linear);
int64_t CachedLayerBytes(const ModelShape& shape, const TrainShape& train);

// With grouped_attention: heads whose q, k and v are there at once, and what attention takes of them a call. At most a
// group a key head; where there are more calls than that, each takes some query heads of a group.
struct HeadGroups {
  int64_t count = 1;
  int64_t calls_each = 1;
  // Of one group.
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t q_cols = 0;
  int64_t kv_cols = 0;
  int64_t cols() const { return q_cols + 2 * kv_cols; }
  // Of one call.
  int64_t call_heads() const { return heads / calls_each; }
  int64_t call_cols() const { return q_cols / calls_each; }
};
HeadGroups HeadGroupsOf(const MemoryPlan& plan);
// Whether a training can go a group of heads at a time: products in bf16, and the same input for q, k and v's adapters.
bool CanGroupHeads(const TrainShape& train);
// Whether heads can be cut into so many calls.
bool CanCutHeads(const ModelShape& shape, int64_t calls, bool grouped);
// The rows of q, k and v's linear for one group, and where they lie behind o's weight in "weight.attention".
kernels::cuda::LoraFold PlanGroupFold(const MemoryPlan& plan);
int64_t GroupWeightOffset(const MemoryPlan& plan);

RowStrides CudaStrides(const MemoryPlan& plan);
ActField CudaField(const MemoryPlan& plan, Act act);
int64_t CudaFieldBytes(const MemoryPlan& plan, Act act, int64_t rows);

kernels::cuda::CceShape PlanLoss(const MemoryPlan& plan, int64_t rows);

// What the device's tables of pinned memory take: 8 bytes for each page of 4 KiB (measured: 2.8 to 112 GiB).
int64_t PinnedTableBytes(int64_t pinned_bytes);

// LayOutPlan of a CUDA plan.
void LayOutCudaPlan(MemoryPlan* plan);

}  // namespace longhaul
