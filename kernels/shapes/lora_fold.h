// A frozen linear and its adapter as one matrix product (y = x W^T + s (x A^T) B^T), by where operands lie in memory.
// Pure arithmetic of shapes and offsets; LtGemm runs them.
//
// weight [out + rank, weight_stride] bf16, one buffer for both directions and both foldings:
//
//            in     rank
//         +-------+-----+----
//     out |   W   | s B | -      W [out, in], frozen; s B [out, rank], rounded once from f32
//         +-------+-----+----
//    rank |   A   |  -  | -      A [rank, in]; "-" is never read
//         +-------+-----+----
//
// x  [rows, x_stride]:  columns [0, in) the input, [in, in + rank) u = x A^T.
// dy [rows, y_stride]:  columns [0, out) the gradient, [out, out + rank) v = s dy B. y itself needs the last columns
// only
//                       where it is N-augmented.
//
//   K-augmented   u = x A^T,  y = [x, u] [W, sB]^T        backward  v = dy (sB),  dx = [dy, v] [W; A]
//   N-augmented   [y, u] = x [W; A]^T, and s u B^T is added by the kernel that reads y; backward as above
//   separate      y = x W^T,  u = x A^T,  y += u (sB)^T   backward  dx = dy W,  v = dy (sB),  dx += v A
//   gradients     dA += v^T x,  dB += s dy^T u            f32; s is applied in f32 here, not taken from the rounded sB
//
// Linears that share their input (q, k, v; gate, up) are one fold: W, A and y stacked by rows, rank the sum of theirs,
// B block-diagonal with zeros between the blocks. Ranks are padded to 8 with zero rows of A and zero columns of B, so
// every product's sizes are exact and no padding is ever read: what lies between columns used and the stride may be
// anything, NaN included.
// Tests: tests/kernels/cuda/lora_fold_test.cc (CPU: the products by a plain GEMM), lt_gemm_test.cc (device).
#pragma once

#include <cstdint>

#include "kernels/shapes/gemm_shape.h"

namespace longhaul::kernels::cuda {

struct LoraFold {
  int64_t out = 0;
  int64_t in = 0;
  int64_t rank = 0;  // padded, stacked
  int64_t weight_stride = 0;
  int64_t x_stride = 0;
  int64_t y_stride = 0;  // of y, dy and dx's producer alike
  int64_t dx_stride = 0;

  // Where parts begin, in elements from the buffer's first.
  int64_t sb_offset() const { return in; }
  int64_t a_offset() const { return out * weight_stride; }
  int64_t u_offset() const { return in; }
  int64_t v_offset() const { return out; }
  int64_t weight_bytes() const { return (out + rank) * weight_stride * 2; }
};

inline constexpr int64_t kLoraRankUnit = 8;     // ranks are padded to it: 16 bytes of bf16
inline constexpr int64_t kLoraStrideUnit = 64;  // strides of augmented rows: 128 bytes

// Columns of u and v that one target has.
constexpr int64_t PaddedLoraRank(int64_t rank) { return (rank + kLoraRankUnit - 1) / kLoraRankUnit * kLoraRankUnit; }

// `rank`: the sum of the stacked linears' ranks, each a PaddedLoraRank. Strides: the least, of kLoraStrideUnit.
// Rank 0 is a linear without an adapter: K- and base products are the same. REQUIRES: out, in multiples of 8, rank of
// kLoraRankUnit.
LoraFold MakeLoraFold(int64_t out, int64_t in, int64_t rank);

// Shapes for `rows` rows. Operands a, b, c are named behind each.
GemmShape LoraDown(const LoraFold& fold, int64_t rows);           // x, A, u
GemmShape LoraKForward(const LoraFold& fold, int64_t rows);       // [x, u], [W, sB], y
GemmShape LoraNForward(const LoraFold& fold, int64_t rows);       // x, [W; A], [y, u]
GemmShape LoraBaseForward(const LoraFold& fold, int64_t rows);    // x, W, y
GemmShape LoraUpAdd(const LoraFold& fold, int64_t rows);          // u, sB, y += (u of the x buffer)
GemmShape LoraBackwardDown(const LoraFold& fold, int64_t rows);   // dy, sB, v
GemmShape LoraKBackward(const LoraFold& fold, int64_t rows);      // [dy, v], [W; A], dx
GemmShape LoraBaseBackward(const LoraFold& fold, int64_t rows);   // dy, W, dx
GemmShape LoraBackwardUpAdd(const LoraFold& fold, int64_t rows);  // v, A, dx +=
// f32 gradients, contiguous; `accumulate` adds to what is there.
GemmShape LoraGradA(const LoraFold& fold, int64_t rows, bool accumulate);  // v, x, dA [rank, in]
GemmShape LoraGradB(const LoraFold& fold, int64_t rows, bool accumulate);  // dy, u, dB [out, rank]; alpha = s

}  // namespace longhaul::kernels::cuda
