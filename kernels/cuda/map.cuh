// One pass over a matrix: a body loads operands of a vector, then stores its results. Every thread loads kUnroll
// vectors before it stores the first, so that enough loads are in flight.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"

namespace longhaul::kernels::cuda {

constexpr int kMapThreads = 256;
constexpr int kMapUnroll = 4;
// Vectors of one launch: 32-bit arithmetic counts them. Longer matrices are cut into launches by rows.
constexpr int64_t kMapMaxVectors = int64_t{1} << 30;

// Body has: template <int kCount> struct Operands; Load<kCount>(row, col, Operands*); Store<kCount>(row, col,
// Operands).
template <int kCount, typename Body>
__global__ void __launch_bounds__(kMapThreads)
    MapKernel(Body body, int64_t first_row, uint32_t vectors, uint32_t vectors_per_row) {
  typename Body::template Operands<kCount> operands[kMapUnroll];
  const uint32_t first = blockIdx.x * (kMapThreads * kMapUnroll) + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kMapUnroll; ++u) {
    const uint32_t index = first + u * kMapThreads;
    if (index >= vectors) continue;
    const uint32_t row = index / vectors_per_row;
    body.template Load<kCount>(first_row + row, int64_t{index - row * vectors_per_row} * kCount, &operands[u]);
  }
#pragma unroll
  for (int u = 0; u < kMapUnroll; ++u) {
    const uint32_t index = first + u * kMapThreads;
    if (index >= vectors) continue;
    const uint32_t row = index / vectors_per_row;
    body.template Store<kCount>(first_row + row, int64_t{index - row * vectors_per_row} * kCount, operands[u]);
  }
}

template <int kCount, typename Body>
void MapRows(const Exec& exec, const char* op, int64_t rows, int64_t cols, const Body& body) {
  if (rows == 0 || cols == 0) return;
  const int64_t vectors_per_row = cols / kCount;
  LH_CHECK(vectors_per_row <= kMapMaxVectors, std::to_string(cols));
  const int64_t rows_per_launch = kMapMaxVectors / vectors_per_row;
  for (int64_t row = 0; row < rows; row += rows_per_launch) {
    const int64_t vectors = std::min(rows_per_launch, rows - row) * vectors_per_row;
    Launch(exec, op, MapKernel<kCount, Body>, CeilDiv(vectors, kMapThreads * kMapUnroll), kMapThreads, 0, body, row,
           vectors, vectors_per_row);
  }
}

// Over rows x cols, in vectors of kCount where all tensors that the body touches allow it, else element by element.
template <int kCount, typename Body>
void Map(const Exec& exec, const char* op, int64_t rows, int64_t cols, std::initializer_list<Tensor> tensors,
         const Body& body) {
  if (Vectorizable(kCount, tensors)) {
    MapRows<kCount>(exec, op, rows, cols, body);
  } else {
    MapRows<1>(exec, op, rows, cols, body);
  }
}

}  // namespace longhaul::kernels::cuda
