// One update of the adapter: global norm, clipping, AdamW, gradients back to zero. An update whose gradient is not
// finite is skipped whole.
#pragma once

#include "kernels/exec.h"
#include "worker/train/adapter.h"
#include "worker/train/hyper.h"
#include "worker/train/memory.h"

namespace longhaul::train {

struct UpdateResult {
  double grad_norm = 0;  // before clipping
  bool skipped = false;
};

// `adam_step` is the 1-based number of this update among those that were not skipped (bias correction).
// `loss_is_finite` false skips as well. Gradients are zero afterwards in every case. Waits for the result: on CUDA that
// is the one wait of a step.
UpdateResult UpdateAdapter(const EngineMemory& memory, const Adapter& adapter, const Hyper& hyper, double learning_rate,
                           int64_t adam_step, bool loss_is_finite);

}  // namespace longhaul::train
