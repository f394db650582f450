#include <cuda_bf16.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "tests/kernels/cuda/text_like.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr float kOffset = 10;

// SplitMix64: a number for every (seed, index).
__device__ uint64_t Hash(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
// (0, 1).
__device__ float Uniform(uint64_t hash) { return (static_cast<float>(hash >> 40) + 0.5f) * 0x1p-24f; }
// Box and Muller.
__device__ float Normal(uint64_t seed, uint64_t index) {
  const float radius = sqrtf(-2 * logf(Uniform(Hash(seed, 2 * index))));
  return radius * cospif(2 * Uniform(Hash(seed, 2 * index + 1)));
}

// The direction c: signs over the square root of their count.
__device__ float Direction(const TextLike& text, int64_t k) {
  return (Hash(text.seed + 3, static_cast<uint64_t>(k)) & 1 ? 1.0f : -1.0f) * rsqrtf(static_cast<float>(text.hidden));
}

__global__ void HeadKernel(TextLike text, __nv_bfloat16* head) {
  const int64_t j = blockIdx.x;
  const float prior = -text.slope * logf(static_cast<float>(j) + kOffset);
  for (int64_t k = threadIdx.x; k < text.hidden; k += kThreads) {
    const float noise = Normal(text.seed, static_cast<uint64_t>(j * text.hidden + k));
    head[j * text.hidden + k] =
        __float2bfloat16(noise * rsqrtf(static_cast<float>(text.hidden)) + prior * Direction(text, k));
  }
}

// The inverse of the integral of (j + 10)^-slope from 0 to vocab.
__device__ int32_t Label(const TextLike& text, float uniform) {
  const float end = static_cast<float>(text.vocab) + kOffset;
  float at = 0;
  if (fabsf(text.slope - 1) < 1e-3f) {
    at = kOffset * expf(uniform * logf(end / kOffset));
  } else {
    const float power = 1 - text.slope;
    const float low = powf(kOffset, power), high = powf(end, power);
    at = powf(low + uniform * (high - low), 1 / power);
  }
  return min(max(static_cast<int32_t>(at - kOffset), 0), static_cast<int32_t>(text.vocab) - 1);
}

// Noise and label, without what of them lies along c: that would multiply every prior by a number of the row's.
__global__ void HiddenKernel(TextLike text, __nv_bfloat16* hidden, int32_t* labels) {
  __shared__ float parts[kThreads];
  const int64_t i = blockIdx.x;
  const auto index = static_cast<uint64_t>(i);
  const int32_t label = Label(text, Uniform(Hash(text.seed + 1, index)));
  const float boost = text.boost_mean + text.boost_deviation * Normal(text.seed + 2, index);
  if (threadIdx.x == 0) labels[i] = label;
  const auto value = [&](int64_t k) {
    const float noise = Normal(text.seed + 4, static_cast<uint64_t>(i * text.hidden + k));
    // The label's own noise, without its prior: the square of its length is 1.
    const float own = Normal(text.seed, static_cast<uint64_t>(label * text.hidden + k));
    return text.noise * noise + boost * own * rsqrtf(static_cast<float>(text.hidden));
  };
  float along = 0;
  for (int64_t k = threadIdx.x; k < text.hidden; k += kThreads) along += value(k) * Direction(text, k);
  parts[threadIdx.x] = along;
  __syncthreads();
  along = 0;
  for (const float part : parts) along += part;
  for (int64_t k = threadIdx.x; k < text.hidden; k += kThreads) {
    hidden[i * text.hidden + k] = __float2bfloat16(value(k) + (1 - along) * Direction(text, k));
  }
}

}  // namespace

void FillTextLike(cudaStream_t stream, const TextLike& text, void* hidden, void* head, int32_t* labels) {
  HeadKernel<<<static_cast<unsigned>(text.vocab), kThreads, 0, stream>>>(text, static_cast<__nv_bfloat16*>(head));
  HiddenKernel<<<static_cast<unsigned>(text.rows), kThreads, 0, stream>>>(text, static_cast<__nv_bfloat16*>(hidden),
                                                                          labels);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("FillTextLike: ") + cudaGetErrorString(error));
}

}  // namespace longhaul::kernels::cuda
