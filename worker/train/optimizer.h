// Updates of the adapter: global norm, clipping, AdamW, gradients back to zero. An update whose gradient is not finite
// is skipped whole: that is decided where the gradient is, so that a GPU need not be waited for.
#pragma once

#include <cstdint>

#include "kernels/exec.h"
#include "model/cuda_layout.h"
#include "worker/train/adapter.h"
#include "worker/train/hyper.h"
#include "worker/train/memory.h"
#include "worker/train/step_scalars.h"

namespace longhaul::train {

struct UpdateResult {
  double grad_norm = 0;  // before clipping
  bool skipped = false;
  int64_t adam_steps = 0;  // updates so far that were not skipped
};

class AdapterUpdates {
 public:
  // All arguments outlive it.
  AdapterUpdates(const EngineMemory& memory, const Adapter& adapter, const Hyper& hyper);
  AdapterUpdates(const AdapterUpdates&) = delete;
  AdapterUpdates& operator=(const AdapterUpdates&) = delete;

  // Before the first update: so many were not skipped before (bias correction).
  void Begin(int64_t adam_steps);
  // Queues an update and the copy of what became of it to `slot`, below kStepSlots. `loss_is_finite` false skips it, as
  // does a gradient that is not finite. Gradients are zero afterwards in every case.
  void Queue(double learning_rate, bool loss_is_finite, int64_t slot);
  // REQUIRES: what Queue queued to this slot is done.
  UpdateResult Result(int64_t slot) const;

 private:
  const EngineMemory& memory_;
  const Adapter& adapter_;
  kernels::AdamWConfig config_;
  StepScalars here_;                        // CPU
  kernels::UpdateState slots_[kStepSlots];  // CPU
  StepScalars* scalars_;                    // in the Exec's memory
  kernels::UpdateState* results_;           // [kStepSlots]
};

// One update by itself; waits for it. `adam_step` is its 1-based number among those that were not skipped.
UpdateResult UpdateAdapter(const EngineMemory& memory, const Adapter& adapter, const Hyper& hyper, double learning_rate,
                           int64_t adam_step, bool loss_is_finite);

}  // namespace longhaul::train
