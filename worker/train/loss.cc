#include "worker/train/loss.h"

#include <algorithm>

#include "kernels/ops.h"
#include "model/cuda_layout.h"

namespace longhaul::train {

using kernels::Tensor;

CutCrossEntropy::CutCrossEntropy(const EngineMemory& memory, const kernels::Exec& exec, EngineOps* ops,
                                 const ModelWeights& weights)
    : memory_(memory), exec_(exec), ops_(*ops), weights_(weights) {
  const MemoryPlan& plan = memory.plan();
  const int64_t n = PlannedRows(plan), rows = LossRows(plan);
  rows_ = memory.Int32s("loss.rows", n);
  labels_ = memory.Int32s("loss.labels", n);
  d_hidden_ = memory.StatMatrix("loss.hidden", rows, plan.shape.hidden);
  hidden_ = d_hidden_;
  hidden_.dtype = memory.dtype();
  hidden_.stride *= kernels::DTypeBytes(memory.stat_dtype()) / kernels::DTypeBytes(memory.dtype());
  rstd_ = memory.StatMatrix("loss.rstd", rows, 1);
  on_cpu_ = plan.device == DeviceKind::kCpu;
  if (!on_cpu_) {
    row_unit_ = kCudaRowUnit;
    host_rows_ = memory.Int32s("loss.rows.host", kStepSlots * n);
    host_labels_ = memory.Int32s("loss.labels.host", kStepSlots * n);
    slot_numbers_ = plan.train.accumulation_steps;
    grad_scale_ = &ScalarsOf(memory)->grad_scale;
    numbers_ = &ScalarsOf(memory)->micro_batch;
    host_numbers_ = static_cast<MicroBatchNumbers*>(memory.GetOrNull("loss.numbers.host"));
  } else {
    row_unit_ = 1;
    host_rows_ = rows_;
    host_labels_ = labels_;
    grad_scale_ = &cpu_grad_scale_;
    numbers_ = &cpu_micro_batch_;
    cpu_numbers_.resize(static_cast<size_t>(plan.train.accumulation_steps));
    host_numbers_ = cpu_numbers_.data();
  }
}

void CutCrossEntropy::BeginWindow(int64_t slot, int64_t micro_batches) {
  if (on_cpu_) {
    cpu_numbers_.resize(std::max(cpu_numbers_.size(), static_cast<size_t>(micro_batches)));
    host_numbers_ = cpu_numbers_.data();
  }
  LH_CHECK(on_cpu_ || micro_batches <= slot_numbers_, std::to_string(micro_batches) + " micro-batches");
  std::fill_n(host_numbers_ + slot * slot_numbers_, micro_batches, MicroBatchNumbers{});
}

void CutCrossEntropy::ListRows(int32_t* rows, int32_t* labels) {
  const int64_t vocab = memory_.plan().shape.vocab;
  int64_t spare = batch_.rows;  // of a row that is not trained
  count_ = 0;
  for (int64_t i = 0; i < batch_.rows; ++i) {
    if (batch_.labels[i] == kernels::kNotTrained) {
      spare = std::min(spare, i);
      continue;
    }
    LH_CHECK(batch_.labels[i] >= 0 && batch_.labels[i] < vocab);
    rows[count_] = static_cast<int32_t>(i);
    labels[count_] = batch_.labels[i];
    ++count_;
  }
  // What fills up the last call is a row that is not trained, again and again: its gradient is written so often, and is
  // zero. Were all rows of the batch trained, there is one that EngineOps::Bring filled it up with.
  padded_count_ = RoundUp(count_, row_unit_);
  LH_CHECK(padded_count_ == count_ || spare < RoundUp(batch_.rows, row_unit_));
  std::fill(rows + count_, rows + padded_count_, static_cast<int32_t>(spare));
  std::fill(labels + count_, labels + padded_count_, kernels::kNotTrained);
}

void CutCrossEntropy::Prepare(const TokenBatch& batch, double grad_scale) {
  batch_ = batch;
  if (on_cpu_) {
    *grad_scale_ = grad_scale;
    return;
  }
  int32_t* const rows = host_rows_ + ops_.batch_slot() * PlannedRows(memory_.plan());
  int32_t* const labels = host_labels_ + ops_.batch_slot() * PlannedRows(memory_.plan());
  ListRows(rows, labels);
  exec_.Upload(rows_, rows, padded_count_ * 4);
  exec_.Upload(labels_, labels, padded_count_ * 4);
  exec_.Upload(grad_scale_, &grad_scale, sizeof(grad_scale));
}

void CutCrossEntropy::RunTile(const Tensor& x, int64_t begin, int64_t end, const Tensor& d_x) const {
  const ModelShape& s = memory_.plan().shape;
  const int64_t rows = end - begin;
  const Tensor hidden = hidden_.Rows(0, rows);
  const Tensor d_hidden = d_hidden_.Rows(0, rows);
  const Tensor rstd = rstd_.Rows(0, rows);
  kernels::GatherRows(exec_, x, rows_ + begin, hidden);
  kernels::RmsNorm(exec_, hidden, weights_.final_norm, s.rms_norm_eps, hidden, rstd);
  ops_.HeadLoss(hidden, labels_ + begin, d_x.data == nullptr ? nullptr : grad_scale_, &numbers_->loss, d_hidden);
  if (d_x.data == nullptr) return;
  kernels::RmsNormBackwardRows(exec_, d_hidden, x, weights_.final_norm, rstd, rows_ + begin, d_x);
}

void CutCrossEntropy::Queue(const Tensor& x, const Tensor& d_x) {
  // On a CPU the lists lie where the forward pass was until now.
  if (on_cpu_) ListRows(host_rows_, host_labels_);
  if (d_x.data != nullptr && count_ < x.rows) kernels::Zero(exec_, d_x);
  Tensor from = x, to = d_x;
  // What is captured with this micro-batch's rows is replayed with others', which may be more.
  if (!on_cpu_ && d_x.data != nullptr) from.rows = to.rows = PlannedRows(memory_.plan());
  const auto tiles = [&] {
    kernels::Zero(exec_, kernels::MakeTensor(numbers_, kernels::DType::kU8, 1, sizeof(MicroBatchNumbers)));
    ops_.BringHead();
    const int64_t tile = LossRows(memory_.plan());
    for (int64_t begin = 0; begin < padded_count_; begin += tile) {
      RunTile(from, begin, std::min(padded_count_, begin + tile), to);
    }
    return true;
  };
  // A loss alone is waited for, and queued as it is.
  if (d_x.data == nullptr) {
    tiles();
  } else {
    ops_.Queue(EngineOps::Part::kLoss, padded_count_, tiles);
  }
}

void CutCrossEntropy::QueueGradientCheck(const Tensor& gradient) {
  kernels::CountNonFinite(exec_, gradient, &numbers_->non_finite_gradients);
}

void CutCrossEntropy::QueueNumbers(int64_t slot, int64_t index) {
  MicroBatchNumbers* const to = host_numbers_ + slot * slot_numbers_ + index;
  if (on_cpu_) {
    *to = *numbers_;
  } else {
    exec_.Download(to, numbers_, sizeof(MicroBatchNumbers));
  }
}

LossSum CutCrossEntropy::Run(const TokenBatch& batch, const Tensor& x, double grad_scale, const Tensor& d_x) {
  BeginWindow(0, 1);
  Prepare(batch, grad_scale);
  Queue(x, d_x);
  QueueNumbers(0, 0);
  exec_.Synchronize();
  const kernels::LossTotals& loss = NumbersOf(0, 0).loss;
  return {loss.nats, count_, loss.correct};
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
