#include "worker/train/optimizer.h"

#include <limits>

#include "kernels/ops.h"

namespace longhaul::train {

static_assert(kStepSlots * sizeof(kernels::UpdateState) <= kCudaScalarBytes);

AdapterUpdates::AdapterUpdates(const EngineMemory& memory, const Adapter& adapter, const Hyper& hyper)
    : memory_(memory),
      adapter_(adapter),
      config_{hyper.adam_beta1, hyper.adam_beta2, hyper.adam_epsilon, hyper.weight_decay, hyper.max_grad_norm},
      scalars_(&here_),
      results_(slots_) {
  if (!memory.Has("scalars")) return;
  scalars_ = ScalarsOf(memory);
  results_ = static_cast<kernels::UpdateState*>(memory.GetOrNull("scalars.host"));
}

void AdapterUpdates::Begin(int64_t adam_steps) {
  kernels::UpdateState state;
  state.steps = adam_steps;
  memory_.exec().Upload(&scalars_->update, &state, sizeof(state));
}

void AdapterUpdates::Queue(double learning_rate, bool loss_is_finite, int64_t slot) {
  const kernels::Exec& exec = memory_.exec();
  const double loss = loss_is_finite ? 0 : std::numeric_limits<double>::quiet_NaN();
  exec.Upload(&scalars_->update.learning_rate, &learning_rate, sizeof(learning_rate));
  exec.Upload(&scalars_->loss, &loss, sizeof(loss));
  kernels::SumOfSquares(exec, adapter_.grad(), &scalars_->sum_of_squares);
  kernels::PrepareUpdate(exec, config_, &scalars_->sum_of_squares, &scalars_->loss, &scalars_->update);
  kernels::AdamW(exec, config_, &scalars_->update, adapter_.master(), adapter_.grad(), adapter_.moment1(),
                 adapter_.moment2());
  kernels::Zero(exec, adapter_.grad());
  exec.Download(&results_[slot], &scalars_->update, sizeof(kernels::UpdateState));
}

UpdateResult AdapterUpdates::Result(int64_t slot) const {
  const kernels::UpdateState& state = results_[slot];
  return {state.grad_norm, state.skip != 0, state.steps};
}

UpdateResult UpdateAdapter(const EngineMemory& memory, const Adapter& adapter, const Hyper& hyper, double learning_rate,
                           int64_t adam_step, bool loss_is_finite) {
  AdapterUpdates updates(memory, adapter, hyper);
  updates.Begin(adam_step - 1);
  updates.Queue(learning_rate, loss_is_finite, 0);
  memory.exec().Synchronize();
  return updates.Result(0);
}

}  // namespace longhaul::train
