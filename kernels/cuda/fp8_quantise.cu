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

// Packs that a thread keeps between the two passes; wider rows take RowsKernel.
constexpr int kHeld = 4;
constexpr int kMaxThreads = 1024;
constexpr int kVector = VectorOf<Bf16>();

// Magnitudes of bf16 are ordered as their bits, infinities and NaN above all others.
constexpr uint32_t kMagnitudes = 0x7fff7fff, kInfinity = 0x7f80;
struct LargestBits {
  __device__ uint32_t operator()(uint32_t a, uint32_t b) const { return __vmaxu2(a, b); }
};
__device__ float AmaxOf(uint32_t pair) {
  const uint32_t bits = max(pair & 0xffffu, pair >> 16);
  return __uint_as_float(bits >= kInfinity ? 0x7fffffffu : bits << 16);
}

// A block a row, the row in registers. Each block is as large as the row is wide, so that all loads are in flight.
__global__ void __launch_bounds__(kMaxThreads)
    HeldRowsKernel(const Bf16* x, int64_t x_stride, int cols, E4M3* q, int64_t q_stride, float* scales) {
  __shared__ uint32_t shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const Bf16* const from = x + row * x_stride;
  const int first = static_cast<int>(threadIdx.x) * kVector, step = static_cast<int>(blockDim.x) * kVector;
  uint4 held[kHeld];
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    held[p] = make_uint4(0, 0, 0, 0);
    if (first + p * step < cols) held[p] = *reinterpret_cast<const uint4*>(from + first + p * step);
  }
  uint32_t most = 0;
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    const uint32_t low = __vmaxu2(held[p].x & kMagnitudes, held[p].y & kMagnitudes);
    const uint32_t high = __vmaxu2(held[p].z & kMagnitudes, held[p].w & kMagnitudes);
    most = __vmaxu2(most, __vmaxu2(low, high));
  }
  const float scale = ScaleOf(AmaxOf(ReduceBlock(most, shared, 0u, LargestBits()))), inverse = 1 / scale;
  if (threadIdx.x == 0) scales[row] = scale;
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    if (first + p * step >= cols) continue;
    const auto* const pairs = reinterpret_cast<const __nv_bfloat162*>(&held[p]);
    alignas(8) __nv_fp8x2_storage_t out[kVector / 2];
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      const float2 pair = __bfloat1622float2(pairs[i]);
      out[i] = __nv_cvt_float2_to_fp8x2(make_float2(pair.x * inverse, pair.y * inverse), __NV_SATFINITE, __NV_E4M3);
    }
    *reinterpret_cast<uint2*>(q + row * q_stride + first + p * step) = *reinterpret_cast<const uint2*>(out);
  }
}

// A block a row of any width and alignment, kCount elements at a time. The second pass reads what the first left in the
// caches.
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
  const bool vectors = cols % kVector == 0 && x_stride % kVector == 0 && q_stride % kVector == 0 &&
                       IsMultiple(x, kVectorBytes) && IsMultiple(q, kVector);
  const auto* const from = static_cast<const Bf16*>(x);
  auto* const to = static_cast<E4M3*>(q);
  if (vectors && cols <= int64_t{kMaxThreads} * kHeld * kVector) {
    const auto threads = static_cast<int>((cols + kWarp * kHeld * kVector - 1) / (kWarp * kHeld * kVector) * kWarp);
    LaunchOn(stream, kOp, HeldRowsKernel, rows, threads, 0, from, x_stride, cols, to, q_stride, scale);
    return;
  }
  LaunchOn(stream, kOp, vectors ? RowsKernel<kVector> : RowsKernel<1>, rows, kThreads, 0, from, x_stride, cols, to,
           q_stride, scale);
}

void QuantiseTransposed(cudaStream_t stream, const void* x, int64_t x_stride, int64_t rows, int64_t cols, void* q,
                        int64_t q_stride, float* scale) {
  LaunchOn(stream, kOp, TransposedKernel, (cols + kTile - 1) / kTile, kTile * kTile, 0, static_cast<const Bf16*>(x),
           x_stride, rows, cols, static_cast<E4M3*>(q), q_stride, scale);
}

}  // namespace longhaul::kernels::cuda
