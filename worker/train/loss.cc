#include "worker/train/loss.h"

#include <algorithm>

#include "kernels/ops.h"

namespace longhaul::train {

using kernels::Tensor;

CutCrossEntropy::CutCrossEntropy(const EngineMemory& memory, const kernels::Exec& exec, const ModelWeights& weights)
    : memory_(memory), exec_(exec), weights_(weights) {
  const MemoryPlan& plan = memory.plan();
  const int64_t tile = plan.choices.loss_tile_rows;
  rows_ = memory.arena().Matrix("loss.rows", kernels::DType::kI32, 1, plan.train.tokens()).as<int32_t>();
  labels_ = memory.arena().Matrix("loss.labels", kernels::DType::kI32, 1, plan.train.tokens()).as<int32_t>();
  x_ = memory.Matrix("loss.x", tile, plan.shape.hidden);
  hidden_ = memory.Matrix("loss.hidden", tile, plan.shape.hidden);
  rstd_ = memory.Matrix("loss.rstd", tile, 1);
  logits_ = memory.Matrix("loss.logits", tile, plan.shape.vocab);
  scratch_ = memory.GetOrNull("loss.scratch");
}

LossSum CutCrossEntropy::RunTile(const Tensor& x, const int32_t* rows, const int32_t* labels, int64_t count,
                                 double grad_scale, const Tensor& d_x) const {
  const ModelShape& s = memory_.plan().shape;
  const Tensor gathered = x_.Rows(0, count);
  const Tensor hidden = hidden_.Rows(0, count);
  const Tensor rstd = rstd_.Rows(0, count);
  const Tensor logits = logits_.Rows(0, count);
  LossSum sum;
  sum.targets = count;
  kernels::GatherRows(exec_, x, rows, gathered);
  kernels::RmsNorm(exec_, gathered, weights_.final_norm, s.rms_norm_eps, hidden, rstd);
  kernels::FrozenForward(exec_, hidden, weights_.head, 0, logits, scratch_);
  kernels::LossTotals totals;
  kernels::LossTile(exec_, logits, labels, d_x.data == nullptr ? nullptr : &grad_scale, {}, &totals);
  sum.nats = totals.nats;
  sum.correct = totals.correct;
  if (d_x.data == nullptr) return sum;
  kernels::FrozenBackward(exec_, logits, weights_.head, 0, hidden, scratch_);
  kernels::RmsNormBackward(exec_, hidden, gathered, weights_.final_norm, rstd, false, hidden);
  kernels::ScatterRows(exec_, hidden, rows, d_x);
  return sum;
}

LossSum CutCrossEntropy::Run(const TokenBatch& batch, const Tensor& x, double grad_scale, const Tensor& d_x) const {
  const MemoryPlan& plan = memory_.plan();
  int64_t count = 0;
  for (int64_t i = 0; i < batch.rows; ++i) {
    if (batch.labels[i] == -100) continue;
    LH_CHECK(batch.labels[i] >= 0 && batch.labels[i] < plan.shape.vocab);
    rows_[count] = static_cast<int32_t>(i);
    labels_[count] = batch.labels[i];
    ++count;
  }
  if (d_x.data != nullptr && count < batch.rows) kernels::Zero(exec_, d_x);
  LossSum total;
  for (int64_t begin = 0; begin < count; begin += plan.choices.loss_tile_rows) {
    const int64_t size = std::min(plan.choices.loss_tile_rows, count - begin);
    const LossSum part = RunTile(x, rows_ + begin, labels_ + begin, size, grad_scale, d_x);
    total.nats += part.nats;
    total.targets += part.targets;
    total.correct += part.correct;
  }
  return total;
}

Tensor CutCrossEntropy::Logits(const Tensor& x) const {
  const ModelShape& s = memory_.plan().shape;
  const Tensor hidden = hidden_.Rows(0, x.rows);
  const Tensor logits = logits_.Rows(0, x.rows);
  kernels::RmsNorm(exec_, x, weights_.final_norm, s.rms_norm_eps, hidden, {});
  kernels::FrozenForward(exec_, hidden, weights_.head, 0, logits, scratch_);
  return logits;
}

}  // namespace longhaul::train
