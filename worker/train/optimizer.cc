#include "worker/train/optimizer.h"

#include <limits>

#include "kernels/ops.h"

namespace longhaul::train {

UpdateResult UpdateAdapter(const kernels::Exec& exec, const Adapter& adapter, const Hyper& hyper, double learning_rate,
                           int64_t adam_step, bool loss_is_finite) {
  const kernels::AdamWConfig config{hyper.adam_beta1, hyper.adam_beta2, hyper.adam_epsilon, hyper.weight_decay,
                                    hyper.max_grad_norm};
  kernels::UpdateState state;
  state.learning_rate = learning_rate;
  state.steps = adam_step - 1;
  double sum_of_squares = 0;
  const double loss = loss_is_finite ? 0 : std::numeric_limits<double>::quiet_NaN();
  kernels::SumOfSquares(exec, adapter.grad(), &sum_of_squares);
  kernels::PrepareUpdate(exec, config, &sum_of_squares, &loss, &state);
  kernels::AdamW(exec, config, &state, adapter.master(), adapter.grad(), adapter.moment1(), adapter.moment2());
  kernels::Zero(exec, adapter.grad());
  return {state.grad_norm, state.skip != 0};
}

}  // namespace longhaul::train
