// f64 GEMM for the oracle: blocked for the cache, every element summed over k in order, so nothing about the cut into
// tiles or threads changes a bit.
#include <algorithm>

#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/simd.h"

namespace longhaul::kernels::cpu {
namespace {

constexpr int64_t kRows = 32;
constexpr int64_t kCols = 128;
constexpr int64_t kDepth = 64;

// sum[j] += a * b[j].
LONGHAUL_SIMD void Axpy(double a, const double* b, double* sum, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) sum[j] += a * b[j];
}

// One tile of c, at most kRows x kCols.
void TileF64(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
             int64_t a_stride, const double* b, int64_t b_stride, double beta, double* c, int64_t c_stride) {
  alignas(64) double sums[kRows * kCols] = {};
  alignas(64) double panel[kDepth * kCols];  // op(b), rows contiguous
  for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, k - k0);
    for (int64_t kk = 0; kk < depth; ++kk) {
      for (int64_t j = 0; j < n; ++j) {
        panel[kk * kCols + j] = transpose_b ? b[j * b_stride + k0 + kk] : b[(k0 + kk) * b_stride + j];
      }
    }
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t kk = 0; kk < depth; ++kk) {
        const double value = transpose_a ? a[(k0 + kk) * a_stride + i] : a[i * a_stride + k0 + kk];
        Axpy(value, panel + kk * kCols, sums + i * kCols, n);
      }
    }
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double* const out = c + i * c_stride + j;
      *out = beta == 0 ? alpha * sums[i * kCols + j] : alpha * sums[i * kCols + j] + beta * *out;
    }
  }
}

}  // namespace

void SerialGemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
                int64_t a_stride, const double* b, int64_t b_stride, double beta, double* c, int64_t c_stride) {
  for (int64_t i = 0; i < m; i += kRows) {
    for (int64_t j = 0; j < n; j += kCols) {
      TileF64(transpose_a, transpose_b, std::min(kRows, m - i), std::min(kCols, n - j), k, alpha,
              transpose_a ? a + i : a + i * a_stride, a_stride, transpose_b ? b + j * b_stride : b + j, b_stride, beta,
              c + i * c_stride + j, c_stride);
    }
  }
}

void GemmF64(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
             double beta, const Tensor& c) {
  const int64_t k = transpose_a ? a.rows : a.cols;
  const int64_t row_blocks = (c.rows + kRows - 1) / kRows;
  const int64_t col_blocks = (c.cols + kCols - 1) / kCols;
  ParallelTasks(exec, row_blocks * col_blocks, [&](int64_t task, int) {
    const int64_t i = task % row_blocks * kRows;
    const int64_t j = task / row_blocks * kCols;
    SerialGemm(transpose_a, transpose_b, std::min(kRows, c.rows - i), std::min(kCols, c.cols - j), k, alpha,
               transpose_a ? a.as<double>() + i : a.as<double>() + i * a.stride, a.stride,
               transpose_b ? b.as<double>() + j * b.stride : b.as<double>() + j, b.stride, beta,
               c.as<double>() + i * c.stride + j, c.stride);
  });
}

}  // namespace longhaul::kernels::cpu
