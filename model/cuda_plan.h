// Which of a CUDA plan's choices: the part of MakePlan that is of CUDA devices. Pure.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/memory_plan.h"

namespace longhaul {

// Device memory outside the arenas where no probe has measured it: the context, code and tables of the libraries'
// kernels (measured on an H100 and an H200 with cuDNN 9.14 and cuBLASLt 13.1: 542 to 546 MiB) and what the driver keeps
// of captured micro-batches (8 MiB of one of an 8B model, at most 22: limits::kMaxCudaGraphNodes). The device's tables
// of pinned pages come on top (PinnedTableBytes).
inline constexpr int64_t kDefaultContextBytes = int64_t{576} << 20;

// UNIMPLEMENTED DEVICE_UNSUPPORTED names what the engine cannot do on this device.
absl::Status CheckCudaInputs(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts);

// The smallest plan: with attention over all heads at once, or where that takes more (long contexts) with heads in
// groups. Its packed_attention is the fastest (cuda_attention.h) with which it fits facts.device_bytes (0: any).
// REQUIRES: CheckCudaInputs passed.
MemoryPlan MinimumCudaPlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts);

// The fastest one within the budget, of which the smallest must fit. In this order memory buys speed: what had left the
// device comes back, tiles grow, layers recompute less or nothing, layers need not be dequantised. Heads go in groups
// where that is faster: all at once the memory is short, or layers would make attention again that in groups they keep
// in host memory.
// facts.device_bytes is what the budget leaves.
MemoryPlan MakeCudaPlan(const ModelShape& shape, const TrainShape& train, const DeviceFacts& facts,
                        const PlanBudget& budget);

int64_t AvailableDeviceBytes(const DeviceFacts& facts, const PlanBudget& budget);

}  // namespace longhaul
