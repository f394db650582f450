#include "worker/train/loss.h"

#include <algorithm>

#include "kernels/ops.h"
#include "model/cuda_layout.h"
#include "worker/train/step_scalars.h"

namespace longhaul::train {

using kernels::LossTotals;
using kernels::Tensor;

CutCrossEntropy::CutCrossEntropy(const EngineMemory& memory, const kernels::Exec& exec, EngineOps* ops,
                                 const ModelWeights& weights)
    : memory_(memory), exec_(exec), ops_(*ops), weights_(weights) {
  const MemoryPlan& plan = memory.plan();
  const int64_t n = PlannedRows(plan), rows = LossRows(plan);
  const auto steps = static_cast<size_t>(plan.train.accumulation_steps);
  rows_ = memory.Int32s("loss.rows", n);
  labels_ = memory.Int32s("loss.labels", n);
  x_ = memory.Matrix("loss.x", rows, plan.shape.hidden);
  hidden_ = memory.Matrix("loss.hidden", rows, plan.shape.hidden);
  rstd_ = memory.StatMatrix("loss.rstd", rows, 1);
  sums_.resize(steps);
  on_cpu_ = plan.device == DeviceKind::kCpu;
  if (!on_cpu_) {
    row_unit_ = kCudaRowUnit;
    host_rows_ = memory.Int32s("loss.rows.host", kStepSlots * n);
    host_labels_ = memory.Int32s("loss.labels.host", kStepSlots * n);
    slot_totals_ = plan.train.accumulation_steps;
    grad_scale_ = &ScalarsOf(memory)->grad_scale;
    totals_ = static_cast<LossTotals*>(memory.GetOrNull("loss.totals"));
    host_totals_ = static_cast<LossTotals*>(memory.GetOrNull("loss.totals.host"));
  } else {
    row_unit_ = 1;
    host_rows_ = rows_;
    host_labels_ = labels_;
    grad_scale_ = &cpu_grad_scale_;
    cpu_totals_.resize(steps);
    totals_ = host_totals_ = cpu_totals_.data();
  }
}

void CutCrossEntropy::BeginWindow(int64_t micro_batches) {
  const auto needed = static_cast<size_t>(micro_batches);
  if (needed > sums_.size()) {
    LH_CHECK(on_cpu_, std::to_string(micro_batches) + " micro-batches");
    sums_.resize(needed);
    cpu_totals_.resize(needed);
    totals_ = host_totals_ = cpu_totals_.data();
  }
  const auto bytes = static_cast<int64_t>(sums_.size() * sizeof(LossTotals));
  kernels::Zero(exec_, kernels::MakeTensor(totals_, kernels::DType::kU8, 1, bytes));
  std::fill(sums_.begin(), sums_.end(), LossSum{});
}

void CutCrossEntropy::ListRows(int32_t* rows, int32_t* labels) {
  const int64_t vocab = memory_.plan().shape.vocab;
  count_ = 0;
  for (int64_t i = 0; i < batch_.rows; ++i) {
    if (batch_.labels[i] == kernels::kNotTrained) continue;
    LH_CHECK(batch_.labels[i] >= 0 && batch_.labels[i] < vocab);
    rows[count_] = static_cast<int32_t>(i);
    labels[count_] = batch_.labels[i];
    ++count_;
  }
  sums_[static_cast<size_t>(index_)].targets = count_;
}

void CutCrossEntropy::Prepare(const TokenBatch& batch, int64_t index, double grad_scale) {
  LH_CHECK(index >= 0 && index < static_cast<int64_t>(sums_.size()));
  batch_ = batch;
  index_ = index;
  if (on_cpu_) {
    *grad_scale_ = grad_scale;
    return;
  }
  int32_t* const rows = host_rows_ + ops_.batch_slot() * PlannedRows(memory_.plan());
  int32_t* const labels = host_labels_ + ops_.batch_slot() * PlannedRows(memory_.plan());
  ListRows(rows, labels);
  // Rows that fill up the last call are the first one again, not trained.
  const int64_t padded = RoundUp(count_, row_unit_);
  std::fill(rows + count_, rows + padded, 0);
  std::fill(labels + count_, labels + padded, kernels::kNotTrained);
  exec_.Upload(rows_, rows, padded * 4);
  exec_.Upload(labels_, labels, padded * 4);
  exec_.Upload(grad_scale_, &grad_scale, sizeof(grad_scale));
}

void CutCrossEntropy::RunTile(const Tensor& x, int64_t begin, int64_t end, const Tensor& d_x) const {
  const ModelShape& s = memory_.plan().shape;
  const int64_t rows = RoundUp(end - begin, row_unit_);
  const Tensor gathered = x_.Rows(0, rows);
  const Tensor hidden = hidden_.Rows(0, rows);
  const Tensor rstd = rstd_.Rows(0, rows);
  kernels::GatherRows(exec_, x, rows_ + begin, gathered);
  kernels::RmsNorm(exec_, gathered, weights_.final_norm, s.rms_norm_eps, hidden, rstd);
  ops_.HeadLoss(hidden, labels_ + begin, d_x.data == nullptr ? nullptr : grad_scale_, &totals_[index_]);
  if (d_x.data == nullptr) return;
  kernels::RmsNormBackward(exec_, hidden, gathered, weights_.final_norm, rstd, false, hidden);
  kernels::ScatterRows(exec_, hidden.Rows(0, end - begin), rows_ + begin, d_x);
}

void CutCrossEntropy::Queue(const Tensor& x, const Tensor& d_x) {
  // On a CPU the lists lie where the forward pass was until now.
  if (on_cpu_) ListRows(host_rows_, host_labels_);
  if (d_x.data != nullptr && count_ < x.rows) kernels::Zero(exec_, d_x);
  ops_.BringHead();
  const int64_t tile = LossRows(memory_.plan());
  for (int64_t begin = 0; begin < count_; begin += tile) RunTile(x, begin, std::min(count_, begin + tile), d_x);
}

void CutCrossEntropy::QueueTotals(int64_t slot, int64_t count) {
  if (on_cpu_) return;
  exec_.Download(host_totals_ + slot * slot_totals_, totals_, count * static_cast<int64_t>(sizeof(LossTotals)));
}

const std::vector<LossSum>& CutCrossEntropy::Finish(int64_t count) {
  QueueTotals(0, count);
  exec_.Synchronize();
  for (int64_t i = 0; i < count; ++i) {
    sums_[static_cast<size_t>(i)].nats = host_totals_[i].nats;
    sums_[static_cast<size_t>(i)].correct = host_totals_[i].correct;
  }
  return sums_;
}

LossSum CutCrossEntropy::Run(const TokenBatch& batch, const Tensor& x, double grad_scale, const Tensor& d_x) {
  BeginWindow(1);
  Prepare(batch, 0, grad_scale);
  Queue(x, d_x);
  return Finish(1)[0];
}

Tensor CutCrossEntropy::Logits(const Tensor& x) const {
  const MemoryPlan& plan = memory_.plan();
  LH_CHECK(plan.device == DeviceKind::kCpu);
  const Tensor hidden = hidden_.Rows(0, x.rows);
  const Tensor logits = memory_.Matrix("loss.logits", plan.choices.loss_tile_rows, plan.shape.vocab).Rows(0, x.rows);
  kernels::RmsNorm(exec_, x, weights_.final_norm, plan.shape.rms_norm_eps, hidden, {});
  kernels::FrozenForward(exec_, hidden, weights_.head, 0, logits, memory_.GetOrNull("loss.scratch"));
  return logits;
}

}  // namespace longhaul::train
