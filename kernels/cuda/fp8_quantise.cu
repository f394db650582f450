// scale = amax / 448, q = x / scale in E4M3.
#include <cuda_fp8.h>

#include "kernels/cuda/fp8_quantise.h"
#include "kernels/cuda/launch_on.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace longhaul::kernels::cuda {
namespace {

constexpr char kOp[] = "Quantise";

constexpr int kThreads = 256;
constexpr int kTile = 32;  // of the transpose
using E4M3 = __nv_fp8_e4m3;

// Not finite in, NaN out: fmaxf would pass over a NaN.
__device__ float Worse(float amax, float x) { return isfinite(x) ? fmaxf(amax, fabsf(x)) : __int_as_float(0x7fffffff); }
struct WorseOf {
  __device__ float operator()(float a, float b) const { return isnan(a) || isnan(b) ? a + b : fmaxf(a, b); }
};

// Not below what keeps 1 / scale finite.
__device__ float ScaleOf(float amax) {
  if (amax == 0) return 1;
  return (amax < 0x1p-100f ? 0x1p-100f : amax) / kE4M3Max;
}

// A block a row, kCount elements at a time. The second pass reads what the first left in the caches.
template <int kCount>
__global__ void __launch_bounds__(kThreads)
    RowsKernel(const Bf16* x, int64_t x_stride, int64_t cols, E4M3* q, int64_t q_stride, float* scales) {
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const Bf16* const from = x + row * x_stride;
  float amax = 0;
  for (int64_t col = static_cast<int64_t>(threadIdx.x) * kCount; col < cols; col += kThreads * kCount) {
    const auto pack = Load<kCount>(from + col);
#pragma unroll
    for (int i = 0; i < kCount; ++i) amax = isnan(amax) ? amax : Worse(amax, pack[i]);
  }
  amax = ReduceBlock(amax, shared, 0.0f, WorseOf());
  const float scale = ScaleOf(amax), inverse = 1 / scale;
  if (threadIdx.x == 0) scales[row] = scale;
  for (int64_t col = static_cast<int64_t>(threadIdx.x) * kCount; col < cols; col += kThreads * kCount) {
    const auto pack = Load<kCount>(from + col);
    Pack<E4M3, kCount> out;
#pragma unroll
    for (int i = 0; i < kCount; ++i) out.values[i] = E4M3(pack[i] * inverse);
    *reinterpret_cast<Pack<E4M3, kCount>*>(q + row * q_stride + col) = out;
  }
}

// A block kTile columns, all rows: the columns' largest, then the transpose in tiles.
__global__ void __launch_bounds__(kTile* kTile)
    TransposedKernel(const Bf16* x, int64_t x_stride, int64_t rows, int64_t cols, E4M3* q, int64_t q_stride,
                     float* scales) {
  __shared__ float tile[kTile][kTile + 1];
  __shared__ float scale_of[kTile];
  const int lane = threadIdx.x % kTile, line = threadIdx.x / kTile;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kTile + lane;
  float amax = 0;
  if (col < cols) {
    for (int64_t row = line; row < rows; row += kTile) {
      amax = isnan(amax) ? amax : Worse(amax, ToFloat(x[row * x_stride + col]));
    }
  }
  tile[line][lane] = amax;
  __syncthreads();
  if (line == 0) {
    for (int i = 1; i < kTile; ++i) amax = WorseOf()(amax, tile[i][lane]);
    scale_of[lane] = ScaleOf(amax);
    if (col < cols) scales[col] = scale_of[lane];
  }
  const int64_t out_row = static_cast<int64_t>(blockIdx.x) * kTile + line;
  for (int64_t first = 0; first < rows; first += kTile) {
    __syncthreads();
    if (first + line < rows && col < cols) tile[line][lane] = ToFloat(x[(first + line) * x_stride + col]);
    __syncthreads();
    if (first + lane < rows && out_row < cols) {
      q[out_row * q_stride + first + lane] = E4M3(tile[lane][line] * (1 / scale_of[line]));
    }
  }
}

bool IsMultiple(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace

void QuantiseRows(cudaStream_t stream, const void* x, int64_t x_stride, int64_t rows, int64_t cols, void* q,
                  int64_t q_stride, float* scale) {
  constexpr int kVector = VectorOf<Bf16>();
  const bool vectors = cols % kVector == 0 && x_stride % kVector == 0 && q_stride % kVector == 0 &&
                       IsMultiple(x, kVectorBytes) && IsMultiple(q, kVector);
  LaunchOn(stream, kOp, vectors ? RowsKernel<kVector> : RowsKernel<1>, rows, kThreads, 0, static_cast<const Bf16*>(x),
           x_stride, cols, static_cast<E4M3*>(q), q_stride, scale);
}

void QuantiseTransposed(cudaStream_t stream, const void* x, int64_t x_stride, int64_t rows, int64_t cols, void* q,
                        int64_t q_stride, float* scale) {
  LaunchOn(stream, kOp, TransposedKernel, (cols + kTile - 1) / kTile, kTile * kTile, 0, static_cast<const Bf16*>(x),
           x_stride, rows, cols, static_cast<E4M3*>(q), q_stride, scale);
}

}  // namespace longhaul::kernels::cuda
