// Cut cross entropy over a micro-batch: the trained rows are gathered, LossRows at a time, normed, turned into their
// gradients by the head (EngineOps::HeadLoss) and scattered back. Nothing of size tokens x vocabulary exists; rows that
// are not trained cost nothing. What the head's gradient is stays unrounded until it is that of x: an error here is one
// of every gradient of the step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/exec.h"
#include "worker/train/engine_ops.h"
#include "worker/train/memory.h"
#include "worker/train/step_scalars.h"
#include "worker/train/token_batch.h"
#include "worker/train/weights.h"

namespace longhaul::train {

struct LossSum {
  double nats = 0;  // sum over trained targets of -log p(target)
  int64_t targets = 0;
  int64_t correct = 0;  // targets that are the argmax
};

class CutCrossEntropy {
 public:
  // All arguments outlive the loss.
  CutCrossEntropy(const EngineMemory& memory, const kernels::Exec& exec, EngineOps* ops, const ModelWeights& weights);

  // In parts, so that nothing waits between micro-batches and what does not differ between them can be captured.
  // (1) The numbers of a window of `micro_batches` become zero in `slot`, below kStepSlots, which nothing queued fills
  // any more. CUDA: at most the plan's accumulation steps.
  void BeginWindow(int64_t slot, int64_t micro_batches);
  // (2) Which rows of a micro-batch are trained. `batch`: as the source gave it, valid until (3) is done. A label
  // outside the vocabulary (other than -100) is a CHECK.
  void Prepare(const TokenBatch& batch, double grad_scale);
  // (3) x [rows, hidden]: the last layer's output, before the final norm. Where d_x.data is not null:
  // d_x = grad_scale * d(sum of nats) / dx, zero in rows that are not trained. d_x may not alias x. grad_scale > 0
  // then. CUDA: behind both is memory of PlannedRows rows then, as the decoder's is.
  void Queue(const kernels::Tensor& x, const kernels::Tensor& d_x);
  // (4) Optional, after the backward pass: counts what of the window's gradient is not finite.
  void QueueGradientCheck(const kernels::Tensor& gradient);
  // (5) Queues the copy of the micro-batch's numbers to place `index` of the window in `slot`; when that is done
  // NumbersOf are there, the others' of the window being zero.
  void QueueNumbers(int64_t slot, int64_t index);
  const MicroBatchNumbers& NumbersOf(int64_t slot, int64_t index) const {
    return host_numbers_[slot * slot_numbers_ + index];
  }

  // All of it but (4) for one micro-batch; waits. Fills slot 0.
  LossSum Run(const TokenBatch& batch, const kernels::Tensor& x, double grad_scale, const kernels::Tensor& d_x);

  // Logits [rows, vocab] of rows of x, into the loss tile. CPU. REQUIRES: rows <= the plan's loss tile.
  kernels::Tensor Logits(const kernels::Tensor& x) const;

 private:
  // Which rows of the batch are trained, and their targets; filled up to a multiple of row_unit_.
  void ListRows(int32_t* rows, int32_t* labels);
  void RunTile(const kernels::Tensor& x, int64_t begin, int64_t end, const kernels::Tensor& d_x) const;

  const EngineMemory& memory_;
  const kernels::Exec& exec_;
  EngineOps& ops_;
  const ModelWeights& weights_;
  int64_t row_unit_;  // calls of the head have a multiple of so many rows
  bool on_cpu_;
  // In host memory, [rows] a slot (EngineOps::batch_slot). CPU: the Exec's own.
  int32_t* host_rows_;
  int32_t* host_labels_;
  // In the Exec's memory, regions of the plan at their full size.
  int32_t* rows_;             // [rows]
  int32_t* labels_;           // [rows]
  kernels::Tensor hidden_;    // [LossRows, hidden]
  kernels::Tensor d_hidden_;  // [LossRows, hidden] Stat; a row lies where hidden_'s did
  kernels::Tensor rstd_;      // [LossRows, 1]
  double* grad_scale_;
  MicroBatchNumbers* numbers_;       // of the micro-batch at hand
  MicroBatchNumbers* host_numbers_;  // [kStepSlots][accumulation steps]; CPU: one slot
  int64_t slot_numbers_ = 0;         // micro-batches of a slot; CPU: 0
  std::vector<MicroBatchNumbers> cpu_numbers_;
  MicroBatchNumbers cpu_micro_batch_;
  double cpu_grad_scale_ = 0;
  int64_t count_ = 0;         // trained rows of the batch last prepared
  int64_t padded_count_ = 0;  // and rows that calls of the head take
  TokenBatch batch_;
};

}  // namespace longhaul::train
