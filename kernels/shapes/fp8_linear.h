// A frozen linear in FP8, by where its arrays lie in memory, and the products it takes part in.
//
//   y  = xq  Wq^T    xq [rows, in],   Wq [out, in]    a scale a token, a scale a row of W
//   dx = dyq Wtq^T   dyq [rows, out], Wtq [in, out]   a scale a token, a scale a column of W
//
// Hopper multiplies only operands that are contiguous along what is summed, so the backward product has a copy of W of
// its own, transposed, with scales of its own. LoRA's matrices stay in bf16, one block beside it:
//
//   sb [out, rank], contiguous, then a [rank, in]
//
// Pure arithmetic. Tests: tests/kernels/cuda/fp8_linear_test.cc.
#pragma once

#include <cstdint>

#include "kernels/shapes/gemm_shape.h"

namespace longhaul::kernels::cuda {

inline constexpr int64_t kFp8Unit = 16;         // sizes must be multiples of it: 16 bytes of E4M3
inline constexpr int64_t kFp8AlignBytes = 256;  // of every array

struct Fp8Linear {
  int64_t out = 0;
  int64_t in = 0;
  int64_t rank = 0;  // padded, stacked, as in lora_fold.h

  // Bytes from the first of the cache of both directions.
  int64_t forward_scale() const { return Up(out * in); }
  int64_t backward() const { return forward_scale() + Up(out * 4); }
  int64_t backward_scale() const { return backward() + Up(out * in); }
  int64_t cache_bytes() const { return backward_scale() + Up(in * 4); }
  // One direction alone, made when it is needed: values, then scales.
  int64_t one_way_bytes() const { return Up(out * in) + Up((out > in ? out : in) * 4); }
  // bf16 W [out, in], from which either is made.
  int64_t source_bytes() const { return out * in * 2; }

  // The adapter's block.
  int64_t a_offset_bytes() const { return Up(out * rank * 2); }
  int64_t adapter_bytes() const { return a_offset_bytes() + Up(rank * in * 2); }

  static int64_t Up(int64_t bytes) { return (bytes + kFp8AlignBytes - 1) / kFp8AlignBytes * kFp8AlignBytes; }
};

// `rows` tokens of `cols` elements: values, then scales from Fp8RowsScale on.
inline int64_t Fp8RowsScale(int64_t rows, int64_t cols) { return Fp8Linear::Up(rows * cols); }
inline int64_t Fp8RowsBytes(int64_t rows, int64_t cols) { return Fp8RowsScale(rows, cols) + Fp8Linear::Up(rows * 4); }

// bf16 results at y_stride or dx_stride; `accumulate` adds to what is there. Operands: xq, Wq, y; dyq, Wtq, dx.
// Partial sums are the tensor cores' fast ones, of 14 bits: far finer than E4M3's own 4.
GemmShape Fp8Forward(const Fp8Linear& linear, int64_t rows, int64_t y_stride, bool accumulate);
GemmShape Fp8Backward(const Fp8Linear& linear, int64_t rows, int64_t dx_stride, bool accumulate);

}  // namespace longhaul::kernels::cuda
