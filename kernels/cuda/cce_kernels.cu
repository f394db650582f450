// Gradient of a tile in place; columns that matter to no row of a tile, and what stands for the others.
#include <cmath>

#include "base/check.h"
#include "kernels/cuda/cce_kernels.h"
#include "kernels/cuda/launch_on.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda_error.h"
#include "kernels/ops.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr char kOp[] = "CutCrossEntropy";

constexpr int kThreads = 512;
constexpr int kUnroll = 4;  // vectors that a thread has in flight
constexpr int kScanThreads = 1024;
constexpr int kColumnThreads = 128;  // kernels that give a thread a column of the hidden size

template <typename T>
__device__ const T* RowOf(const CceTile& tile, int64_t row) {
  return static_cast<const T*>(tile.logits) + row * tile.stride;
}

__device__ bool IsTrained(const CceTile& tile, int64_t row) { return tile.labels[row] != kNotTrained; }

// Calls body(col, logit) for the block's share of a row, which begins at a whole vector.
template <typename T, typename Body>
__device__ void ForEachLogit(const T* row, int64_t cols, const Body& body) {
  constexpr int kCount = VectorOf<T>();
  const int64_t packs = cols / kCount;
  for (int64_t first = threadIdx.x; first < packs; first += kThreads * kUnroll) {
    Pack<T, kCount> pack[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * kThreads < packs) pack[u] = Load<kCount>(row + (first + u * kThreads) * kCount);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * kThreads >= packs) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) body((first + u * kThreads) * kCount + i, pack[u][i]);
    }
  }
  for (int64_t col = packs * kCount + threadIdx.x; col < cols; col += kThreads) body(col, ToFloat(row[col]));
}

// A block a row. bf16 may be written where f32 was read before: a chunk's gradients end before its own logits do, so it
// is enough that the whole block has read a chunk before any of it is written. Columns up to the next whole vector are
// written too; they lie inside the stride.
template <typename T>
__global__ void __launch_bounds__(kThreads) GradientKernel(CceTile tile) {
  constexpr int kCount = VectorOf<T>();
  const int64_t row = blockIdx.x;
  const T* const from = RowOf<T>(tile, row);
  auto* const to = reinterpret_cast<Bf16*>(static_cast<char*>(tile.logits) + row * tile.stride * sizeof(T));
  const bool trained = IsTrained(tile, row);
  const int64_t label = static_cast<int64_t>(tile.labels[row]) - tile.first_col;
  const float lse = tile.lse[row], scale = static_cast<float>(*tile.grad_scale);
  const int64_t packs = (tile.cols + kCount - 1) / kCount;
  for (int64_t begin = 0; begin < packs; begin += kThreads * kUnroll) {
    Pack<T, kCount> pack[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t p = begin + threadIdx.x + u * kThreads;
      if (p < packs) pack[u] = Load<kCount>(from + p * kCount);
    }
    __syncthreads();
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t p = begin + threadIdx.x + u * kThreads;
      if (p >= packs) continue;
      Pack<Bf16, kCount> out;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float gradient = scale * __expf(pack[u][i] - lse) - (p * kCount + i == label ? scale : 0.0f);
        out.Set(i, trained ? gradient : 0.0f);
      }
      Store(to + p * kCount, out);
    }
  }
}

// ---- Negligible columns ----

template <typename T>
__global__ void __launch_bounds__(kThreads) FlagKernel(CceTile tile, uint8_t* flags) {
  const int64_t row = blockIdx.x;
  if (!IsTrained(tile, row)) return;
  static_assert(kKeptProbability == 0x1p-12);
  const float least = tile.lse[row] + static_cast<float>(-12 * 0.693147180559945309);
  // Every writer writes a 1.
  ForEachLogit(RowOf<T>(tile, row), tile.cols, [=](int64_t col, float logit) {
    if (logit >= least) flags[col] = 1;
  });
  if (threadIdx.x == 0) flags[tile.labels[row]] = 1;
}

// One block: every thread counts the flags of its stretch of columns, all before a stretch are summed, and the thread
// writes its own behind them.
__global__ void __launch_bounds__(kScanThreads) ListKernel(int64_t cols, KeptColumns columns) {
  __shared__ int totals[kMaxWarps];
  const int64_t stretch = (cols + kScanThreads - 1) / kScanThreads;
  const int64_t begin = min(static_cast<int64_t>(threadIdx.x) * stretch, cols), end = min(begin + stretch, cols);
  int count = 0;
  for (int64_t col = begin; col < end; ++col) count += columns.flags[col];
  // Inclusive sums: within the warp, then over warps.
  int before = count;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0u, before, step);
    if (lane >= step) before += other;
  }
  if (lane == kWarp - 1) totals[warp] = before;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += totals[w];
  before -= count;
  for (int64_t col = begin; col < end; ++col) {
    if (columns.flags[col] != 0) columns.kept[before++] = static_cast<int32_t>(col);
  }
  if (threadIdx.x == kScanThreads - 1) *columns.state = {.kept = before, .next = 0, .full = 0};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) MassKernel(CceTile tile, KeptColumns columns) {
  __shared__ float sums[kMaxWarps];
  const int64_t row = blockIdx.x;
  const bool trained = IsTrained(tile, row);
  const float lse = tile.lse[row];
  float sum = 0;
  if (trained) {
    ForEachLogit(RowOf<T>(tile, row), tile.cols, [&](int64_t col, float logit) {
      if (columns.flags[col] != 0) sum += __expf(logit - lse);
    });
  }
  sum = ReduceBlock(sum, sums, 0.0f, Plus());
  if (threadIdx.x != 0) return;
  columns.mass[row] = trained ? fminf(sum, 1.0f) : 1.0f;
  // A NaN takes the full product, where it shows.
  if (trained && !(1.0f - sum <= kMaxDroppedMass)) columns.state->full = 1;
}

__global__ void DecideKernel(const KeptState* state, cudaGraphConditionalHandle full, cudaGraphConditionalHandle more) {
  cudaGraphSetConditional(full, state->full != 0);
  cudaGraphSetConditional(more, state->full == 0 && state->kept > 0);
}

__global__ void AdvanceKernel(KeptState* state, int32_t chunk, cudaGraphConditionalHandle more) {
  state->next += chunk;
  cudaGraphSetConditional(more, state->next < state->kept);
}

// A block a head row.
__global__ void __launch_bounds__(kColumnThreads)
    GatherHeadKernel(KeptColumns columns, const uint4* head, int64_t head_vectors, int64_t vectors, uint4* chunk) {
  const int64_t at = columns.state->next + static_cast<int64_t>(blockIdx.x);
  uint4* const to = chunk + blockIdx.x * vectors;
  if (at >= columns.state->kept) {
    for (int64_t i = threadIdx.x; i < vectors; i += kColumnThreads) to[i] = uint4{};
    return;
  }
  const uint4* const from = head + columns.kept[at] * head_vectors;
  for (int64_t i = threadIdx.x; i < vectors; i += kColumnThreads) to[i] = from[i];
}

// A block a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    GatherGradientKernel(CceTile tile, KeptColumns columns, int64_t chunk, Bf16* gradients) {
  const int64_t row = blockIdx.x, next = columns.state->next, kept = columns.state->kept;
  const T* const logits = RowOf<T>(tile, row);
  const bool trained = IsTrained(tile, row);
  const float lse = tile.lse[row], scale = static_cast<float>(*tile.grad_scale);
  for (int64_t i = threadIdx.x; i < chunk; i += kThreads) {
    float gradient = 0;
    if (trained && next + i < kept) {
      const int32_t col = columns.kept[next + i];
      gradient = scale * __expf(ToFloat(logits[col]) - lse) - (col == tile.labels[row] ? scale : 0.0f);
    }
    gradients[row * chunk + i] = __float2bfloat16_rn(gradient);
  }
}

// A block a row.
__global__ void __launch_bounds__(kColumnThreads)
    FinishKernel(CceTile tile, KeptColumns columns, const float* mean_row, const float* d_sum, int64_t hidden, Bf16* d,
                 int64_t d_stride) {
  const int64_t row = blockIdx.x;
  float factor = 0;
  if (mean_row != nullptr && columns.state->full == 0) {
    factor = static_cast<float>(*tile.grad_scale) * (1.0f - columns.mass[row]);
  }
  for (int64_t i = threadIdx.x; i < hidden; i += kColumnThreads) {
    float value = d_sum[row * hidden + i];
    if (factor != 0) value += factor * mean_row[i];
    d[row * d_stride + i] = __float2bfloat16_rn(value);
  }
}

__global__ void __launch_bounds__(kColumnThreads)
    MeanRowKernel(const Bf16* head, int64_t head_stride, int64_t vocab, int64_t hidden, float* mean) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (col >= hidden) return;
  // In stretches, so that 256K additions lose nothing.
  constexpr int64_t kStretch = 512;
  float sum = 0;
  for (int64_t first = 0; first < vocab; first += kStretch) {
    float part = 0;
    for (int64_t row = first; row < min(first + kStretch, vocab); ++row) part += ToFloat(head[row * head_stride + col]);
    sum += part;
  }
  mean[col] = sum / static_cast<float>(vocab);
}

template <typename Body>
void WithLogits(GemmElement type, const Body& body) {
  if (type == GemmElement::kBF16) {
    body(Bf16{});
  } else {
    LH_CHECK(type == GemmElement::kF32);
    body(float{});
  }
}

}  // namespace

void LaunchGradientToBf16(cudaStream_t stream, const CceTile& tile) {
  WithLogits(tile.type,
             [&](auto zero) { LaunchOn(stream, kOp, GradientKernel<decltype(zero)>, tile.rows, kThreads, 0, tile); });
}

void LaunchChooseColumns(cudaStream_t stream, const CceTile& tile, const KeptColumns& columns) {
  const cudaError_t error = cudaMemsetAsync(columns.flags, 0, static_cast<size_t>(tile.cols), stream);
  if (error != cudaSuccess) throw CudaError("CutCrossEntropy", "cudaMemsetAsync", error, cudaGetErrorString(error));
  WithLogits(tile.type, [&](auto zero) {
    using T = decltype(zero);
    LaunchOn(stream, kOp, FlagKernel<T>, tile.rows, kThreads, 0, tile, columns.flags);
    LaunchOn(stream, kOp, ListKernel, 1, kScanThreads, 0, tile.cols, columns);
    LaunchOn(stream, kOp, MassKernel<T>, tile.rows, kThreads, 0, tile, columns);
  });
}

void LaunchDecide(cudaStream_t stream, const KeptState* state, cudaGraphConditionalHandle full,
                  cudaGraphConditionalHandle more) {
  LaunchOn(stream, kOp, DecideKernel, 1, 1, 0, state, full, more);
}

void LaunchGatherChunk(cudaStream_t stream, const CceTile& tile, const KeptColumns& columns, int64_t chunk,
                       const void* head, int64_t head_stride, int64_t hidden, void* head_chunk, void* d_chunk) {
  constexpr int64_t kVector = VectorOf<Bf16>();
  LH_CHECK(hidden % kVector == 0 && head_stride % kVector == 0);
  LaunchOn(stream, kOp, GatherHeadKernel, chunk, kColumnThreads, 0, columns, static_cast<const uint4*>(head),
           head_stride / kVector, hidden / kVector, static_cast<uint4*>(head_chunk));
  WithLogits(tile.type, [&](auto zero) {
    LaunchOn(stream, kOp, GatherGradientKernel<decltype(zero)>, tile.rows, kThreads, 0, tile, columns, chunk,
             static_cast<Bf16*>(d_chunk));
  });
}

void LaunchAdvance(cudaStream_t stream, KeptState* state, int64_t chunk, cudaGraphConditionalHandle more) {
  LaunchOn(stream, kOp, AdvanceKernel, 1, 1, 0, state, static_cast<int32_t>(chunk), more);
}

void LaunchFinishHidden(cudaStream_t stream, const CceTile& tile, const KeptColumns* columns, const float* mean_row,
                        const float* d_sum, int64_t hidden, void* d, int64_t d_stride) {
  LH_CHECK((columns != nullptr) == (mean_row != nullptr));
  LaunchOn(stream, kOp, FinishKernel, tile.rows, kColumnThreads, 0, tile, columns != nullptr ? *columns : KeptColumns{},
           mean_row, d_sum, hidden, static_cast<Bf16*>(d), d_stride);
}

void LaunchMeanRow(cudaStream_t stream, const void* head, int64_t head_stride, int64_t vocab, int64_t hidden,
                   float* mean) {
  LaunchOn(stream, kOp, MeanRowKernel, (hidden + kColumnThreads - 1) / kColumnThreads, kColumnThreads, 0,
           static_cast<const Bf16*>(head), head_stride, vocab, hidden, mean);
}

}  // namespace longhaul::kernels::cuda
