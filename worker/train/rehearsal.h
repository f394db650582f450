// Before the first update of a CUDA plan: the kernels of every product, and of the loss, for every number of rows that
// tiles of tokens can have. In a step nothing is searched for then, and what a library refuses is an error here. Heads
// in groups: but for one product (RowsToRehearse).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "worker/train/decoder.h"
#include "worker/train/engine_ops.h"
#include "worker/train/loss.h"
#include "worker/train/memory.h"

namespace longhaul::train {

// Micro-batches, by their rows, whose tiles are of all lengths that any micro-batch's have. Rows are multiples of
// kCudaRowUnit up to PlannedRows; of tokens choices.token_tile_rows are a tile, of trained ones LossRows. Heads in
// groups: the fullest as well, because one product, attention's output backward, is over all rows; that of other
// micro-batches is chosen when they come.
std::vector<int64_t> RowsToRehearse(const MemoryPlan& plan);

// Passes over the first and the last layer (all have the same shapes) whose products are not run; activations and the
// loss's numbers are written over. `dropout`: the run's, with which products are others. UNIMPLEMENTED
// GEMM_UNSUPPORTED names the product that there is no kernel for.
absl::Status Rehearse(const EngineMemory& memory, double dropout, EngineOps* ops, Decoder* decoder,
                      CutCrossEntropy* loss);

}  // namespace longhaul::train
