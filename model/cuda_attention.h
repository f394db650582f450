// Who computes a CUDA plan's attention and in what shapes: shared by the plan, which counts the memory, and the engine,
// which runs nothing else. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/shapes/sdpa_shape.h"
#include "model/memory_plan.h"

namespace longhaul {

// Packed documents on compute capability 8.x: cudnnGetVersion(), 9.18.1.
inline constexpr int kOldestRaggedCudnn = 91801;
inline constexpr int kOldestDeterministicBlackwellCudnn = 91800;

// The fastest way that the device's cuDNN has for packed documents of that shape, memory aside. Known of the library:
// backward passes of packed documents are wrong from head_dim 129 on (9.14 on Hopper); there are none on compute
// capability 8.x before 9.18.1, and none there that are deterministic; deterministic ones keep two bytes a score of
// every square that a call is built for, so a document goes at a time, which needs statistics by rows.
PackedAttention FastestPackedAttention(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts);

// Attention's shapes are those of one of the plan's attention_calls.
// Whether micro-batches of equal full sequences may go as such, else all go as packed documents.
bool HasDenseAttention(const MemoryPlan& plan);
kernels::cuda::SdpaShape PlanDenseAttention(const MemoryPlan& plan);
// kEach: of one document, whichever of the pack.
kernels::cuda::SdpaShape PlanPackedAttention(const MemoryPlan& plan);
// Of all calls that a pack takes.
int64_t PlanAttentionIndexBytes(const MemoryPlan& plan);
kernels::cuda::SdpaDevice PlanSdpaDevice(const MemoryPlan& plan);

// "": packed documents go through the library. Else what a user should know: that our own kernels take them, how much
// slower, why, and what to do.
std::string ReferenceAttentionWarning(const MemoryPlan& plan);

}  // namespace longhaul
