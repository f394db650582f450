// Sums and maxima over lanes, in an order that depends on their number alone.
#pragma once

#include <cuda_runtime.h>

namespace longhaul::kernels::cuda {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;  // of a block

struct Plus {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }  // passes over NaN
};

// Over kLanes neighbouring lanes (a power of two up to 32), all 32 of the warp taking part; every lane gets the result.
template <int kLanes, typename T, typename Op>
__device__ T ReduceLanes(T value, Op op) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value = op(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// Over the block, of whole warps; every thread gets the result. `shared`: kMaxWarps values, free again after the next
// barrier.
template <typename T, typename Op>
__device__ T ReduceBlock(T value, T* shared, T neutral, Op op) {
  value = ReduceLanes<kWarp>(value, op);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps == 1) return value;
  if (lane == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  return ReduceLanes<kWarp>(lane < warps ? shared[lane] : neutral, op);
}

}  // namespace longhaul::kernels::cuda
