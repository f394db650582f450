#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd.h"
#include "kernels/dynamic_map.h"
#include "kernels/update_state.h"

namespace longhaul::kernels::cpu {
namespace {

constexpr int64_t kChunk = 4096;

// AdamW's per-step numbers, computed once in double.
template <typename T>
struct AdamWFactors {
  T grad_scale;
  T beta1, one_minus_beta1;
  T beta2, one_minus_beta2;
  T keep;                // 1 - learning_rate * weight_decay
  T step_size;           // learning_rate / (1 - beta1^step)
  T inverse_sqrt_bias2;  // 1 / sqrt(1 - beta2^step)
  T epsilon;
};

template <typename T>
LONGHAUL_SIMD void AdamWChunk(const AdamWFactors<T>& f, T* p, const T* g, T* m, T* v, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T gradient = g[i] * f.grad_scale;
    const T mean = f.beta1 * m[i] + f.one_minus_beta1 * gradient;
    const T square = f.beta2 * v[i] + f.one_minus_beta2 * gradient * gradient;
    m[i] = mean;
    v[i] = square;
    p[i] = f.keep * p[i] - f.step_size * mean / (std::sqrt(square) * f.inverse_sqrt_bias2 + f.epsilon);
  }
}

template <typename T>
LONGHAUL_SIMD double SquaresOfChunk(const T* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

template <typename T>
AdamWFactors<T> MakeFactors(const AdamWConfig& config, const UpdateState& state) {
  return {static_cast<T>(state.grad_scale),   static_cast<T>(config.beta1),
          static_cast<T>(1.0 - config.beta1), static_cast<T>(config.beta2),
          static_cast<T>(1.0 - config.beta2), static_cast<T>(state.keep),
          static_cast<T>(state.step_size),    static_cast<T>(state.inverse_sqrt_bias2),
          static_cast<T>(config.epsilon)};
}

// The nearest entry of an ascending map; the lower one where two are as near.
uint8_t NearestCode(const std::array<float, 256>& map, float x) {
  const auto above = std::lower_bound(map.begin(), map.end(), x);
  if (above == map.begin()) return 0;
  const auto high = static_cast<uint8_t>(above == map.end() ? 255 : above - map.begin());
  const auto low = static_cast<uint8_t>(high - 1);
  return map[high] - x < x - map[low] ? high : low;
}

// Writes n values as codes of `map` times the block's scale, its largest magnitude.
void StoreBlock(const std::array<float, 256>& map, const float* values, int64_t n, uint8_t* codes, float* scale) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(values[i]));
  *scale = largest;
  const float inverse = largest > 0 ? 1.0f / largest : 0.0f;
  for (int64_t i = 0; i < n; ++i) codes[i] = NearestCode(map, values[i] * inverse);
}

void AdamW8bitBlock(const AdamWFactors<float>& factors, float* p, const float* g, uint8_t* m, float* m_scale,
                    uint8_t* v, float* v_scale, int64_t n) {
  float mean[kMomentBlock], square[kMomentBlock];
  for (int64_t i = 0; i < n; ++i) {
    mean[i] = kSignedDynamicMap[m[i]] * *m_scale;
    square[i] = kUnsignedDynamicMap[v[i]] * *v_scale;
  }
  AdamWChunk(factors, p, g, mean, square, n);
  StoreBlock(kSignedDynamicMap, mean, n, m, m_scale);
  StoreBlock(kUnsignedDynamicMap, square, n, v, v_scale);
}

}  // namespace

void PrepareUpdate(const Exec&, const AdamWConfig& config, const double* sum_of_squares, const double* loss,
                   UpdateState* state) {
  FillUpdateState(config, *sum_of_squares, loss == nullptr ? 0 : *loss, state);
}

void AdamW(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
           const Tensor& m, const Tensor& v) {
  if (state->skip != 0) return;
  const int64_t size = p.rows * p.cols;
  const int64_t chunks = (size + kChunk - 1) / kChunk;
  WithFloatType(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const AdamWFactors<T> factors = MakeFactors<T>(config, *state);
    ParallelRows(exec, chunks, kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t at = c * kChunk;
        AdamWChunk(factors, p.as<T>() + at, g.as<T>() + at, m.as<T>() + at, v.as<T>() + at,
                   std::min(kChunk, size - at));
      }
    });
  });
}

void AdamW8bit(const Exec& exec, const AdamWConfig& config, const UpdateState* state, const Tensor& p, const Tensor& g,
               const Moments8bit& moments) {
  if (state->skip != 0) return;
  const int64_t size = p.rows * p.cols;
  const int64_t blocks = (size + kMomentBlock - 1) / kMomentBlock;
  const AdamWFactors<float> factors = MakeFactors<float>(config, *state);
  ParallelRows(exec, blocks, kMomentBlock, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * kMomentBlock;
      AdamW8bitBlock(factors, p.as<float>() + at, g.as<float>() + at, moments.m.as<uint8_t>() + at,
                     moments.m_scale.as<float>() + b, moments.v.as<uint8_t>() + at, moments.v_scale.as<float>() + b,
                     std::min(kMomentBlock, size - at));
    }
  });
}

void SumOfSquares(const Exec& exec, const Tensor& x, double* sum) {
  const int64_t size = x.rows * x.cols;
  const int64_t chunks = (size + kChunk - 1) / kChunk;
  auto* const sums = static_cast<double*>(exec.cpu().sums.Reserve(chunks * static_cast<int64_t>(sizeof(double))));
  WithFloatType(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, chunks, kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        sums[c] = SquaresOfChunk(x.as<T>() + c * kChunk, std::min(kChunk, size - c * kChunk));
      }
    });
  });
  double total = 0;
  for (int64_t c = 0; c < chunks; ++c) total += sums[c];
  *sum = total;
}

}  // namespace longhaul::kernels::cpu
