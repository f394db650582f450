// Gradient norm, the update's numbers, AdamW with f32 and with 8-bit moments. Nothing returns to the host: the update
// reads clipping factor, bias correction and skip flag from device memory.
#include <cmath>

#include "base/limits.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/dynamic_map.h"
#include "kernels/update_state.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSumThreads = 1024;
constexpr int64_t kChunk = 4096;  // elements that a block sums; more where there would be more than kMaxChunks of them
constexpr int64_t kMaxChunks = limits::kCudaPartialSumsBytes / static_cast<int64_t>(sizeof(double));

__device__ const std::array<float, 256> kDeviceSignedMap = kSignedDynamicMap;
__device__ const std::array<float, 256> kDeviceUnsignedMap = kUnsignedDynamicMap;

// A chunk's elements go round the threads in packs; the order of the sum depends on the size alone.
template <int kCount>
__global__ void __launch_bounds__(kThreads) SquaresKernel(const float* x, int64_t size, int64_t chunk, double* sums) {
  __shared__ double shared[kMaxWarps];
  const int64_t begin = int64_t{blockIdx.x} * chunk;
  const int64_t end = begin + chunk < size ? begin + chunk : size;
  double sum = 0;
#pragma unroll 4
  for (int64_t at = begin + int64_t{threadIdx.x} * kCount; at < end; at += int64_t{kThreads} * kCount) {
    const Pack<float, kCount> pack = Load<kCount>(x + at);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const double value = static_cast<double>(pack[i]);
      sum += value * value;
    }
  }
  sum = ReduceBlock(sum, shared, 0.0, Plus());
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreads) AddSumsKernel(const double* sums, int64_t count, double* total) {
  __shared__ double shared[kMaxWarps];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += sums[i];
  sum = ReduceBlock(sum, shared, 0.0, Plus());
  if (threadIdx.x == 0) *total = sum;
}

__global__ void PrepareUpdateKernel(AdamWConfig config, const double* sum_of_squares, const double* loss,
                                    UpdateState* state) {
  FillUpdateState(config, *sum_of_squares, loss == nullptr ? 0 : *loss, state);
}

// AdamW's per-step numbers in f32.
struct Factors {
  float grad_scale;
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float keep;                // 1 - learning_rate * weight_decay
  float step_size;           // learning_rate / (1 - beta1^step)
  float inverse_sqrt_bias2;  // 1 / sqrt(1 - beta2^step)
  float epsilon;

  __device__ Factors(const AdamWConfig& config, const UpdateState& state)
      : grad_scale(static_cast<float>(state.grad_scale)),
        beta1(static_cast<float>(config.beta1)),
        one_minus_beta1(static_cast<float>(1.0 - config.beta1)),
        beta2(static_cast<float>(config.beta2)),
        one_minus_beta2(static_cast<float>(1.0 - config.beta2)),
        keep(static_cast<float>(state.keep)),
        step_size(static_cast<float>(state.step_size)),
        inverse_sqrt_bias2(static_cast<float>(state.inverse_sqrt_bias2)),
        epsilon(static_cast<float>(config.epsilon)) {}

  __device__ void Update(float g, float* p, float* m, float* v) const {
    const float gradient = g * grad_scale;
    *m = beta1 * *m + one_minus_beta1 * gradient;
    *v = beta2 * *v + one_minus_beta2 * gradient * gradient;
    *p = keep * *p - step_size * *m / (sqrtf(*v) * inverse_sqrt_bias2 + epsilon);
  }
};

// Over flat arrays.
struct AdamWBody {
  AdamWConfig config;
  const UpdateState* state;
  float* p;
  const float* g;
  float* m;
  float* v;
  template <int kCount>
  struct Operands {
    Pack<float, kCount> p, g, m, v;
  };
  template <int kCount>
  __device__ void Load(int64_t, int64_t at, Operands<kCount>* o) const {
    if (state->skip != 0) return;
    o->p = cuda::Load<kCount>(p + at);
    o->g = cuda::Load<kCount>(g + at);
    o->m = cuda::Load<kCount>(m + at);
    o->v = cuda::Load<kCount>(v + at);
  }
  template <int kCount>
  __device__ void Store(int64_t, int64_t at, Operands<kCount>& o) const {
    if (state->skip != 0) return;
    const Factors factors(config, *state);
#pragma unroll
    for (int i = 0; i < kCount; ++i) factors.Update(o.g[i], &o.p.values[i], &o.m.values[i], &o.v.values[i]);
    cuda::Store(p + at, o.p);
    cuda::Store(m + at, o.m);
    cuda::Store(v + at, o.v);
  }
};

// The nearest entry of an ascending map that ends at 1; the lower one where two are as near. |x| <= 1 but for rounding.
__device__ uint8_t NearestCode(const float* map, float x) {
  int above = 0;  // entries below x, the last one not counted
#pragma unroll
  for (int step = 128; step > 0; step /= 2) above += map[above + step - 1] < x ? step : 0;
  if (above == 0) return 0;
  return static_cast<uint8_t>(map[above] - x < x - map[above - 1] ? above : above - 1);
}

struct Moments {
  uint8_t* m;
  uint8_t* v;
  float* m_scale;
  float* v_scale;
};

constexpr int kPerLane = static_cast<int>(kMomentBlock) / kWarp;

// Values as codes of `map` times the warp's largest magnitude, which is returned.
__device__ float Encode(const float* map, const float (&values)[kPerLane], Pack<uint8_t, kPerLane>* codes) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) largest = fmaxf(largest, fabsf(values[i]));
  largest = ReduceLanes<kWarp>(largest, Largest());
  const float inverse = largest > 0 ? 1.0f / largest : 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) codes->values[i] = NearestCode(map, values[i] * inverse);
  return largest;
}

// A warp takes a block of 256 elements, a lane 8 of them. kPacked: all arrays are aligned for that.
template <bool kPacked>
__global__ void __launch_bounds__(kThreads) AdamW8bitKernel(AdamWConfig config, const UpdateState* state, float* p,
                                                            const float* g, Moments moments, int64_t size) {
  __shared__ float signed_map[256], unsigned_map[256];
  if (state->skip != 0) return;
  static_assert(kThreads == 256);
  signed_map[threadIdx.x] = kDeviceSignedMap[threadIdx.x];
  unsigned_map[threadIdx.x] = kDeviceUnsignedMap[threadIdx.x];
  __syncthreads();
  const int64_t block = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (block * kMomentBlock >= size) return;
  const int64_t at = block * kMomentBlock + threadIdx.x % kWarp * kPerLane;
  const bool whole = kPacked && at + kPerLane <= size;
  Pack<uint8_t, kPerLane> m_codes, v_codes;
  Pack<float, kPerLane> parameters, gradients;
  if (whole) {
    m_codes = *reinterpret_cast<const Pack<uint8_t, kPerLane>*>(moments.m + at);
    v_codes = *reinterpret_cast<const Pack<uint8_t, kPerLane>*>(moments.v + at);
    parameters = Load<kPerLane>(p + at);
    gradients = Load<kPerLane>(g + at);
  } else {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const bool inside = at + i < size;
      m_codes.values[i] = inside ? moments.m[at + i] : 0;
      v_codes.values[i] = inside ? moments.v[at + i] : 0;
      parameters.values[i] = inside ? p[at + i] : 0;
      gradients.values[i] = inside ? g[at + i] : 0;
    }
  }
  const float m_scale = moments.m_scale[block], v_scale = moments.v_scale[block];
  const Factors factors(config, *state);
  float mean[kPerLane], square[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const bool inside = whole || at + i < size;
    mean[i] = inside ? signed_map[m_codes.values[i]] * m_scale : 0;
    square[i] = inside ? unsigned_map[v_codes.values[i]] * v_scale : 0;
    if (inside) factors.Update(gradients.values[i], &parameters.values[i], &mean[i], &square[i]);
  }
  const float m_largest = Encode(signed_map, mean, &m_codes);
  const float v_largest = Encode(unsigned_map, square, &v_codes);
  if (threadIdx.x % kWarp == 0) {
    moments.m_scale[block] = m_largest;
    moments.v_scale[block] = v_largest;
  }
  if (whole) {
    *reinterpret_cast<Pack<uint8_t, kPerLane>*>(moments.m + at) = m_codes;
    *reinterpret_cast<Pack<uint8_t, kPerLane>*>(moments.v + at) = v_codes;
    Store(p + at, parameters);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (at + i >= size) continue;
    moments.m[at + i] = m_codes.values[i];
    moments.v[at + i] = v_codes.values[i];
    p[at + i] = parameters.values[i];
  }
}

// A contiguous tensor as one row.
Tensor Flat(const Tensor& t) { return MakeTensor(t.data, t.dtype, 1, t.rows * t.cols); }

bool Aligned(const void* data, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

}  // namespace

void SumOfSquares(const Exec& exec, const Tensor& x, double* sum) {
  const int64_t size = x.rows * x.cols;
  const int64_t chunk = kChunk * CeilDiv(size, kChunk * kMaxChunks);
  const int64_t chunks = size == 0 ? 0 : CeilDiv(size, chunk);
  double* const sums = exec.cuda().partial_sums.as<double>();
  constexpr int kCount = VectorOf<float>();
  const bool vectors = size % kCount == 0 && Aligned(x.data, kVectorBytes);
  Launch(exec, "SumOfSquares", vectors ? SquaresKernel<kCount> : SquaresKernel<1>, chunks, kThreads, 0, x.as<float>(),
         size, chunk, sums);
  Launch(exec, "SumOfSquares", AddSumsKernel, 1, kSumThreads, 0, sums, chunks, sum);
}

void PrepareUpdate(const Exec& exec, const AdamWConfig& config, const double* sum_of_squares, const double* loss,
                   UpdateState* state) {
  Launch(exec, "PrepareUpdate", PrepareUpdateKernel, 1, 1, 0, config, sum_of_squares, loss, state);
}

void AdamW(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
           const Tensor& m, const Tensor& v) {
  const AdamWBody body{config, state, p.as<float>(), g.as<float>(), m.as<float>(), v.as<float>()};
  Map<VectorOf<float>()>(exec, "AdamW", 1, p.rows * p.cols, {Flat(p), Flat(g), Flat(m), Flat(v)}, body);
}

void AdamW8bit(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
               const Moments8bit& moments) {
  const int64_t size = p.rows * p.cols;
  const bool packed = Aligned(p.data, kVectorBytes) && Aligned(g.data, kVectorBytes) &&
                      Aligned(moments.m.data, kPerLane) && Aligned(moments.v.data, kPerLane);
  const Moments pointers{moments.m.as<uint8_t>(), moments.v.as<uint8_t>(), moments.m_scale.as<float>(),
                         moments.v_scale.as<float>()};
  Launch(exec, "AdamW8bit", packed ? AdamW8bitKernel<true> : AdamW8bitKernel<false>,
         CeilDiv(CeilDiv(size, kMomentBlock), kThreads / kWarp), kThreads, 0, config, state, p.as<float>(),
         g.as<float>(), pointers, size);
}

}  // namespace longhaul::kernels::cuda
