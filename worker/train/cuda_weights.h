// The frozen base on a CUDA device: 4-bit codes as the plan lays them out, or bf16 rows with room for the adapter, and
// loading them. Values are read in f32 (or made on the device), quantised there and, where the plan caches a layer,
// dequantised once. What is stored in NF4 keeps its codes.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "model/plan_layout.h"
#include "worker/train/memory.h"
#include "worker/train/weight_source.h"
#include "worker/train/weights.h"

namespace longhaul::train {

// The parts of a linear of a layer that is not cached.
std::vector<kernels::Nf4Weight> QuantisedParts(const EngineMemory& memory, int64_t layer, FusedLinear linear);
// [out + rank, stride] bf16 of a layer that is cached, or its FP8 (kernels/shapes/fp8_linear.h); null where it is not.
void* CachedWeight(const EngineMemory& memory, int64_t layer, FusedLinear linear);

// Where a linear's adapter lies in FP8; null in bf16, where it is part of the weight.
void* AdapterBlock(const EngineMemory& memory, int64_t layer, FusedLinear linear);

// INVALID_ARGUMENT: a weight that is not finite. UNIMPLEMENTED MODEL_UNSUPPORTED: a stored NF4 of other blocks, or
// whose scales were not quantised doubly, in a layer that is not cached.
absl::Status LoadCudaWeights(const WeightSource& source, const EngineMemory& memory, const ModelWeights& weights);

}  // namespace longhaul::train
