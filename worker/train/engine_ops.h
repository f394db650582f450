// The parts of a step that backends do in their own way: linears with LoRA, attention, the loss through the head, and
// where a micro-batch lies. Everything else is an op of kernels/ops.h, called with buffers that the plan lays out.
// CPU: cpu_ops.{h,cc}. CUDA: cuda_ops.{h,cc}. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/exec.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "worker/train/adapter.h"
#include "worker/train/grouped_ops.h"
#include "worker/train/memory.h"
#include "worker/train/token_batch.h"
#include "worker/train/weights.h"

namespace longhaul::train {

// A frozen linear with LoRA: y = x W^T + s (x A^T) B^T per target. Several targets may share the linear (q,k,v;
// gate,up): W is then their rows one below the other, the A's are stacked.
struct QloraLinear {
  kernels::FrozenWeight w;  // CPU
  const LoraGroup* lora = nullptr;
  int64_t layer = 0;
  FusedLinear linear = FusedLinear::kQkv;
};

// Which module's mask it is: its key is CounterBits(key of the micro-batch, this), on every backend.
inline uint64_t DropoutNumber(int64_t layer, LoraTarget target) {
  return static_cast<uint64_t>(layer) * kLoraTargets + static_cast<uint64_t>(target);
}

class EngineOps {
 public:
  virtual ~EngineOps() = default;

  // Dropout of the following passes; 0 for evaluation. The same key drops the same elements on every backend.
  virtual void SetDropout(double probability, uint64_t key) = 0;

  // The batch with ids and positions in the Exec's memory, filled up to PlannedRows' unit by a document of its own;
  // labels stay in host memory, for the first of its rows. Valid until the next call. Attention is of this batch from
  // now on.
  virtual TokenBatch Bring(const TokenBatch& batch) = 0;

  // Which of two is the memory that what belongs to the batch last brought is uploaded from. It is free to be written
  // until Queue of the forward pass, from then on the device may read it until the batch after the next one is brought.
  // (A pass outside Queue, and CutCrossEntropy::Run, are waited for before that.)
  virtual int64_t batch_slot() const { return 0; }

  // The parts of a micro-batch whose work depends on their rows alone (and on whether attention is dense): on CUDA each
  // is replayed as a graph where it came before with as many rows (worker/train/graph_cache.h). What else differs
  // between micro-batches is read from the Exec's memory.
  enum class Part { kForward, kLoss, kBackward };
  // Runs body, which queues `part` for the batch last brought, or what it queued before. `rows`: of the brought batch;
  // of the loss, those that its calls take. False where body said so.
  virtual bool Queue(Part part, int64_t rows, absl::FunctionRef<bool()> body) = 0;

  // Between the two nothing that was chosen for a number of rows is run, only chosen: products, and the loss. Returns
  // what cannot be. Whatever else the passes between do is done, to activations that mean nothing. CPU: nothing is
  // chosen, and nobody asks.
  virtual void BeginRehearsal() {}
  virtual absl::Status EndRehearsal() { return absl::OkStatus(); }

  // After every change of the adapter's masters.
  virtual void AdapterChanged() = 0;

  // What is queued between the two is step `number`; numbers are consecutive. WaitForStep returns when all of it is
  // done; then SecondsSinceStepBefore is the device's time from the end of the step before, queued without a pause
  // between, to its end. Both until the step after the next one ends. CPU: nothing of it.
  virtual void BeginStep(int64_t /*number*/) {}
  virtual void EndStep(int64_t /*number*/) {}
  virtual void WaitForStep(int64_t /*number*/) {}
  virtual double SecondsSinceStepBefore(int64_t /*number*/) { return 0; }

  // What is queued between the two is a part of a step that a profile tells of (CUDA): "optimizer", "copies".
  virtual void BeginPart(const char* /*part*/) {}
  virtual void EndPart() {}

  // y = x W^T, plus `residual` where its data is not null; then y[:, target] += s u_target B^T. Writes u = x A^T.
  // Shapes: x [rows, in]; residual, y [rows, out]; u [rows, columns of its field]. `first_row` is the row's number in
  // the micro-batch.
  virtual void Forward(const QloraLinear& linear, const kernels::Tensor& x, int64_t first_row,
                       const kernels::Tensor& residual, const kernels::Tensor& y, const kernels::Tensor& u) = 0;
  // u = x A^T alone (down's input exists only in tiles: its u is made again in the backward pass).
  virtual void Input(const QloraLinear& linear, const kernels::Tensor& x, int64_t first_row,
                     const kernels::Tensor& u) = 0;
  // v = s dy B, kept until the next call; and where dx.data is not null dx = dy W + v A.
  virtual void BackwardInput(const QloraLinear& linear, const kernels::Tensor& dy, int64_t first_row,
                             const kernels::Tensor& dx) = 0;
  // grad_B += s dy^T u; grad_A += v^T x. REQUIRES: BackwardInput of the same dy was the last call of this linear.
  virtual void Gradients(const QloraLinear& linear, const kernels::Tensor& dy, const kernels::Tensor& x,
                         int64_t first_row, const kernels::Tensor& u) = 0;

  // The residual streams where they do not all stay (the plan's host_checkpoints). Of x_l, from the decoder: it is
  // about to be written, or read by layer l's backward pass; it has been written.
  virtual void BeginStream(int64_t l, bool written) = 0;
  virtual void StreamWritten(int64_t l) = 0;

  // Causal attention within the batch's documents; q, k, v are column ranges of one buffer, after RoPE.
  virtual void AttentionForward(const kernels::Tensor& q, const kernels::Tensor& k, const kernels::Tensor& v,
                                const kernels::Tensor& o, const kernels::Tensor& lse) = 0;
  virtual void AttentionBackward(const kernels::Tensor& d_o, const kernels::Tensor& q, const kernels::Tensor& k,
                                 const kernels::Tensor& v, const kernels::Tensor& o, const kernels::Tensor& lse,
                                 const kernels::Tensor& dq, const kernels::Tensor& dk, const kernels::Tensor& dv) = 0;

  // Attention a group of heads at a time; null where the plan has no such.
  virtual GroupedOps* grouped() { return nullptr; }

  // The head to where HeadLoss reads it, before the first of a micro-batch.
  virtual void BringHead() {}
  // Adds the loss of hidden [rows, hidden] (after the last norm; at most LossRows) to *totals. Where grad_scale is not
  // null, d_hidden [rows, hidden] Stat becomes the gradient; its rows begin where hidden's do. labels, grad_scale and
  // totals in the Exec's memory.
  virtual void HeadLoss(const kernels::Tensor& hidden, const int32_t* labels, const double* grad_scale,
                        kernels::LossTotals* totals, const kernels::Tensor& d_hidden) = 0;

  // What decides the bits besides the plan: CPU or device, libraries and the kernels chosen.
  virtual std::string Describe() const = 0;
};

// All arguments outlive it. Errors: of the CUDA libraries (kernels/cuda/cuda_engine.h); PLAN_MISMATCH.
absl::StatusOr<std::unique_ptr<EngineOps>> CreateOps(const EngineMemory& memory, const kernels::Exec& exec,
                                                     const ModelWeights& weights, const Adapter& adapter,
                                                     double lora_scale);

}  // namespace longhaul::train
