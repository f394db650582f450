// E4M3 operands for FP8 products, with a scale a row: values of a row are its elements over amax / 448, rounded to
// nearest even, so that its largest is the largest E4M3 value. Rows are what a product sums along (lt_gemm.h,
// GemmScale::kRow). Queued on the stream; throw CudaError. Tests: tests/kernels/cuda/fp8_quantise_test.cc.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace longhaul::kernels::cuda {

inline constexpr float kE4M3Max = 448;

// x [rows, cols] bf16, x_stride from row to row; q [rows, cols] E4M3; scale [rows] f32. A row of zeros has scale 1. A
// row with a NaN or an infinity has a NaN scale, so that every result of it is NaN. Strides: x of 8, q of 16 elements
// or anything (then slower).
void QuantiseRows(cudaStream_t stream, const void* x, int64_t x_stride, int64_t rows, int64_t cols, void* q,
                  int64_t q_stride, float* scale);

// The transpose, for the backward product of a frozen weight (Hopper multiplies only operands that are contiguous along
// k): q [cols, rows], scale [cols]: a scale a column of x. Done once a weight.
void QuantiseTransposed(cudaStream_t stream, const void* x, int64_t x_stride, int64_t rows, int64_t cols, void* q,
                        int64_t q_stride, float* scale);

}  // namespace longhaul::kernels::cuda
