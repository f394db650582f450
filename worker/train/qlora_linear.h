// A frozen linear with LoRA: y = x W^T + s (x A^T) B^T per target, and its backward pass.
// Several targets may share the linear (q,k,v; gate,up): W is then their rows one below the other, the A's are stacked.
#pragma once

#include "kernels/exec.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "worker/train/adapter.h"

namespace longhaul::train {

// What every call of a micro-batch shares.
struct LinearContext {
  const kernels::Exec* exec = nullptr;
  void* gemm_scratch = nullptr;
  double lora_scale = 1;         // s = alpha / r, or alpha / sqrt(r)
  double dropout = 0;            // of the input of the LoRA branch, per target, as PEFT does
  uint64_t dropout_key = 0;      // of this micro-batch
  kernels::Tensor dropout_tile;  // [tile rows, widest input]; data is null without dropout
};

struct QloraLinear {
  kernels::FrozenWeight w;
  const LoraGroup* lora = nullptr;
  int64_t layer = 0;  // part of the dropout key
};

// y = beta * y + x W^T, then y[:, target] += s u_target B^T. Writes u = x A^T.
// Shapes: x [rows, in]; y [rows, out]; u [rows, count * rank]. `first_row` is the row's number in the micro-batch.
void QloraForward(const LinearContext& context, const QloraLinear& linear, const kernels::Tensor& x, int64_t first_row,
                  double beta, const kernels::Tensor& y, const kernels::Tensor& u);

// v = s dy B; grad_B += s dy^T u; grad_A += v^T x; and where dx.data is not null dx = beta * dx + dy W + v A.
// Shapes: dy [rows, out]; x, dx [rows, in]; u, v [rows, count * rank]; v is scratch.
void QloraBackward(const LinearContext& context, const QloraLinear& linear, const kernels::Tensor& dy,
                   const kernels::Tensor& x, int64_t first_row, const kernels::Tensor& u, const kernels::Tensor& v,
                   double beta, const kernels::Tensor& dx);

// u = x A^T alone (down's input exists only in tiles: its u is made again in the backward pass).
void LoraInput(const LinearContext& context, const QloraLinear& linear, const kernels::Tensor& x, int64_t first_row,
               const kernels::Tensor& u);

}  // namespace longhaul::train
