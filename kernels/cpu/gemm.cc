// f32 GEMM: the library's single-thread sgemm over tiles that we cut ourselves.
//
// The library's own threading and its choice of kernel depend on the number of rows and of threads, and its kernels sum
// in another order for the last 1 to 3 rows of a call. So rows go in at fixed sizes, the last ones padded: the bits of
// a row are then the same whatever the call it is in and however many threads there are (measured: README.md).
#include <algorithm>
#include <cstring>
#include <string>

#include "base/check.h"
#include "dnnl.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"

namespace longhaul::kernels::cpu {
namespace {

constexpr int64_t kRowBlock = 96;    // a multiple of kRowGranule
constexpr int64_t kRowGranule = 24;  // the register blocks of the AVX2 (6 rows) and the AVX-512 (8 rows) kernels

// Columns of a tile. 192 x 576 of op(b) stay in a 512 KiB L2; narrow outputs are cut finer, to give every thread work.
// By the shape of b alone, never by the number of rows: the last columns of a call, too, are summed in another order.
int64_t ColBlock(int64_t cols) { return cols <= 768 ? 96 : 192; }

struct Problem {
  bool transpose_a, transpose_b;
  float alpha, beta;
  const float* a;
  const float* b;
  float* c;
  int64_t a_stride, b_stride, c_stride;
  int64_t k;
};

// The rows past the last full granule, padded with zeros to one. `staging` holds kRowGranule x (k + columns) floats.
void PaddedTail(const Problem& p, int64_t row, int64_t rows, int64_t col, int64_t cols, float* staging) {
  float* const a = staging;
  float* const c = staging + kRowGranule * p.k;
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(a + i * p.k, p.a + (row + i) * p.a_stride, static_cast<size_t>(p.k) * sizeof(float));
    if (p.beta != 0) {
      std::memcpy(c + i * cols, p.c + (row + i) * p.c_stride + col, static_cast<size_t>(cols) * sizeof(float));
    }
  }
  std::fill(a + rows * p.k, a + kRowGranule * p.k, 0.0f);
  std::fill(c + (p.beta != 0 ? rows * cols : 0), c + kRowGranule * cols, 0.0f);
  const float* const b = p.transpose_b ? p.b + col * p.b_stride : p.b + col;
  SerialGemm(false, p.transpose_b, kRowGranule, cols, p.k, p.alpha, a, p.k, b, p.b_stride, p.beta, c, cols);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(p.c + (row + i) * p.c_stride + col, c + i * cols, static_cast<size_t>(cols) * sizeof(float));
  }
}

void Tile(const Problem& p, int64_t row, int64_t rows, int64_t col, int64_t cols, float* staging) {
  // Where a is transposed its columns are the rows of c: never tokens, so nobody cuts them.
  const int64_t direct = p.transpose_a ? rows : rows / kRowGranule * kRowGranule;
  if (direct > 0) {
    const float* const a = p.transpose_a ? p.a + row : p.a + row * p.a_stride;
    const float* const b = p.transpose_b ? p.b + col * p.b_stride : p.b + col;
    SerialGemm(p.transpose_a, p.transpose_b, direct, cols, p.k, p.alpha, a, p.a_stride, b, p.b_stride, p.beta,
               p.c + row * p.c_stride + col, p.c_stride);
  }
  if (direct < rows) PaddedTail(p, row + direct, rows - direct, col, cols, staging);
}

}  // namespace

void SerialGemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                int64_t a_stride, const float* b, int64_t b_stride, float beta, float* c, int64_t c_stride) {
  const dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, a_stride,
                                          b, b_stride, beta, c, c_stride);
  LH_CHECK(status == dnnl_success, "dnnl_sgemm: " + std::to_string(status));
}

void Gemm(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
          double beta, const Tensor& c) {
  const int64_t k = transpose_a ? a.rows : a.cols;
  const Problem problem{transpose_a,
                        transpose_b,
                        static_cast<float>(alpha),
                        static_cast<float>(beta),
                        a.as<float>(),
                        b.as<float>(),
                        c.as<float>(),
                        a.stride,
                        b.stride,
                        c.stride,
                        k};
  const int64_t row_blocks = (c.rows + kRowBlock - 1) / kRowBlock;
  const int64_t col_block = ColBlock(c.cols);
  const int64_t col_blocks = (c.cols + col_block - 1) / col_block;
  CpuExec& state = exec.cpu();
  if (!transpose_a) {
    // Before the region, and for any number of rows: a later, uneven call then allocates nothing.
    for (CpuExec::Thread& thread : state.threads) {
      thread.staging.Reserve(kRowGranule * (k + col_block) * static_cast<int64_t>(sizeof(float)));
    }
  }
  // Rows run fastest, so that a thread keeps one column block of b in its cache.
  ParallelTasks(exec, row_blocks * col_blocks, [&](int64_t task, int thread) {
    const int64_t row = task % row_blocks * kRowBlock;
    const int64_t col = task / row_blocks * col_block;
    Tile(problem, row, std::min(kRowBlock, c.rows - row), col, std::min(col_block, c.cols - col),
         state.threads[static_cast<size_t>(thread)].staging.as<float>());
  });
}

}  // namespace longhaul::kernels::cpu
