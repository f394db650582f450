// The gradient of hidden states from what the products left, and rows whose columns are mostly negligible.
#include <cfloat>
#include <cmath>

#include "base/check.h"
#include "base/limits.h"
#include "kernels/cuda/cce_kernels.h"
#include "kernels/cuda/launch_on.cuh"
#include "kernels/cuda/loss_row.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/ops.h"
#include "kernels/shapes/cce_shape.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr char kOp[] = "CutCrossEntropy";

constexpr int kScanThreads = 1024;
constexpr int kColumnThreads = 128;  // kernels that give a thread a column of the hidden size, or a vector of them
constexpr int kVector = VectorOf<Bf16>();  // columns of such a vector
constexpr int kRowsInFlight = 8;           // head rows that a thread has in flight
constexpr int kKept = static_cast<int>(kCceKeptPerRow);

// A label out of range is a bug of the engine: the kernel ends, and with it the trainer.
__device__ void CheckLabel(const CceRows& rows, int32_t label) {
  if (label < 0 || label >= rows.vocab) __trap();
}

__device__ const Bf16* HeadAt(const CceHead& head, int64_t row, int64_t col) {
  return static_cast<const Bf16*>(head.rows) + row * head.stride + col;
}

// sum += factor * head[row][col, col + kVector).
__device__ void AddHeadRow(const Pack<Bf16, kVector>& head, float factor, float (&sum)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] = fmaf(factor, head[i], sum[i]);
}

// A block a row and a stretch of kColumnThreads vectors.
__global__ void __launch_bounds__(kColumnThreads)
    FinishKernel(CceRows rows, CceHead head, const float* d_sum, const int32_t* places, int32_t stretches, float* d,
                 int64_t d_stride) {
  const int64_t row = blockIdx.x / stretches;
  const int64_t col = (int64_t{blockIdx.x % stretches} * kColumnThreads + threadIdx.x) * kVector;
  const int64_t place = places != nullptr ? places[row] : row;
  if (place < 0 || col >= head.hidden) return;
  const int32_t label = rows.labels[row];
  float out[kVector] = {};
  if (label != kNotTrained) {
    CheckLabel(rows, label);
    const float scale = static_cast<float>(*rows.grad_scale), inverse = 1.0f / rows.sum[row];
    const float p = __expf(rows.label_logit[row] - rows.largest[row]) * inverse;
    const Pack<float, kVector> sums = Load<kVector>(d_sum + row * head.hidden + col);
#pragma unroll
    for (int i = 0; i < kVector; ++i) out[i] = scale * inverse * sums[i];
    AddHeadRow(Load<kVector>(HeadAt(head, label, col)), scale * (p - 1), out);
  }
  Store(d + place * d_stride + col, PackOf<float>(out));
}

// ---- Negligible columns ----

__global__ void BeginColumnsKernel(int64_t rows, KeptColumns columns) {
  const int64_t row = int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (row >= rows) return;
  columns.counts[row] = 0;
  columns.lost[row] = -INFINITY;
}

// What a logit must be for the row to keep its column.
__device__ float Least(float largest, float sum) {
  static_assert(kKeptProbability == 0x1p-13);
  return largest + __logf(sum) + static_cast<float>(-13 * 0.693147180559945309);
}

// Sum over the threads before this one; *total over all. `shared`: kMaxWarps + 1 values.
__device__ uint32_t SumBefore(uint32_t value, uint32_t* shared, uint32_t* total) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  uint32_t before = value;
#pragma unroll
  for (unsigned step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, before, step);
    if (lane >= step) before += other;
  }
  if (lane == kWarp - 1) shared[warp] = before;
  __syncthreads();
  *total = 0;
  uint32_t warps_before = 0;
  for (unsigned w = 0; w < warps; ++w) {
    if (w == warp) warps_before = *total;
    *total += shared[w];
  }
  return warps_before + before - value;
}

// Columns of one row that stay, those before looked at again: thresholds rise from tile to tile, so that lists hold
// little that does not stay in the end. `before`: kKept entries, `shared`: kMaxWarps values.
template <typename T, int kCount>
__device__ void KeepOfRow(const SharedRow<T, kCount>& held, int64_t row, int32_t first_col, int32_t label,
                          const RowNow& now, const KeptColumns& columns, int2* before, uint32_t* shared) {
  const float least = Least(now.largest, now.sum);
  const auto stays = [least](float logit) { return logit >= least && logit > -FLT_MAX; };
  int2* const entries = static_cast<int2*>(columns.entries) + row * kKept;
  const int32_t had = columns.counts[row];
  // A thread looks again at a stretch of its own.
  const int32_t stretch = (had + static_cast<int32_t>(blockDim.x) - 1) / static_cast<int32_t>(blockDim.x);
  const int32_t begin = min(static_cast<int32_t>(threadIdx.x) * stretch, had), end = min(begin + stretch, had);
  uint32_t old = 0, found = 0;
  for (int32_t i = begin; i < end; ++i) {
    before[i] = entries[i];
    old += stays(__int_as_float(before[i].y)) ? 1 : 0;
  }
  // body(col, logit) for what is found.
  const auto find = [&](const auto& body) {
    const auto look = [&](int32_t col, float logit) {
      if (stays(logit) && first_col + col != label) body(first_col + col, logit);
    };
    held.ForEach(
        [&](int32_t col, const Pack<T, kCount>& pack) {
          if (!(LargestOf(pack) >= least)) return;
#pragma unroll
          for (int i = 0; i < kCount; ++i) look(col + i, pack[i]);
        },
        look);
  };
  find([&](int32_t, float) { ++found; });
  // Both sums at once: a row has fewer than 2^16 of either.
  static_assert(kKept < 1 << 16 && limits::kMaxLossTileCols < 1 << 16);
  uint32_t total = 0;
  const uint32_t at = SumBefore(old << 16 | found, shared, &total);
  uint32_t to = at >> 16;
  for (int32_t i = begin; i < end; ++i) {
    if (stays(__int_as_float(before[i].y))) entries[to++] = before[i];
  }
  const uint32_t stayed = total >> 16, all = stayed + (total & 0xffff);
  to = stayed + (at & 0xffff);
  if (found > 0) {
    find([&](int32_t col, float logit) {
      if (to < kKept) entries[to] = make_int2(col, __float_as_int(logit));
      ++to;
    });
  }
  if (threadIdx.x != 0) return;
  columns.counts[row] = static_cast<int32_t>(min(all, static_cast<uint32_t>(kKept)));
  // The largest logit so far stands for those that found no room.
  if (all > kKept) columns.lost[row] = now.largest;
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kRowMaxThreads)
    KeepKernel(Rows<T> logits, int32_t cols, int32_t first_col, CceRows rows, KeptColumns columns) {
  extern __shared__ __align__(kVectorBytes) unsigned char shared_bytes[];
  __shared__ int2 before[kKept];
  __shared__ uint32_t shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const int32_t label = rows.labels[row];
  if (label == kNotTrained) return;
  const SharedRow<T, kCount> held = CopyRow<T, kCount>(logits(row, 0), cols, shared_bytes);
  T* const nowhere = nullptr;
  const RowNow now =
      UpdateRow(held, row, int64_t{label} - first_col, {rows.largest, rows.sum, rows.label_logit}, nowhere);
  KeepOfRow(held, row, first_col, label, now, columns, before, shared);
}

// A block a row and a stretch of kColumnThreads vectors.
__global__ void __launch_bounds__(kColumnThreads)
    KeptHiddenKernel(CceRows rows, CceHead head, KeptColumns columns, const float* mean_row, int32_t stretches,
                     float* d, int64_t d_stride) {
  __shared__ int2 kept[kKept];
  __shared__ float sums[kMaxWarps];
  const int64_t row = blockIdx.x / stretches;
  const int32_t stretch = static_cast<int32_t>(blockIdx.x % stretches);
  const int64_t col = (int64_t{stretch} * kColumnThreads + threadIdx.x) * kVector;
  const int32_t label = rows.labels[row], count = label == kNotTrained ? 0 : columns.counts[row];
  float out[kVector] = {};
  bool is_full = false;
  if (label != kNotTrained) {
    CheckLabel(rows, label);
    const float largest = rows.largest[row], inverse = 1.0f / rows.sum[row];
    const int2* const entries = static_cast<const int2*>(columns.entries) + row * kKept;
    float mass = 0;
    for (int32_t i = threadIdx.x; i < count; i += kColumnThreads) {
      const int2 entry = entries[i];
      const float p = __expf(__int_as_float(entry.y) - largest) * inverse;
      kept[i] = make_int2(entry.x, __float_as_int(p));
      mass += p;
    }
    const float label_p = __expf(rows.label_logit[row] - largest) * inverse;
    const float dropped = fmaxf(1 - label_p - ReduceBlock(mass, sums, 0.0f, Plus()), 0.0f);
    // A NaN takes all columns, where it shows; also lists that something large may have found no room in.
    const bool has_all = columns.lost[row] < Least(largest, rows.sum[row]) && isfinite(rows.sum[row]);
    is_full = !(dropped <= kMaxDroppedMass && has_all);
    __syncthreads();
    if (!is_full && col < head.hidden) {
      for (int32_t first = 0; first < count; first += kRowsInFlight) {
        Pack<Bf16, kVector> packs[kRowsInFlight];
#pragma unroll
        for (int u = 0; u < kRowsInFlight; ++u) {
          if (first + u < count) packs[u] = Load<kVector>(HeadAt(head, kept[first + u].x, col));
        }
#pragma unroll
        for (int u = 0; u < kRowsInFlight; ++u) {
          if (first + u < count) AddHeadRow(packs[u], __int_as_float(kept[first + u].y), out);
        }
      }
      AddHeadRow(Load<kVector>(HeadAt(head, label, col)), label_p - 1, out);
      const float scale = static_cast<float>(*rows.grad_scale);
#pragma unroll
      for (int i = 0; i < kVector; ++i) out[i] = scale * fmaf(dropped, mean_row[col + i], out[i]);
    }
  }
  if (stretch == 0 && threadIdx.x == 0) columns.is_full[row] = is_full ? 1 : 0;
  if (!is_full && col < head.hidden) Store(d + row * d_stride + col, PackOf<float>(out));
}

// One block: every thread counts the flags of its stretch of rows and lists them behind those of the threads before.
__global__ void __launch_bounds__(kScanThreads) ListFullKernel(int64_t rows, const uint8_t* is_full, int32_t* full,
                                                               FullState* state, cudaGraphConditionalHandle more) {
  __shared__ uint32_t shared[kMaxWarps];
  const int64_t stretch = (rows + kScanThreads - 1) / kScanThreads;
  const int64_t begin = min(static_cast<int64_t>(threadIdx.x) * stretch, rows), end = min(begin + stretch, rows);
  uint32_t count = 0, total = 0;
  for (int64_t row = begin; row < end; ++row) count += is_full[row];
  uint32_t to = SumBefore(count, shared, &total);
  for (int64_t row = begin; row < end; ++row) {
    if (is_full[row] != 0) full[to++] = static_cast<int32_t>(row);
  }
  if (threadIdx.x != 0) return;
  *state = {.count = static_cast<int32_t>(total), .next = 0};
  cudaGraphSetConditional(more, total > 0);
}

// A block a row.
__global__ void __launch_bounds__(kColumnThreads)
    GatherFullKernel(const int32_t* full, const FullState* state, const uint4* hidden, int64_t stride_vectors,
                     int64_t vectors, const int32_t* labels, uint4* to_hidden, int32_t* to_labels, int32_t* places) {
  const int64_t at = int64_t{state->next} + blockIdx.x;
  const int64_t row = at < state->count ? full[at] : -1;
  uint4* const to = to_hidden + blockIdx.x * vectors;
  for (int64_t i = threadIdx.x; i < vectors; i += kColumnThreads) {
    to[i] = row >= 0 ? hidden[row * stride_vectors + i] : uint4{};
  }
  if (threadIdx.x != 0) return;
  to_labels[blockIdx.x] = row >= 0 ? labels[row] : kNotTrained;
  places[blockIdx.x] = static_cast<int32_t>(row);
}

__global__ void AdvanceKernel(FullState* state, int32_t count, cudaGraphConditionalHandle more) {
  state->next += count;
  cudaGraphSetConditional(more, state->next < state->count);
}

__global__ void __launch_bounds__(kColumnThreads) MeanRowKernel(CceHead head, int64_t vocab, float* mean) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (col >= head.hidden) return;
  // In stretches, so that 256K additions lose nothing.
  constexpr int64_t kStretch = 512;
  float sum = 0;
  for (int64_t first = 0; first < vocab; first += kStretch) {
    float part = 0;
    for (int64_t row = first; row < min(first + kStretch, vocab); ++row) part += ToFloat(*HeadAt(head, row, col));
    sum += part;
  }
  mean[col] = sum / static_cast<float>(vocab);
}

// Blocks that cover a row, kColumnThreads vectors each.
int64_t Stretches(const CceHead& head) {
  LH_CHECK(head.hidden % kVector == 0 && head.stride % kVector == 0);
  return (head.hidden / kVector + kColumnThreads - 1) / kColumnThreads;
}

template <typename T>
void LaunchKeep(const CudaDeviceFacts& facts, cudaStream_t stream, const Tensor& logits, int64_t first_col,
                const CceRows& rows, const KeptColumns& columns) {
  constexpr int kCount = VectorOf<T>();
  constexpr int64_t kBeside = 2048 + kKept * static_cast<int64_t>(sizeof(int2));
  const auto kernel = KeepKernel<T, kCount>;
  const RowLaunch launch = LaunchOfRow(facts, kOp, kernel, logits.cols, kCount, sizeof(T), kBeside);
  LaunchOn(stream, kOp, kernel, rows.rows, launch.threads, launch.shared_bytes, Rows<T>(logits), logits.cols, first_col,
           rows, columns);
}

}  // namespace

void LaunchFinishHidden(cudaStream_t stream, const CceRows& rows, const CceHead& head, const float* d_sum,
                        const int32_t* places, float* d, int64_t d_stride) {
  LH_CHECK(d_stride % kVector == 0);
  const int64_t stretches = Stretches(head);
  LaunchOn(stream, kOp, FinishKernel, rows.rows * stretches, kColumnThreads, 0, rows, head, d_sum, places, stretches, d,
           d_stride);
}

void LaunchBeginColumns(cudaStream_t stream, int64_t rows, const KeptColumns& columns) {
  LaunchOn(stream, kOp, BeginColumnsKernel, (rows + kColumnThreads - 1) / kColumnThreads, kColumnThreads, 0, rows,
           columns);
}

void LaunchKeepColumns(const CudaDeviceFacts& facts, cudaStream_t stream, const Tensor& logits, int64_t first_col,
                       const CceRows& rows, const KeptColumns& columns) {
  WithActivation(logits.dtype,
                 [&](auto zero) { LaunchKeep<decltype(zero)>(facts, stream, logits, first_col, rows, columns); });
}

void LaunchKeptHidden(cudaStream_t stream, const CceRows& rows, const CceHead& head, const KeptColumns& columns,
                      const float* mean_row, float* d, int64_t d_stride) {
  LH_CHECK(d_stride % kVector == 0);
  const int64_t stretches = Stretches(head);
  LaunchOn(stream, kOp, KeptHiddenKernel, rows.rows * stretches, kColumnThreads, 0, rows, head, columns, mean_row,
           stretches, d, d_stride);
}

void LaunchListFull(cudaStream_t stream, int64_t rows, const uint8_t* is_full, int32_t* full, FullState* state,
                    cudaGraphConditionalHandle more) {
  LaunchOn(stream, kOp, ListFullKernel, 1, kScanThreads, 0, rows, is_full, full, state, more);
}

void LaunchGatherFull(cudaStream_t stream, const int32_t* full, const FullState* state, int64_t count,
                      const void* hidden, int64_t hidden_stride, int64_t hidden_cols, const int32_t* labels,
                      void* to_hidden, int32_t* to_labels, int32_t* places) {
  LH_CHECK(hidden_stride % kVector == 0 && hidden_cols % kVector == 0);
  LaunchOn(stream, kOp, GatherFullKernel, count, kColumnThreads, 0, full, state, static_cast<const uint4*>(hidden),
           hidden_stride / kVector, hidden_cols / kVector, labels, static_cast<uint4*>(to_hidden), to_labels, places);
}

void LaunchAdvance(cudaStream_t stream, FullState* state, int64_t count, cudaGraphConditionalHandle more) {
  LaunchOn(stream, kOp, AdvanceKernel, 1, 1, 0, state, static_cast<int32_t>(count), more);
}

void LaunchMeanRow(cudaStream_t stream, const CceHead& head, int64_t vocab, float* mean) {
  LaunchOn(stream, kOp, MeanRowKernel, (head.hidden + kColumnThreads - 1) / kColumnThreads, kColumnThreads, 0, head,
           vocab, mean);
}

}  // namespace longhaul::kernels::cuda
