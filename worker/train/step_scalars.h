// The numbers of an update that live in the Exec's memory, so that a step never waits for one.
#pragma once

#include "kernels/ops.h"
#include "model/cuda_layout.h"
#include "worker/train/memory.h"

namespace longhaul::train {

// What a micro-batch gives besides its gradients.
struct MicroBatchNumbers {
  kernels::LossTotals loss;
  int64_t non_finite_gradients = 0;  // elements of the window's gradient after its backward pass; not always counted
};
static_assert(sizeof(MicroBatchNumbers) == kCudaMicroBatchBytes);

struct StepScalars {
  kernels::UpdateState update;
  double sum_of_squares = 0;
  double loss = 0;                // not finite: the update is skipped
  double grad_scale = 0;          // of the loss: one over the window's trained targets
  MicroBatchNumbers micro_batch;  // of the one at hand
  int64_t non_finite_weights = 0;
};
static_assert(sizeof(StepScalars) <= kCudaScalarBytes);

// Of a CUDA plan.
inline StepScalars* ScalarsOf(const EngineMemory& memory) {
  return static_cast<StepScalars*>(memory.GetOrNull("scalars"));
}

}  // namespace longhaul::train
