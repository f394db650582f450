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

CceShape Contiguous(CceShape shape) {
  shape.hidden_stride = shape.head_stride = shape.d_hidden_stride = shape.hidden;
  return shape;
}

// Logits of a row begin at whole 128-byte lines.
int64_t LogitsStride(const CceShape& shape) { return RoundUp(shape.tile_columns(), 64); }

// f32 sums of the second product, where its tile is not finished by one product.
bool HasSum(const CceShape& shape) { return shape.passes == CcePasses::kThree || shape.negligible; }

// The sizes that tiles of `whole` come in when they cut `all`.
std::set<int64_t> TileSizes(int64_t all, int64_t whole) {
  std::set<int64_t> sizes;
  if (all >= whole) sizes.insert(whole);
  if (all % whole != 0) sizes.insert(all % whole);
  return sizes;
}

}  // namespace

CceShape TwoPassCce(int64_t rows, int64_t hidden, int64_t vocab, int64_t tile_rows) {
  return Contiguous({.rows = rows, .hidden = hidden, .vocab = vocab, .tile_rows = tile_rows});
}

CceShape ThreePassCce(int64_t rows, int64_t hidden, int64_t vocab, int64_t tile_rows, int64_t tile_cols) {
  return Contiguous({.passes = CcePasses::kThree,
                     .rows = rows,
                     .hidden = hidden,
                     .vocab = vocab,
                     .tile_rows = tile_rows,
                     .tile_cols = tile_cols});
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
  if (status.ok() && shape.passes == CcePasses::kThree) status = between("tile_cols", shape.tile_cols, shape.vocab);
  if (status.ok() && shape.negligible) status = between("kept_chunk", shape.kept_chunk, shape.vocab);
  if (!status.ok()) return status;
  if (shape.hidden < 8 || shape.hidden % 8 != 0) {
    return InvalidField("hidden", "is " + std::to_string(shape.hidden) + "; must be a multiple of 8");
  }
  if (shape.passes == CcePasses::kThree && shape.tile_cols % 64 != 0 && shape.tile_cols != shape.vocab) {
    return InvalidField("tile_cols", "is " + std::to_string(shape.tile_cols) + "; must be a multiple of 64");
  }
  if (shape.negligible && (shape.passes != CcePasses::kTwo || shape.kept_chunk % 64 != 0)) {
    return InvalidField("negligible", "belongs to two passes, with a kept_chunk that is a multiple of 64");
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
  const int64_t tile_rows = std::min(shape.tile_rows, shape.rows);
  const auto place = [&layout](int64_t* part, int64_t bytes) {
    *part = layout.bytes;
    layout.bytes += RoundUp(bytes, kAlignBytes);
  };
  const bool three = shape.passes == CcePasses::kThree;
  place(&layout.logits, tile_rows * layout.logits_stride * GemmElementBytes(shape.logits));
  place(&layout.lse, tile_rows * 4);
  place(&layout.softmax, three ? tile_rows * 3 * 4 : 0);
  place(&layout.d_sum, HasSum(shape) ? tile_rows * shape.hidden * 4 : 0);
  place(&layout.head_chunk, shape.negligible ? shape.kept_chunk * shape.hidden * 2 : 0);
  place(&layout.d_chunk, shape.negligible ? tile_rows * shape.kept_chunk * 2 : 0);
  place(&layout.mass, shape.negligible ? tile_rows * 4 : 0);
  place(&layout.flags, shape.negligible ? shape.vocab : 0);
  place(&layout.kept, shape.negligible ? shape.vocab * 4 : 0);
  place(&layout.state, shape.negligible ? kAlignBytes : 0);
  place(&layout.gemm, gemm_bytes);
  return layout;
}

GemmShape CceLogitsGemm(const CceShape& shape, int64_t rows, int64_t cols) {
  return {.transpose_b = true,
          .output = shape.logits,
          .m = rows,
          .n = cols,
          .k = shape.hidden,
          .a_stride = shape.hidden_stride,
          .b_stride = shape.head_stride,
          .c_stride = LogitsStride(shape)};
}

GemmShape CceGradientGemm(const CceShape& shape, int64_t rows, int64_t cols) {
  // The gradient takes the place of the first half of f32 logits.
  const int64_t halves = shape.logits == GemmElement::kF32 ? 2 : 1;
  return {.accumulate = shape.passes == CcePasses::kThree,
          .output = HasSum(shape) ? GemmElement::kF32 : GemmElement::kBF16,
          .m = rows,
          .n = shape.hidden,
          .k = cols,
          .a_stride = LogitsStride(shape) * halves,
          .b_stride = shape.head_stride,
          .c_stride = HasSum(shape) ? shape.hidden : shape.d_hidden_stride};
}

GemmShape CceKeptGemm(const CceShape& shape, int64_t rows) {
  return {.accumulate = true,
          .output = GemmElement::kF32,
          .m = rows,
          .n = shape.hidden,
          .k = shape.kept_chunk,
          .a_stride = shape.kept_chunk,
          .b_stride = shape.hidden,
          .c_stride = shape.hidden};
}

std::vector<GemmShape> CceGemms(const CceShape& shape) {
  std::vector<GemmShape> gemms;
  for (const int64_t rows : TileSizes(shape.rows, shape.tile_rows)) {
    for (const int64_t cols : TileSizes(shape.vocab, shape.tile_columns())) {
      gemms.push_back(CceLogitsGemm(shape, rows, cols));
      gemms.push_back(CceGradientGemm(shape, rows, cols));
    }
    if (shape.negligible) gemms.push_back(CceKeptGemm(shape, rows));
  }
  return gemms;
}

}  // namespace longhaul::kernels::cuda
