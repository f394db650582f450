#include "worker/train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"

namespace longhaul::train {

UpdateResult UpdateAdapter(const kernels::Exec& exec, const Adapter& adapter, const Hyper& hyper, double learning_rate,
                           int64_t adam_step, bool loss_is_finite) {
  UpdateResult result;
  result.grad_norm = std::sqrt(kernels::SumOfSquares(exec, adapter.grad()));
  result.skipped = !loss_is_finite || !std::isfinite(result.grad_norm);
  if (!result.skipped) {
    kernels::AdamWParams params;
    params.learning_rate = learning_rate;
    params.beta1 = hyper.adam_beta1;
    params.beta2 = hyper.adam_beta2;
    params.epsilon = hyper.adam_epsilon;
    params.weight_decay = hyper.weight_decay;
    params.step = adam_step;
    params.grad_scale = hyper.max_grad_norm > 0 ? std::min(1.0, hyper.max_grad_norm / (result.grad_norm + 1e-6)) : 1.0;
    kernels::AdamW(exec, params, adapter.master(), adapter.grad(), adapter.moment1(), adapter.moment2());
  }
  kernels::Zero(exec, adapter.grad());
  return result;
}

}  // namespace longhaul::train
