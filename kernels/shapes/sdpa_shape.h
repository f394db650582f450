// The shape of one attention call on CUDA and what it costs: pure, so that the memory plan can count it before there is
// a device. Tests: tests/kernels/cuda/sdpa_shape_test.cc holds answers of cuDNN for an H100; sdpa_test.cc asks the
// library that runs.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace longhaul::kernels::cuda {

enum class SdpaLayout {
  kDense,   // `batch` sequences of exactly max_q (max_kv) rows, one behind the other
  kPadded,  // the same, of which the first lengths[b] rows count; the others' outputs are unspecified
  kRagged,  // documents packed without gaps; a fixed count of them, filled up with empty ones
};

// Causal grouped-query attention: softmax(scale * q k^T) v per head and sequence; key j is visible to query i where
// i - window < j <= i (window 0: all j <= i). With queries_last a sequence may have fewer queries than keys, and query
// i stands at row length_kv - length_q + i of its keys (a chunk of a longer sequence). Matrices are row-major bf16,
// heads side by side: q [rows, heads * head_dim], k, v [rows, kv_heads * head_dim], each with its own stride, so that
// they may be column ranges of one buffer.
struct SdpaShape {
  SdpaLayout layout = SdpaLayout::kDense;
  int64_t batch = 1;  // sequences, or documents of a pack
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_q = 0;      // rows of the longest sequence that there may be
  int64_t max_kv = 0;     // rows of keys; = max_q but for chunks
  int64_t tokens_q = 0;   // kRagged: rows of the packed buffers
  int64_t tokens_kv = 0;  // kRagged
  bool queries_last = false;
  int64_t window = 0;
  double scale = 0;  // head_dim^-1/2
  bool deterministic = false;
  // Elements from one row to the next.
  int64_t q_stride = 0, k_stride = 0, v_stride = 0, o_stride = 0;
  int64_t d_o_stride = 0, dq_stride = 0, dk_stride = 0, dv_stride = 0;

  int64_t rows_q() const { return layout == SdpaLayout::kRagged ? tokens_q : batch * max_q; }
  int64_t rows_kv() const { return layout == SdpaLayout::kRagged ? tokens_kv : batch * max_kv; }
};

// A shape with contiguous matrices, scale head_dim^-1/2 and as many queries as keys. kRagged: `max` bounds a document,
// `tokens` the pack.
SdpaShape DenseSdpa(int64_t batch, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim);
SdpaShape RaggedSdpa(int64_t documents, int64_t max, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim);
// q, k, v lie in one buffer of `stride` elements a row; dq, dk, dv in another one alike.
SdpaShape WithOneQkvBuffer(SdpaShape shape, int64_t stride);

// INVALID_ARGUMENT, reason INVALID_FIELD, names the first field that cannot be: sizes below 1, heads no multiple of
// kv_heads, a head_dim that is not a multiple of 8 up to limits::kMaxHeadDim, strides below the columns or off 8
// elements, max_q > max_kv, or
// another number of queries than keys without queries_last.
absl::Status CheckSdpaShape(const SdpaShape& shape);

// "ragged b64 h32/8 d128 q4096 kv4096 t4096/4096 w0 det ...": every fact.
std::string SdpaKey(const SdpaShape& shape);

// What decides how a shape is run besides the shape.
struct SdpaDevice {
  int compute_capability = 90;
  int cudnn_version = 0;  // cudnnGetVersion(): 91400 for 9.14.0
};

// Whether the log-sum-exp of a row is stored as [rows, heads] f32 (kRagged where the device allows it) or as
// [batch, heads, max_q] f32.
bool SdpaStatsAreRows(const SdpaShape& shape, const SdpaDevice& device);
int64_t SdpaStatsBytes(const SdpaShape& shape, const SdpaDevice& device);

// Workspace of cuDNN's forward and backward on compute capability 9.x. Never below the library's answer; equal to it
// but for the forward of fewer than 64 documents, where cuDNN 9.14 takes up to 16 KiB less than 9.19.
// Backward: dQ in f32 and, for kv_heads < heads, dK and dV a query head; deterministic: 2 bytes a score instead of dQ.
// A ragged dq, dk, dv costs by its stride: keep dk and dv out of wide buffers.
int64_t SdpaForwardWorkspaceBytes(const SdpaShape& shape, const SdpaDevice& device);
int64_t SdpaBackwardWorkspaceBytes(const SdpaShape& shape, const SdpaDevice& device);
// Workspace of our own kernels: sums of dO * O a row and head.
int64_t SdpaReferenceWorkspaceBytes(const SdpaShape& shape, const SdpaDevice& device);

// Offsets of q, k, v, o, dO, dq, dk, dv and the statistics, each [batch + 1] in elements.
inline constexpr int64_t kSdpaOffsetArrays = 9;
// Bytes of the index arrays of a kRagged call (SdpaPlan::PrepareIndex): the offsets, then the lengths of queries and of
// keys, each [batch] int32; every array 16-byte aligned. 0 for other layouts.
int64_t SdpaIndexBytes(const SdpaShape& shape);

// Where they begin, in bytes.
enum class SdpaIndex { kQ, kK, kV, kO, kDO, kDQ, kDK, kDV, kStats, kLengthsQ, kLengthsKv };
int64_t SdpaIndexOffset(const SdpaShape& shape, SdpaIndex array);

// Multiplications and additions of the visible scores of one sequence of `length` rows, all heads: forward 2 products,
// backward 5.
double SdpaFlops(const SdpaShape& shape, int64_t length, bool backward);

}  // namespace longhaul::kernels::cuda
