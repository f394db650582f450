#include "kernels/cpu/softmax.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/simd.h"

namespace longhaul::kernels::cpu {
namespace {

constexpr int64_t kChunk = 1024;

}  // namespace

template <typename T>
LONGHAUL_SIMD T RowMax(const T* x, int64_t n) {
  T largest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

template <typename T>
LONGHAUL_SIMD double ExpSumInPlace(T* x, int64_t n, T shift) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, n);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
      const T e = Exp(x[i] - shift);
      x[i] = e;
      sum += e;
    }
    total += static_cast<double>(sum);
  }
  return total;
}

template <typename T>
LONGHAUL_SIMD double ExpSum(const T* x, int64_t n, T shift) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, n);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += Exp(x[i] - shift);
    total += static_cast<double>(sum);
  }
  return total;
}

template <typename T>
LONGHAUL_SIMD void ScaleRow(T* x, int64_t n, T factor) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

template float RowMax(const float*, int64_t);
template double RowMax(const double*, int64_t);
template double ExpSumInPlace(float*, int64_t, float);
template double ExpSumInPlace(double*, int64_t, double);
template double ExpSum(const float*, int64_t, float);
template double ExpSum(const double*, int64_t, double);
template void ScaleRow(float*, int64_t, float);
template void ScaleRow(double*, int64_t, double);

}  // namespace longhaul::kernels::cpu
