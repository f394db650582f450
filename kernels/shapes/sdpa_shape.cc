#include "kernels/shapes/sdpa_shape.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <sstream>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"

namespace longhaul::kernels::cuda {
namespace {

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

SdpaShape Contiguous(SdpaShape shape) {
  shape.scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  const int64_t q_cols = shape.heads * shape.head_dim, kv_cols = shape.kv_heads * shape.head_dim;
  shape.q_stride = shape.o_stride = shape.d_o_stride = shape.dq_stride = q_cols;
  shape.k_stride = shape.v_stride = shape.dk_stride = shape.dv_stride = kv_cols;
  return shape;
}

// A matrix of the shape as its checks see it.
struct Matrix {
  const char* name;
  int64_t stride;
  int64_t cols;
};

std::array<Matrix, 8> Matrices(const SdpaShape& s) {
  const int64_t q_cols = s.heads * s.head_dim, kv_cols = s.kv_heads * s.head_dim;
  return {{{"q_stride", s.q_stride, q_cols},
           {"k_stride", s.k_stride, kv_cols},
           {"v_stride", s.v_stride, kv_cols},
           {"o_stride", s.o_stride, q_cols},
           {"d_o_stride", s.d_o_stride, q_cols},
           {"dq_stride", s.dq_stride, q_cols},
           {"dk_stride", s.dk_stride, kv_cols},
           {"dv_stride", s.dv_stride, kv_cols}}};
}

absl::Status CheckSizes(const SdpaShape& s) {
  const auto below_one = [](const char* name, int64_t value) {
    return InvalidField(name, "is " + std::to_string(value) + "; must be at least 1");
  };
  if (s.batch < 1 || s.batch > limits::kMaxSdpaBatch) {
    return InvalidField("batch",
                        "is " + std::to_string(s.batch) + "; must be 1 to " + std::to_string(limits::kMaxSdpaBatch));
  }
  if (s.heads < 1) return below_one("heads", s.heads);
  if (s.kv_heads < 1) return below_one("kv_heads", s.kv_heads);
  if (s.max_q < 1) return below_one("max_q", s.max_q);
  if (s.max_kv < 1) return below_one("max_kv", s.max_kv);
  if (s.heads % s.kv_heads != 0) {
    return InvalidField("heads", "is " + std::to_string(s.heads) + "; must be a multiple of the " +
                                     std::to_string(s.kv_heads) + " key heads");
  }
  if (s.head_dim < 8 || s.head_dim > limits::kMaxHeadDim || s.head_dim % 8 != 0) {
    return InvalidField("head_dim", "is " + std::to_string(s.head_dim) + "; must be a multiple of 8 up to " +
                                        std::to_string(limits::kMaxHeadDim));
  }
  if (s.layout == SdpaLayout::kRagged) {
    if (s.tokens_q < 1) return below_one("tokens_q", s.tokens_q);
    if (s.tokens_kv < 1) return below_one("tokens_kv", s.tokens_kv);
  }
  return absl::OkStatus();
}

}  // namespace

SdpaShape DenseSdpa(int64_t batch, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  return Contiguous({.layout = SdpaLayout::kDense,
                     .batch = batch,
                     .heads = heads,
                     .kv_heads = kv_heads,
                     .head_dim = head_dim,
                     .max_q = rows,
                     .max_kv = rows});
}

SdpaShape RaggedSdpa(int64_t documents, int64_t max, int64_t tokens, int64_t heads, int64_t kv_heads,
                     int64_t head_dim) {
  return Contiguous({.layout = SdpaLayout::kRagged,
                     .batch = documents,
                     .heads = heads,
                     .kv_heads = kv_heads,
                     .head_dim = head_dim,
                     .max_q = max,
                     .max_kv = max,
                     .tokens_q = tokens,
                     .tokens_kv = tokens});
}

SdpaShape WithOneQkvBuffer(SdpaShape shape, int64_t stride) {
  shape.q_stride = shape.k_stride = shape.v_stride = stride;
  shape.dq_stride = shape.dk_stride = shape.dv_stride = stride;
  return shape;
}

absl::Status CheckSdpaShape(const SdpaShape& s) {
  if (absl::Status status = CheckSizes(s); !status.ok()) return status;
  for (const Matrix& matrix : Matrices(s)) {
    if (matrix.stride < matrix.cols || matrix.stride % 8 != 0) {
      return InvalidField(matrix.name, "is " + std::to_string(matrix.stride) +
                                           "; must be a multiple of 8 of at least " + std::to_string(matrix.cols));
    }
  }
  if (s.max_q > s.max_kv || (!s.queries_last && s.max_q != s.max_kv)) {
    return InvalidField("max_q", "is " + std::to_string(s.max_q) + " and max_kv " + std::to_string(s.max_kv) +
                                     "; must be equal, or less where the queries are the last rows");
  }
  if (!s.queries_last && s.rows_q() != s.rows_kv()) {
    return InvalidField("tokens_q", "must be tokens_kv where every key has its query");
  }
  if (s.window < 0) return InvalidField("window", "is " + std::to_string(s.window) + "; must not be negative");
  if (!std::isfinite(s.scale) || s.scale <= 0) return InvalidField("scale", "must be positive");
  return absl::OkStatus();
}

std::string SdpaKey(const SdpaShape& s) {
  constexpr std::array<const char*, 3> kLayouts = {"dense", "padded", "ragged"};
  std::ostringstream out;
  out << kLayouts[static_cast<size_t>(s.layout)] << " b" << s.batch << " h" << s.heads << '/' << s.kv_heads << " d"
      << s.head_dim << " q" << s.max_q << " kv" << s.max_kv;
  if (s.layout == SdpaLayout::kRagged) out << " t" << s.tokens_q << '/' << s.tokens_kv;
  if (s.queries_last) out << " last";
  if (s.window > 0) out << " w" << s.window;
  if (s.deterministic) out << " det";
  out << " strides";
  for (const Matrix& matrix : Matrices(s)) out << ' ' << matrix.stride;
  return out.str();
}

bool SdpaStatsAreRows(const SdpaShape& shape, const SdpaDevice& device) {
  // cuDNN's kernels for compute capability 8.x and 12.x read statistics a sequence only.
  const int major = device.compute_capability / 10;
  return shape.layout == SdpaLayout::kRagged && (major == 9 || major == 10);
}

int64_t SdpaStatsBytes(const SdpaShape& shape, const SdpaDevice& device) {
  const int64_t rows = SdpaStatsAreRows(shape, device) ? shape.tokens_q : shape.batch * shape.max_q;
  return rows * shape.heads * 4;
}

int64_t SdpaForwardWorkspaceBytes(const SdpaShape& shape, const SdpaDevice&) {
  constexpr int64_t kBase = 256;
  if (shape.layout != SdpaLayout::kRagged) return kBase;
  // Per document a 64-byte descriptor of each of q, k, v, o.
  return kBase + 4 * RoundUp(64 * (std::max<int64_t>(shape.batch, 64) + 1), 128);
}

int64_t SdpaBackwardWorkspaceBytes(const SdpaShape& s, const SdpaDevice& device) {
  const bool ragged = s.layout == SdpaLayout::kRagged;
  int64_t bytes = 256;
  // Descriptors of q, k, v, dO, dk, dv and of the accumulated dq.
  if (ragged) bytes += (s.deterministic ? 6 : 7) * RoundUp(64 * (s.batch + 1), 128);
  bytes += SdpaStatsBytes(s, device);  // rowsum(dO * O)
  // What spans a packed buffer goes from its first to its last used element, at the stride of the result.
  const auto packed = [&s](int64_t tokens, int64_t stride) {
    return ((tokens - 1) * stride + s.heads * s.head_dim) * 4;
  };
  if (s.deterministic) {
    bytes += s.batch * s.heads * RoundUp(s.max_q, 64) * RoundUp(s.max_kv, 128) * 2;
  } else {
    bytes += ragged ? packed(s.tokens_q, s.dq_stride) : s.batch * s.max_q * s.heads * s.head_dim * 4;
  }
  if (s.kv_heads == s.heads) return bytes;
  const int64_t group = s.heads / s.kv_heads;
  if (ragged) return bytes + packed(s.tokens_kv, s.dk_stride * group) + packed(s.tokens_kv, s.dv_stride * group);
  return bytes + 2 * s.batch * s.max_kv * s.heads * s.head_dim * 2;
}

int64_t SdpaReferenceWorkspaceBytes(const SdpaShape& shape, const SdpaDevice& device) {
  return SdpaStatsBytes(shape, device);
}

int64_t SdpaIndexOffset(const SdpaShape& shape, SdpaIndex array) {
  const int64_t position = static_cast<int64_t>(array);
  return std::min(position, kSdpaOffsetArrays) * RoundUp((shape.batch + 1) * 8, 16) +
         std::max<int64_t>(position - kSdpaOffsetArrays, 0) * RoundUp(shape.batch * 4, 16);
}

int64_t SdpaIndexBytes(const SdpaShape& shape) {
  if (shape.layout != SdpaLayout::kRagged) return 0;
  return SdpaIndexOffset(shape, SdpaIndex::kLengthsKv) + RoundUp(shape.batch * 4, 16);
}

double SdpaFlops(const SdpaShape& shape, int64_t length, bool backward) {
  const double n = static_cast<double>(length);
  const double w = shape.window > 0 ? std::min(n, static_cast<double>(shape.window)) : n;
  // Rows 1 to w see as many keys as their number, the rest w.
  const double visible = w * (w + 1) / 2 + (n - w) * w;
  return visible * static_cast<double>(shape.heads * shape.head_dim) * 2 * (backward ? 5 : 2);
}

}  // namespace longhaul::kernels::cuda
