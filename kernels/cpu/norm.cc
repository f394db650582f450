// RMS normalisation of rows, and of the heads within a row.
#include <cmath>

#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd.h"

namespace longhaul::kernels::cpu {
namespace {

template <typename T>
LONGHAUL_SIMD T NormRow(const T* x, const T* w, double eps, T* y, int64_t n) {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const T rstd = static_cast<T>(1.0 / std::sqrt(squares / static_cast<double>(n) + eps));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * rstd * w[i];
  return rstd;
}

// dx (+)= rstd * (dy*w - xhat * mean(dy*w*xhat)).
template <typename T>
LONGHAUL_SIMD void NormBackwardRow(const T* dy, const T* x, const T* w, T rstd, bool accumulate, T* dx, int64_t n) {
  double product = 0;
#pragma omp simd reduction(+ : product)
  for (int64_t i = 0; i < n; ++i) product += static_cast<double>(dy[i] * w[i]) * static_cast<double>(x[i] * rstd);
  const T mean = static_cast<T>(product / static_cast<double>(n));
  if (accumulate) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) dx[i] += rstd * (dy[i] * w[i] - x[i] * rstd * mean);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) dx[i] = rstd * (dy[i] * w[i] - x[i] * rstd * mean);
  }
}

}  // namespace

void HeadRmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps, const Tensor& y,
                 const Tensor& rstd) {
  WithFloatType(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t width = w.cols;
    ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t h = 0; h < heads; ++h) {
          const T value = NormRow(Row<T>(x, i) + h * width, w.as<T>(), eps, Row<T>(y, i) + h * width, width);
          if (rstd.data != nullptr) Row<T>(rstd, i)[h] = value;
        }
      }
    });
  });
}

void HeadRmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                         const Tensor& rstd, const Tensor& dx) {
  WithFloatType(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t width = w.cols;
    ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t h = 0; h < heads; ++h) {
          NormBackwardRow(Row<T>(dy, i) + h * width, Row<T>(x, i) + h * width, w.as<T>(), Row<T>(rstd, i)[h],
                          /*accumulate=*/false, Row<T>(dx, i) + h * width, width);
        }
      }
    });
  });
}

void RmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, double eps, const Tensor& y, const Tensor& rstd) {
  cpu::HeadRmsNorm(exec, x, w, /*heads=*/1, eps, y, rstd);
}

void AddRmsNorm(const Exec& exec, const Tensor& delta, const Tensor& w, double eps, const Tensor& x, const Tensor& y,
                const Tensor& rstd) {
  cpu::Add(exec, delta, x);
  cpu::HeadRmsNorm(exec, x, w, /*heads=*/1, eps, y, rstd);
}

void RmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                     bool accumulate, const Tensor& dx) {
  WithFloatType(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        NormBackwardRow(Row<T>(dy, i), Row<T>(x, i), w.as<T>(), *Row<T>(rstd, i), accumulate, Row<T>(dx, i), x.cols);
      }
    });
  });
}

void RmsNormBackwardRows(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                         const int32_t* ids, const Tensor& dx) {
  WithFloatType(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, dy.rows, dy.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        LH_CHECK(ids[i] >= 0 && ids[i] < x.rows);
        NormBackwardRow(Row<T>(dy, i), Row<T>(x, ids[i]), w.as<T>(), *Row<T>(rstd, i), /*accumulate=*/false,
                        Row<T>(dx, ids[i]), x.cols);
      }
    });
  });
}

}  // namespace longhaul::kernels::cpu
