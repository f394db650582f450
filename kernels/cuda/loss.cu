// Cross entropy of rows against a vocabulary, its gradient in place. A row is one block's: an online pass for the
// largest logit and the sum of exponentials, then a pass for the gradient. The block keeps as much of the row in shared
// memory as the device lets it, so that the second pass reads little (bf16 and 128K columns: the last 12%, from L2).
#include <cfloat>
#include <cmath>

#include "base/limits.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/loss_on.h"
#include "kernels/cuda/loss_row.cuh"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kUnroll = 4;  // packs that a thread has in flight
// What a block needs besides the row: the reductions' shared memory, and what the driver takes.
constexpr int64_t kSharedReserve = 2048;

// What one row gives: its loss and LSE (0 where not trained) and whether its label has the largest logit.
struct RowResult {
  double nats;
  double lse;
  int64_t correct;
};
static_assert(limits::kMaxLossTileRows * static_cast<int64_t>(sizeof(RowResult)) <= limits::kCudaPartialSumsBytes);

// Of some logits: the largest (at least -FLT_MAX, so that a column of -infinity has e^-infinity) and the sum of
// e^(logit - largest). A NaN passes the maximum and ends in the sum.
struct Softmax {
  float largest = -FLT_MAX;
  float sum = 0;
};

__device__ void Raise(Softmax* s, float largest) {
  const float now = fmaxf(s->largest, largest);
  s->sum *= __expf(s->largest - now);
  s->largest = now;
}

__device__ Softmax Reduce(Softmax s) {
  __shared__ float maxima[kMaxWarps], sums[kMaxWarps];
  Raise(&s, ReduceBlock(s.largest, maxima, -FLT_MAX, Largest()));
  s.sum = ReduceBlock(s.sum, sums, 0.0f, Plus());
  return s;
}

// Over the block's row. The first `held` packs are also put into `shared`; a thread reads later only what it wrote.
template <typename T, int kCount>
__device__ Softmax OnlineSoftmax(const T* row, int64_t packs, Pack<T, kCount>* shared, int64_t held) {
  Softmax s;
  const int64_t step = blockDim.x;
  for (int64_t first = threadIdx.x; first < packs; first += kUnroll * step) {
    Pack<T, kCount> pack[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * step < packs) pack[u] = Load<kCount>(row + (first + u * step) * kCount);
    }
    float largest = -FLT_MAX;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * step >= packs) continue;
      if (first + u * step < held) shared[first + u * step] = pack[u];
#pragma unroll
      for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, pack[u][i]);
    }
    Raise(&s, largest);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * step >= packs) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) s.sum += __expf(pack[u][i] - s.largest);
    }
  }
  return Reduce(s);
}

__device__ RowResult ResultOfRow(const Softmax& s, float label_logit) {
  const double log_sum = log(static_cast<double>(s.sum));
  return {log_sum + (static_cast<double>(s.largest) - static_cast<double>(label_logit)),
          static_cast<double>(s.largest) + log_sum, label_logit == s.largest ? 1 : 0};
}

// A label out of range is a bug of the engine: the kernel ends, and with it the trainer.
__device__ void CheckLabel(int32_t label, int64_t vocab) {
  if (label < 0 || label >= vocab) __trap();
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kMaxThreads)
    LossKernel(Rows<T> logits, int64_t vocab, const int32_t* labels, const double* grad_scale, int64_t held,
               Rows<float> lse, RowResult* results) {
  extern __shared__ __align__(kVectorBytes) unsigned char shared_bytes[];
  auto* const shared = reinterpret_cast<Pack<T, kCount>*>(shared_bytes);
  const int64_t row_index = blockIdx.x;
  T* const row = logits(row_index, 0);
  const int32_t label = labels[row_index];
  const int64_t packs = vocab / kCount;
  const int64_t step = blockDim.x;
  if (label == kNotTrained) {
    if (threadIdx.x == 0) {
      results[row_index] = {0, 0, 0};
      if (lse.data != nullptr) *lse(row_index, 0) = 0;
    }
    if (grad_scale == nullptr) return;
    Pack<T, kCount> zeros;
#pragma unroll
    for (int i = 0; i < kCount; ++i) zeros.Set(i, 0);
    for (int64_t p = threadIdx.x; p < packs; p += step) Store(row + p * kCount, zeros);
    return;
  }
  CheckLabel(label, vocab);
  const float label_logit = ToFloat(row[label]);  // before anyone overwrites it: barriers of the reduction follow
  const Softmax s = OnlineSoftmax<T, kCount>(row, packs, shared, held);
  if (threadIdx.x == 0) {
    const RowResult result = ResultOfRow(s, label_logit);
    results[row_index] = result;
    if (lse.data != nullptr) *lse(row_index, 0) = static_cast<float>(result.lse);
  }
  if (grad_scale == nullptr) return;
  const float scale = static_cast<float>(*grad_scale);
  const float factor = scale / s.sum;
  for (int64_t first = threadIdx.x; first < packs; first += kUnroll * step) {
    Pack<T, kCount> pack[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t p = first + u * step;
      if (p < packs) pack[u] = p < held ? shared[p] : Load<kCount>(row + p * kCount);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t p = first + u * step;
      if (p >= packs) continue;
      float gradient[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        gradient[i] = factor * __expf(pack[u][i] - s.largest) - (p * kCount + i == label ? scale : 0.0f);
      }
      Store(row + p * kCount, PackOf<T>(gradient));
    }
  }
}

// In row order, so that the sum does not depend on how rows are cut into tiles. One warp: a lane fetches a row, then
// all lanes add the 32 one after another while the next are on their way.
__global__ void __launch_bounds__(kWarp) AddTotalsKernel(const RowResult* results, int64_t rows, LossTotals* totals) {
  double nats = totals->nats;
  int64_t correct = 0;
  const int lane = static_cast<int>(threadIdx.x);
  const auto fetch = [=](int64_t row) { return row < rows ? results[row] : RowResult{0, 0, 0}; };
  RowResult next = fetch(lane);
  for (int64_t first = 0; first < rows; first += kWarp) {
    const RowResult mine = next;
    next = fetch(first + kWarp + lane);
    correct += mine.correct;
#pragma unroll
    for (int i = 0; i < kWarp; ++i) nats += __shfl_sync(0xffffffffu, mine.nats, i);
  }
  correct = ReduceLanes<kWarp>(correct, Plus());
  if (lane == 0) {
    totals->nats = nats;
    totals->correct += correct;
  }
}

__global__ void BeginLossKernel(int64_t rows, float* largest, float* sum, float* label_logit) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  largest[row] = -FLT_MAX;
  sum[row] = 0;
  label_logit[row] = nanf("");
}

template <typename T, typename W, int kCount>
__global__ void __launch_bounds__(kRowMaxThreads)
    UpdateLossKernel(Rows<T> logits, int32_t cols, int64_t first_col, const int32_t* labels, RunningLoss running,
                     Rows<W> weights, Rows<float> sums, int64_t sums_cols) {
  extern __shared__ __align__(kVectorBytes) unsigned char shared_bytes[];
  const int64_t row = blockIdx.x;
  const int32_t label = labels[row];
  W* const to = weights.data != nullptr ? weights(row, 0) : nullptr;
  if (label == kNotTrained) {
    if (to == nullptr) return;
    Pack<W, kCount> zeros;
#pragma unroll
    for (int i = 0; i < kCount; ++i) zeros.Set(i, 0);
    const SharedRow<T, kCount> nothing{nullptr, cols, T{}};
    for (int64_t p = threadIdx.x; p < nothing.whole(); p += blockDim.x) Store(to + p * kCount, zeros);
    if (nothing.has_rest()) to[nothing.rest_col()] = FromFloat<W>(0);
    return;
  }
  const SharedRow<T, kCount> held = CopyRow<T, kCount>(logits(row, 0), cols, shared_bytes);
  const RowNow now = UpdateRow(held, row, label - first_col, running, to);
  // Seldom: of t tiles alike, the last has the largest logit in one of t rows.
  if (sums.data == nullptr || now.kept == 1) return;
  for (int64_t i = threadIdx.x; i < sums_cols; i += blockDim.x) *sums(row, i) *= now.kept;
}

__global__ void FinishLossKernel(int64_t rows, const float* largest, const float* sum, const float* label_logit,
                                 const int32_t* labels, Rows<float> lse, RowResult* results) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const RowResult result =
      labels[row] == kNotTrained ? RowResult{0, 0, 0} : ResultOfRow({largest[row], sum[row]}, label_logit[row]);
  results[row] = result;
  *lse(row, 0) = static_cast<float>(result.lse);
}

// Whole warps for the packs of a row: a number that depends on the columns alone, and with it the sums' order.
int ThreadsFor(int64_t packs) {
  return static_cast<int>(std::min<int64_t>(kMaxThreads, CeilDiv(CeilDiv(packs, kUnroll), kWarp) * kWarp));
}

template <typename T, typename W, int kCount>
void LaunchUpdate(const CudaDeviceFacts& facts, cudaStream_t stream, const Tensor& logits, int64_t first_col,
                  const int32_t* labels, const LossRows& rows, const Tensor& weights, const Tensor& sums) {
  const auto kernel = UpdateLossKernel<T, W, kCount>;
  const RowLaunch launch = LaunchOfRow(facts, "UpdateLoss", kernel, logits.cols, kCount, sizeof(T), kSharedReserve);
  LaunchOn(stream, "UpdateLoss", kernel, logits.rows, launch.threads, launch.shared_bytes, Rows<T>(logits), logits.cols,
           first_col, labels, RunningLoss{rows.largest.as<float>(), rows.sum.as<float>(), rows.label_logit.as<float>()},
           Rows<W>(weights), Rows<float>(sums), sums.cols);
}

template <typename T, typename W>
void UpdateAligned(const CudaDeviceFacts& facts, cudaStream_t stream, const Tensor& logits, int64_t first_col,
                   const int32_t* labels, const LossRows& rows, const Tensor& weights, const Tensor& sums) {
  constexpr int kCount = VectorOf<T>();
  // Columns behind the last whole vector are read and written one by one.
  const auto whole = [](Tensor t) {
    t.cols = t.cols / kCount * kCount;
    return t;
  };
  const bool vectors = Vectorizable(kCount, {whole(logits), whole(weights)});
  (vectors ? LaunchUpdate<T, W, kCount> : LaunchUpdate<T, W, 1>)(facts, stream, logits, first_col, labels, rows,
                                                                 weights, sums);
}

void AddTotals(const Exec& exec, int64_t rows, LossTotals* totals) {
  Launch(exec, "LossTile", AddTotalsKernel, 1, kWarp, 0, exec.cuda().partial_sums.as<RowResult>(), rows, totals);
}

template <typename T, int kCount>
void LaunchLoss(const Exec& exec, const Tensor& logits, const int32_t* labels, const double* grad_scale,
                const Tensor& lse) {
  const int64_t packs = logits.cols / kCount;
  const int64_t pack_bytes = kCount * static_cast<int64_t>(sizeof(T));
  const int64_t room = exec.cuda().facts.shared_bytes_per_block - kSharedReserve;
  // Without a gradient there is no second pass.
  const int64_t held = grad_scale == nullptr ? 0 : std::min(packs, room / pack_bytes);
  const auto kernel = LossKernel<T, kCount>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(room)),
            "LossTile", "cudaFuncSetAttribute");
  Launch(exec, "LossTile", kernel, logits.rows, ThreadsFor(packs), held * pack_bytes, Rows<T>(logits), logits.cols,
         labels, grad_scale, held, Rows<float>(lse), exec.cuda().partial_sums.as<RowResult>());
}

}  // namespace

void LossTile(const Exec& exec, const Tensor& logits, const int32_t* labels, const double* grad_scale,
              const Tensor& lse, LossTotals* totals) {
  LH_CHECK(logits.rows <= limits::kMaxLossTileRows, std::to_string(logits.rows));
  WithActivation(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (Vectorizable(VectorOf<T>(), {logits})) {
      LaunchLoss<T, VectorOf<T>()>(exec, logits, labels, grad_scale, lse);
    } else {
      LaunchLoss<T, 1>(exec, logits, labels, grad_scale, lse);
    }
  });
  AddTotals(exec, logits.rows, totals);
}

void BeginLossOn(cudaStream_t stream, const LossRows& rows) {
  const int64_t count = rows.largest.rows;
  if (count == 0) return;
  LaunchOn(stream, "BeginLoss", BeginLossKernel, CeilDiv(count, kMapThreads), kMapThreads, 0, count,
           rows.largest.as<float>(), rows.sum.as<float>(), rows.label_logit.as<float>());
}

void BeginLoss(const Exec& exec, const LossRows& rows) { BeginLossOn(exec.cuda().compute.get(), rows); }

void UpdateLossOn(const Exec& exec, cudaStream_t stream, const Tensor& logits, int64_t first_col, const int32_t* labels,
                  const LossRows& rows, const Tensor& weights, const Tensor& sums) {
  LH_CHECK(logits.cols <= limits::kMaxLossTileCols, std::to_string(logits.cols));
  if (logits.rows == 0 || logits.cols == 0) return;
  const bool to_f32 = logits.dtype == DType::kF32 && (weights.data == nullptr || weights.dtype == DType::kF32);
  const auto update = to_f32                        ? UpdateAligned<float, float>
                      : logits.dtype == DType::kF32 ? UpdateAligned<float, Bf16>
                                                    : UpdateAligned<Bf16, Bf16>;
  LH_CHECK(to_f32 || weights.data == nullptr || weights.dtype == DType::kBF16);
  update(exec.cuda().facts, stream, logits, first_col, labels, rows, weights, sums);
}

void UpdateLoss(const Exec& exec, const Tensor& logits, int64_t first_col, const int32_t* labels, const LossRows& rows,
                const Tensor& weights, const Tensor& sums) {
  UpdateLossOn(exec, exec.cuda().compute.get(), logits, first_col, labels, rows, weights, sums);
}

void FinishLoss(const Exec& exec, const LossRows& rows, const int32_t* labels, const Tensor& lse, LossTotals* totals) {
  const int64_t count = rows.largest.rows;
  LH_CHECK(count <= limits::kMaxLossTileRows, std::to_string(count));
  Launch(exec, "FinishLoss", FinishLossKernel, CeilDiv(count, kMapThreads), kMapThreads, 0, count,
         rows.largest.as<float>(), rows.sum.as<float>(), rows.label_logit.as<float>(), labels, Rows<float>(lse),
         exec.cuda().partial_sums.as<RowResult>());
  AddTotals(exec, count, totals);
}

}  // namespace longhaul::kernels::cuda
