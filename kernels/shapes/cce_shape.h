// The shape of a cut cross entropy (cut_cross_entropy.h) and its working set: pure, for the memory plan.
// Tests: tests/kernels/cuda/cce_shape_test.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/shapes/gemm_shape.h"

namespace longhaul::kernels::cuda {

// Columns of a tile of logits: 66 tiles of 256, which with 8, 16, 32 … tiles of 128 rows come in whole rounds of a
// Hopper's 132 multiprocessors.
inline constexpr int64_t kCceTileCols = 66 * 256;
// Columns that a row may keep where most are negligible; a row with more takes them all. At 8 KB a head row they cost
// more than the products of the row do from about 1,500 on.
inline constexpr int64_t kCceKeptPerRow = 1024;

struct CceShape {
  int64_t rows = 0;  // of every call; rows that are not trained are labelled so
  int64_t hidden = 0;
  int64_t vocab = 0;
  int64_t tile_rows = 0;  // the last tile may be smaller, in rows and in columns
  int64_t tile_cols = kCceTileCols;
  // bf16 halves the tile, and rounds a logit by up to 2^-9 of it; sums are f32 either way.
  GemmElement logits = GemmElement::kBF16;
  // Columns that matter little to a row leave its gradient, what they had goes to the mean head row
  // (cut_cross_entropy.h).
  bool negligible = false;
  int64_t full_rows = 256;  // rows that take all columns all the same, at a time
  // Elements from one row to the next.
  int64_t hidden_stride = 0, head_stride = 0, d_hidden_stride = 0;

  // What all columns take.
  double flops() const {
    return 4.0 * static_cast<double>(rows) * static_cast<double>(vocab) * static_cast<double>(hidden);
  }
};

// With contiguous matrices, and tiles of kCceTileCols columns or the whole vocabulary where that is less.
CceShape MakeCceShape(int64_t rows, int64_t hidden, int64_t vocab, int64_t tile_rows);

// INVALID_ARGUMENT, reason INVALID_FIELD.
absl::Status CheckCceShape(const CceShape& shape);

// Where parts of the workspace begin, in bytes; every part 256-byte aligned. A part that the shape does not need has no
// bytes. "Tile" rows are those of the larger of tile_rows and, where negligible, full_rows.
struct CceLayout {
  int64_t logits_stride = 0;  // elements
  int64_t logits = 0;         // [tile, logits_stride]
  int64_t softmax = 0;        // [3, tile] f32: largest, sum, label's logit
  int64_t lse = 0;            // [tile] f32
  int64_t d_sum = 0;          // [tile, hidden] f32; where negligible [full_rows, hidden]
  // Where negligible:
  int64_t entries = 0;      // [tile_rows, kCceKeptPerRow] column and logit
  int64_t counts = 0;       // [tile_rows] i32
  int64_t lost = 0;         // [tile_rows] f32
  int64_t is_full = 0;      // [rows] u8: takes all columns
  int64_t full = 0;         // [rows] i32: those rows
  int64_t state = 0;        // how many
  int64_t full_hidden = 0;  // [full_rows, hidden] bf16
  int64_t full_labels = 0;  // [full_rows] i32
  int64_t places = 0;       // [full_rows] i32

  int64_t gemm = 0;   // of the products
  int64_t bytes = 0;  // of everything
};
// gemm_bytes: the largest workspace of CceGemms' shapes.
CceLayout CceWorkspace(const CceShape& shape, int64_t gemm_bytes);

// Products of a tile. Operands a, b, c behind each.
// hidden, head, logits
GemmShape CceLogitsGemm(const CceShape& shape, int64_t rows, int64_t cols, int64_t hidden_stride);
// weights (bf16, in the logits), head, d_sum; the first tile of columns sets d_sum, the others add to it
GemmShape CceGradientGemm(const CceShape& shape, int64_t rows, int64_t cols, bool is_first);
// All that a shape runs.
std::vector<GemmShape> CceGemms(const CceShape& shape);

}  // namespace longhaul::kernels::cuda
