#include "kernels/shapes/cce_shape.h"

#include <algorithm>
#include <set>
#include <string>

#include "base/error.h"
#include "base/limits.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kAlignBytes = 256;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Logits of a row begin at whole 128-byte lines.
int64_t LogitsStride(const CceShape& shape) { return RoundUp(std::min(shape.tile_cols, shape.vocab), 64); }

int64_t TileRows(const CceShape& shape) { return std::min(shape.tile_rows, shape.rows); }
int64_t FullRows(const CceShape& shape) { return shape.negligible ? shape.full_rows : TileRows(shape); }

// The sizes that tiles of `whole` come in when they cut `all`.
std::set<int64_t> TileSizes(int64_t all, int64_t whole) {
  std::set<int64_t> sizes;
  if (all >= whole) sizes.insert(whole);
  if (all % whole != 0) sizes.insert(all % whole);
  return sizes;
}

}  // namespace

CceShape MakeCceShape(int64_t rows, int64_t hidden, int64_t vocab, int64_t tile_rows) {
  return {.rows = rows,
          .hidden = hidden,
          .vocab = vocab,
          .tile_rows = tile_rows,
          .tile_cols = std::min(kCceTileCols, vocab),
          .hidden_stride = hidden,
          .head_stride = hidden,
          .d_hidden_stride = hidden};
}

absl::Status CheckCceShape(const CceShape& shape) {
  const auto between = [](const char* name, int64_t value, int64_t most) {
    return value >= 1 && value <= most
               ? absl::OkStatus()
               : InvalidField(name, "is " + std::to_string(value) + "; must be 1 to " + std::to_string(most));
  };
  absl::Status status = between("rows", shape.rows, INT32_MAX);
  if (status.ok()) status = between("vocab", shape.vocab, limits::kMaxVocabSize);
  if (status.ok()) status = between("tile_rows", shape.tile_rows, limits::kMaxLossTileRows);
  if (status.ok()) status = between("tile_cols", shape.tile_cols, limits::kMaxLossTileCols);
  if (status.ok() && shape.negligible) status = between("full_rows", shape.full_rows, limits::kMaxLossTileRows);
  if (!status.ok()) return status;
  if (shape.hidden < 8 || shape.hidden % 8 != 0) {
    return InvalidField("hidden", "is " + std::to_string(shape.hidden) + "; must be a multiple of 8");
  }
  if (shape.tile_cols % 64 != 0 && shape.tile_cols < shape.vocab) {
    return InvalidField("tile_cols", "is " + std::to_string(shape.tile_cols) + "; must be a multiple of 64");
  }
  if (shape.logits == GemmElement::kE4M3) return InvalidField("logits", "must be bf16 or f32");
  for (const GemmShape& gemm : CceGemms(shape)) {
    if (status = CheckGemmShape(gemm); !status.ok()) return status;
  }
  return absl::OkStatus();
}

CceLayout CceWorkspace(const CceShape& shape, int64_t gemm_bytes) {
  CceLayout layout;
  layout.logits_stride = LogitsStride(shape);
  const int64_t tile_rows = TileRows(shape), full_rows = FullRows(shape), most = std::max(tile_rows, full_rows);
  const auto place = [&layout](int64_t* part, int64_t bytes) {
    *part = layout.bytes;
    layout.bytes += RoundUp(bytes, kAlignBytes);
  };
  const auto place_negligible = [&](int64_t* part, int64_t bytes) { place(part, shape.negligible ? bytes : 0); };
  place(&layout.logits, most * layout.logits_stride * GemmElementBytes(shape.logits));
  place(&layout.softmax, most * 3 * 4);
  place(&layout.lse, most * 4);
  place(&layout.d_sum, full_rows * shape.hidden * 4);
  place_negligible(&layout.entries, tile_rows * kCceKeptPerRow * 8);
  place_negligible(&layout.counts, tile_rows * 4);
  place_negligible(&layout.lost, tile_rows * 4);
  place_negligible(&layout.is_full, shape.rows);
  place_negligible(&layout.full, shape.rows * 4);
  place_negligible(&layout.state, kAlignBytes);
  place_negligible(&layout.full_hidden, full_rows * shape.hidden * 2);
  place_negligible(&layout.full_labels, full_rows * 4);
  place_negligible(&layout.places, full_rows * 4);
  place(&layout.gemm, gemm_bytes);
  return layout;
}

GemmShape CceLogitsGemm(const CceShape& shape, int64_t rows, int64_t cols, int64_t hidden_stride) {
  return {.transpose_b = true,
          .output = shape.logits,
          .m = rows,
          .n = cols,
          .k = shape.hidden,
          .a_stride = hidden_stride,
          .b_stride = shape.head_stride,
          .c_stride = LogitsStride(shape)};
}

GemmShape CceGradientGemm(const CceShape& shape, int64_t rows, int64_t cols, bool is_first) {
  // The weights take the place of the first half of f32 logits.
  const int64_t halves = shape.logits == GemmElement::kF32 ? 2 : 1;
  return {.accumulate = !is_first,
          .output = GemmElement::kF32,
          .m = rows,
          .n = shape.hidden,
          .k = cols,
          .a_stride = LogitsStride(shape) * halves,
          .b_stride = shape.head_stride,
          .c_stride = shape.hidden};
}

std::vector<GemmShape> CceGemms(const CceShape& shape) {
  std::set<GemmShape> gemms;
  const auto add = [&](int64_t rows, int64_t hidden_stride, bool with_gradient) {
    for (int64_t col = 0; col < shape.vocab; col += shape.tile_cols) {
      const int64_t cols = std::min(shape.tile_cols, shape.vocab - col);
      gemms.insert(CceLogitsGemm(shape, rows, cols, hidden_stride));
      if (with_gradient) gemms.insert(CceGradientGemm(shape, rows, cols, col == 0));
    }
  };
  for (const int64_t rows : TileSizes(shape.rows, shape.tile_rows)) add(rows, shape.hidden_stride, !shape.negligible);
  if (shape.negligible) add(shape.full_rows, shape.hidden, true);
  return {gemms.begin(), gemms.end()};
}

}  // namespace longhaul::kernels::cuda
