// The shape of a cut cross entropy (cut_cross_entropy.h) and its working set: pure, for the memory plan.
// Tests: tests/kernels/cuda/cce_shape_test.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/shapes/gemm_shape.h"

namespace longhaul::kernels::cuda {

enum class CcePasses {
  kTwo,    // a tile of rows against the whole vocabulary: 4 rows * vocab * hidden operations, a tile of logits
  kThree,  // tiles of the vocabulary too, logits computed twice: 6 rows * vocab * hidden, a few MiB
};

struct CceShape {
  CcePasses passes = CcePasses::kTwo;
  int64_t rows = 0;  // of every call; rows that are not trained are labelled so
  int64_t hidden = 0;
  int64_t vocab = 0;
  int64_t tile_rows = 0;  // the last tile may be smaller
  int64_t tile_cols = 0;  // kThree
  // bf16 halves the tile, and rounds a logit by up to 2^-9 of it; sums are f32 either way. With f32 a probability is as
  // good as the product, and a tile of the same bytes has half the rows.
  GemmElement logits = GemmElement::kBF16;
  // kTwo: columns that no row of a tile gives 2^-12 leave the second product, what they had goes to the mean head row
  // (cut_cross_entropy.h).
  bool negligible = false;
  int64_t kept_chunk = 8192;  // columns that the second product takes at a time then
  // Elements from one row to the next.
  int64_t hidden_stride = 0, head_stride = 0, d_hidden_stride = 0;

  int64_t tile_columns() const { return passes == CcePasses::kTwo ? vocab : tile_cols; }
  double flops() const {
    return (passes == CcePasses::kTwo ? 4.0 : 6.0) * static_cast<double>(rows) * static_cast<double>(vocab) *
           static_cast<double>(hidden);
  }
};

// Two passes with contiguous matrices.
CceShape TwoPassCce(int64_t rows, int64_t hidden, int64_t vocab, int64_t tile_rows);
CceShape ThreePassCce(int64_t rows, int64_t hidden, int64_t vocab, int64_t tile_rows, int64_t tile_cols);

// INVALID_ARGUMENT, reason INVALID_FIELD.
absl::Status CheckCceShape(const CceShape& shape);

// Where parts of the workspace begin, in bytes; every part 256-byte aligned. A part that the shape does not need has no
// bytes.
struct CceLayout {
  int64_t logits_stride = 0;  // elements
  int64_t logits = 0;
  int64_t lse = 0;         // [tile_rows] f32
  int64_t softmax = 0;     // [3, tile_rows] f32: largest, sum, label's logit (kThree)
  int64_t d_sum = 0;       // [tile_rows, hidden] f32 (kThree, negligible)
  int64_t head_chunk = 0;  // [kept_chunk, hidden] bf16 (negligible)
  int64_t d_chunk = 0;     // [tile_rows, kept_chunk] bf16 (negligible)
  int64_t mass = 0;        // [tile_rows] f32 (negligible)
  int64_t flags = 0;       // [vocab] u8 (negligible)
  int64_t kept = 0;        // [vocab] i32 (negligible)
  int64_t state = 0;       // (negligible)
  int64_t gemm = 0;        // of the products
  int64_t bytes = 0;       // of everything
};
// gemm_bytes: the largest workspace of CceGemms' shapes.
CceLayout CceWorkspace(const CceShape& shape, int64_t gemm_bytes);

// Products of a tile of `rows` rows. Operands a, b, c behind each.
GemmShape CceLogitsGemm(const CceShape& shape, int64_t rows, int64_t cols);  // hidden, head, logits
GemmShape CceGradientGemm(const CceShape& shape, int64_t rows,
                          int64_t cols);                     // gradient (bf16, in the logits), head, d
GemmShape CceKeptGemm(const CceShape& shape, int64_t rows);  // d_chunk, head_chunk, d_sum +=
// All that a shape runs.
std::vector<GemmShape> CceGemms(const CceShape& shape);

}  // namespace longhaul::kernels::cuda
