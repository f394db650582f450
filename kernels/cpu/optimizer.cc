#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd.h"

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

}  // namespace

void AdamW(const Exec& exec, const AdamWParams& params, const Tensor& p, const Tensor& g, const Tensor& m,
           const Tensor& v) {
  const auto step = static_cast<double>(params.step);
  const double bias1 = 1.0 - std::pow(params.beta1, step);
  const double bias2 = 1.0 - std::pow(params.beta2, step);
  const int64_t size = p.rows * p.cols;
  const int64_t chunks = (size + kChunk - 1) / kChunk;
  WithFloatType(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const AdamWFactors<T> factors{static_cast<T>(params.grad_scale),
                                  static_cast<T>(params.beta1),
                                  static_cast<T>(1.0 - params.beta1),
                                  static_cast<T>(params.beta2),
                                  static_cast<T>(1.0 - params.beta2),
                                  static_cast<T>(1.0 - params.learning_rate * params.weight_decay),
                                  static_cast<T>(params.learning_rate / bias1),
                                  static_cast<T>(1.0 / std::sqrt(bias2)),
                                  static_cast<T>(params.epsilon)};
    ParallelRows(exec, chunks, kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t at = c * kChunk;
        AdamWChunk(factors, p.as<T>() + at, g.as<T>() + at, m.as<T>() + at, v.as<T>() + at,
                   std::min(kChunk, size - at));
      }
    });
  });
}

double SumOfSquares(const Exec& exec, const Tensor& x) {
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
  return total;
}

}  // namespace longhaul::kernels::cpu
