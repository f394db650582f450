// What an update computes once, in double, on either backend.
#pragma once

#include <cmath>

#include "kernels/ops.h"

namespace longhaul::kernels {

// PrepareUpdate's arithmetic. constexpr so that device code may call it too.
constexpr void FillUpdateState(const AdamWConfig& config, double sum_of_squares, double loss, UpdateState* state) {
  state->grad_norm = sqrt(sum_of_squares);
  // x - x is 0 for finite x and NaN for the rest.
  state->skip = (state->grad_norm - state->grad_norm) + (loss - loss) == 0 ? 0 : 1;
  if (state->skip != 0) {
    ++state->skipped;
    return;
  }
  ++state->steps;
  const double clipped = config.max_grad_norm / (state->grad_norm + 1e-6);
  state->grad_scale = config.max_grad_norm > 0 && clipped < 1.0 ? clipped : 1.0;
  const double step = static_cast<double>(state->steps);
  state->step_size = state->learning_rate / (1.0 - pow(config.beta1, step));
  state->inverse_sqrt_bias2 = 1.0 / sqrt(1.0 - pow(config.beta2, step));
  state->keep = 1.0 - state->learning_rate * config.weight_decay;
}

}  // namespace longhaul::kernels
