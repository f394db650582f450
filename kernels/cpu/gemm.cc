// f32 GEMM: the library's single-thread sgemm over tiles that we cut ourselves.
//
// The library's own threading and its choice of kernel depend on the number of rows and of threads, and its kernels sum
// in another order for the last rows of a call. So rows go in as multiples of kRowGranule, the last ones padded to one:
// the bits of a row are then the same whatever the call or the tile it is in and however many threads there are.
// Measured, with the layouts tried: README.md.
#include <algorithm>
#include <cstring>
#include <string>

#include "base/check.h"
#include "dnnl.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/packed_gemm.h"

namespace longhaul::kernels::cpu {
namespace {

// A multiple of the register blocks of the AVX2 (6 rows) and the AVX-512 (8 rows) kernels, and of 12, past which the
// AVX2 driver cuts no tile unevenly.
constexpr int64_t kRowGranule = 24;
constexpr int64_t kMaxTileRows = 192;
constexpr int64_t kTasksPerThread = 4;

// Rows of a tile: even shares of at most kMaxTileRows, smaller where the threads would have too little to share out.
// Tiles of any multiple of kRowGranule give the same bits, so this may depend on rows and threads.
int64_t TileRows(int64_t rows, int64_t col_blocks, int threads) {
  int64_t limit = kMaxTileRows;
  while (limit > 2 * kRowGranule && (rows + limit - 1) / limit * col_blocks < kTasksPerThread * threads) limit /= 2;
  const int64_t blocks = std::max<int64_t>(1, (rows + limit - 1) / limit);
  const int64_t share = (rows + blocks - 1) / blocks;
  return std::max(kRowGranule, (share + kRowGranule - 1) / kRowGranule * kRowGranule);
}

// Columns of a tile. 192 x 576 of op(b) stay in a 512 KiB L2; narrow outputs are cut finer, to give every thread work.
// By the shape of b alone, never by rows or threads: the last columns of a call, too, are summed in another order.
int64_t TileCols(int64_t cols) { return cols <= 768 ? 96 : kPanelCols; }

struct Problem {
  bool transpose_a, transpose_b;
  bool panels;  // b is in column panels (PackPanels)
  float alpha, beta;
  const float* a;
  const float* b;
  float* c;
  int64_t a_stride, b_stride, c_stride;
  int64_t k;
};

// Columns [col, col + cols) of op(b).
struct Columns {
  const float* data;
  int64_t stride;
};
Columns ColumnsOf(const Problem& p, int64_t col, int64_t cols) {
  if (p.panels) return {p.b + col * p.k, cols};
  return {p.transpose_b ? p.b + col * p.b_stride : p.b + col, p.b_stride};
}

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
  const Columns b = ColumnsOf(p, col, cols);
  SerialGemm(false, p.transpose_b, kRowGranule, cols, p.k, p.alpha, a, p.k, b.data, b.stride, p.beta, c, cols);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(p.c + (row + i) * p.c_stride + col, c + i * cols, static_cast<size_t>(cols) * sizeof(float));
  }
}

void Tile(const Problem& p, int64_t row, int64_t rows, int64_t col, int64_t cols, float* staging) {
  const Columns b = ColumnsOf(p, col, cols);
  const auto direct = [&](int64_t begin, int64_t count) {
    const float* const a = p.transpose_a ? p.a + begin : p.a + begin * p.a_stride;
    SerialGemm(p.transpose_a, p.transpose_b, count, cols, p.k, p.alpha, a, p.a_stride, b.data, b.stride, p.beta,
               p.c + begin * p.c_stride + col, p.c_stride);
  };
  const int64_t even = rows / kRowGranule * kRowGranule;
  if (even > 0) direct(row, even);
  if (even == rows) return;
  // Where a is transposed, its columns are the rows of c: never tokens, so nobody cuts them, and the last ones in a
  // call of their own always give the same bits.
  if (p.transpose_a) {
    direct(row + even, rows - even);
  } else {
    PaddedTail(p, row + even, rows - even, col, cols, staging);
  }
}

// c [rows, cols] in tiles of `col_block` columns.
void Run(const Exec& exec, const Problem& problem, int64_t rows, int64_t cols, int64_t col_block) {
  const int64_t col_blocks = (cols + col_block - 1) / col_block;
  const int64_t row_block = TileRows(rows, col_blocks, exec.threads());
  const int64_t row_blocks = (rows + row_block - 1) / row_block;
  CpuExec& state = exec.cpu();
  if (!problem.transpose_a) {
    // Before the region, and for any number of rows: a later, uneven call then allocates nothing.
    for (CpuExec::Thread& thread : state.threads) {
      thread.staging.Reserve(kRowGranule * (problem.k + col_block) * static_cast<int64_t>(sizeof(float)));
    }
  }
  // Rows run fastest, so that a thread keeps one column block of b in its cache.
  ParallelTasks(exec, row_blocks * col_blocks, [&](int64_t task, int thread) {
    const int64_t row = task % row_blocks * row_block;
    const int64_t col = task / row_blocks * col_block;
    Tile(problem, row, std::min(row_block, rows - row), col, std::min(col_block, cols - col),
         state.threads[static_cast<size_t>(thread)].staging.as<float>());
  });
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
  Problem problem{};
  problem.transpose_a = transpose_a;
  problem.transpose_b = transpose_b;
  problem.alpha = static_cast<float>(alpha);
  problem.beta = static_cast<float>(beta);
  problem.a = a.as<float>();
  problem.b = b.as<float>();
  problem.c = c.as<float>();
  problem.a_stride = a.stride;
  problem.b_stride = b.stride;
  problem.c_stride = c.stride;
  problem.k = transpose_a ? a.rows : a.cols;
  Run(exec, problem, c.rows, c.cols, TileCols(c.cols));
}

void PackPanels(const Exec& exec, const Tensor& rows, bool backward, float* panels) {
  const float* const w = rows.as<float>();
  const int64_t k = backward ? rows.rows : rows.cols;
  const int64_t n = backward ? rows.cols : rows.rows;
  ParallelTasks(exec, (n + kPanelCols - 1) / kPanelCols, [&](int64_t task, int) {
    const int64_t begin = task * kPanelCols;
    const int64_t width = std::min(kPanelCols, n - begin);
    float* const panel = panels + begin * k;
    if (backward) {
      for (int64_t i = 0; i < k; ++i) {
        std::memcpy(panel + i * width, w + i * rows.stride + begin, static_cast<size_t>(width) * sizeof(float));
      }
      return;
    }
    // A transpose, in strips that fit a cache line.
    constexpr int64_t kStrip = 16;
    for (int64_t i0 = 0; i0 < k; i0 += kStrip) {
      for (int64_t j = 0; j < width; ++j) {
        const float* const from = w + (begin + j) * rows.stride;
        for (int64_t i = i0; i < std::min(i0 + kStrip, k); ++i) panel[i * width + j] = from[i];
      }
    }
  });
}

void PanelGemm(const Exec& exec, const Tensor& x, const float* panels, double beta, const Tensor& y) {
  Problem problem{};
  problem.panels = true;
  problem.alpha = 1;
  problem.beta = static_cast<float>(beta);
  problem.a = x.as<float>();
  problem.b = panels;
  problem.c = y.as<float>();
  problem.a_stride = x.stride;
  problem.c_stride = y.stride;
  problem.k = x.cols;
  Run(exec, problem, y.rows, y.cols, kPanelCols);
}

}  // namespace longhaul::kernels::cpu
