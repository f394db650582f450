#include "worker/train/optimizer.h"

#include <limits>

#include "kernels/ops.h"
#include "worker/train/step_scalars.h"

namespace longhaul::train {

UpdateResult UpdateAdapter(const EngineMemory& memory, const Adapter& adapter, const Hyper& hyper, double learning_rate,
                           int64_t adam_step, bool loss_is_finite) {
  const kernels::Exec& exec = memory.exec();
  const kernels::AdamWConfig config{hyper.adam_beta1, hyper.adam_beta2, hyper.adam_epsilon, hyper.weight_decay,
                                    hyper.max_grad_norm};
  kernels::UpdateState state;
  state.learning_rate = learning_rate;
  state.steps = adam_step - 1;
  StepScalars local;
  StepScalars* const at = memory.Has("scalars") ? ScalarsOf(memory) : &local;
  const double loss = loss_is_finite ? 0 : std::numeric_limits<double>::quiet_NaN();
  exec.Upload(&at->update, &state, sizeof(state));
  exec.Upload(&at->loss, &loss, sizeof(loss));
  kernels::SumOfSquares(exec, adapter.grad(), &at->sum_of_squares);
  kernels::PrepareUpdate(exec, config, &at->sum_of_squares, &at->loss, &at->update);
  kernels::AdamW(exec, config, &at->update, adapter.master(), adapter.grad(), adapter.moment1(), adapter.moment2());
  kernels::Zero(exec, adapter.grad());
  exec.Download(&state, &at->update, sizeof(state));
  exec.Synchronize();
  return {state.grad_norm, state.skip != 0};
}

}  // namespace longhaul::train
