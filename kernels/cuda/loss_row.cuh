// What the kernels of the loss do with a row of logits: a block holds it in shared memory while it makes several passes
// over it. Every thread copies and looks at elements of its own, so a row needs no barrier but those of its sums; six
// blocks and more beside each other load, compute and store at different times.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "base/check.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace longhaul::kernels::cuda {

constexpr int kRowMaxThreads = 1024;
// Vectors of a row that a thread takes. With fewer threads a row, more rows are at work beside each other.
constexpr int kRowPacks = 8;

// A row in shared memory: whole vectors of kCount elements, which go round the threads, and behind the last of them up
// to kCount - 1 elements, of which a thread has one at most.
template <typename T, int kCount>
struct SharedRow {
  Pack<T, kCount>* packs;
  int32_t cols;
  T rest;  // this thread's element behind the last whole vector, else -infinity

  __device__ int32_t whole() const { return cols / kCount; }
  __device__ int32_t rest_col() const { return whole() * kCount + static_cast<int32_t>(threadIdx.x); }
  __device__ bool has_rest() const { return kCount > 1 && rest_col() < cols; }

  // body(first column, pack), for the thread's vectors in order; then body of the element behind. Vectors are read four
  // at a time, before the body may write anything that reads would wait for.
  template <typename Body, typename RestBody>
  __device__ void ForEach(const Body& body, const RestBody& rest_body) const {
    constexpr int kUnroll = 4;
    const int32_t count = whole(), step = static_cast<int32_t>(blockDim.x);
    for (int32_t first = static_cast<int32_t>(threadIdx.x); first < count; first += kUnroll * step) {
      Pack<T, kCount> read[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (first + u * step < count) read[u] = packs[first + u * step];
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (first + u * step < count) body((first + u * step) * kCount, read[u]);
      }
    }
    if (has_rest()) rest_body(rest_col(), ToFloat(rest));
  }

  // The thread that a column is passed to.
  __device__ bool Owns(int64_t col) const {
    const int64_t pack = col / kCount;
    return static_cast<int64_t>(threadIdx.x) == (pack < whole() ? pack % blockDim.x : col - int64_t{whole()} * kCount);
  }
  // REQUIRES: Owns(col).
  __device__ float At(int64_t col) const {
    return col < int64_t{whole()} * kCount ? packs[col / kCount][static_cast<int>(col % kCount)] : ToFloat(rest);
  }
};

// Copies the thread's share of a row to `shared`, past its registers, and waits for that.
template <typename T, int kCount>
__device__ SharedRow<T, kCount> CopyRow(const T* row, int32_t cols, void* shared) {
  SharedRow<T, kCount> to{static_cast<Pack<T, kCount>*>(shared), cols, FromFloat<T>(-INFINITY)};
  const int32_t count = to.whole();
  for (int32_t p = static_cast<int32_t>(threadIdx.x); p < count; p += static_cast<int32_t>(blockDim.x)) {
    if constexpr (sizeof(Pack<T, kCount>) == kVectorBytes) {
      const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to.packs + p));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(row + int64_t{p} * kCount)
                   : "memory");
    } else {
      to.packs[p] = Load<kCount>(row + int64_t{p} * kCount);
    }
  }
  if (to.has_rest()) to.rest = row[to.rest_col()];
  asm volatile("cp.async.wait_all;" ::: "memory");
  return to;
}

// LossRows as kernels see them.
struct RunningLoss {
  float* largest;
  float* sum;
  float* label_logit;
};

template <typename T, int kCount>
__device__ float LargestOf(const Pack<T, kCount>& pack) {
  if constexpr (sizeof(T) == sizeof(Bf16) && kCount % 2 == 0) {
    const auto* const pairs = reinterpret_cast<const __nv_bfloat162*>(pack.values);
    __nv_bfloat162 largest = pairs[0];
#pragma unroll
    for (int i = 1; i < kCount / 2; ++i) largest = __hmax2(largest, pairs[i]);  // passes over NaN, as fmaxf
    return fmaxf(__low2float(largest), __high2float(largest));
  } else {
    float largest = pack[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) largest = fmaxf(largest, pack[i]);
    return largest;
  }
}

// What is known of a row after a tile.
struct RowNow {
  float largest;
  float sum;
  float kept;  // what sums over earlier tiles are multiplied by
};

// UpdateLoss of one trained row; `to` may be null. Every thread gets the result.
template <typename T, typename W, int kCount>
__device__ RowNow UpdateRow(const SharedRow<T, kCount>& held, int64_t row, int64_t label_col,
                            const RunningLoss& running, W* to) {
  __shared__ float maxima[kMaxWarps], parts[kMaxWarps];
  const bool has_label = label_col >= 0 && label_col < held.cols;
  if (has_label && held.Owns(label_col)) running.label_logit[row] = held.At(label_col);
  const float before = running.largest[row], sum_before = running.sum[row];
  float largest = -FLT_MAX;
  held.ForEach([&](int32_t, const Pack<T, kCount>& pack) { largest = fmaxf(largest, LargestOf(pack)); },
               [&](int32_t, float logit) { largest = fmaxf(largest, logit); });
  // Its barrier comes after all copies of the row: weights may take the logits' place.
  const float now = fmaxf(before, ReduceBlock(largest, maxima, -FLT_MAX, Largest()));
  float part = 0;
  held.ForEach(
      [&](int32_t col, const Pack<T, kCount>& pack) {
        float weights[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          weights[i] = __expf(pack[i] - now);
          part += weights[i];
        }
        if (to != nullptr) Store(to + col, PackOf<W>(weights));
      },
      [&](int32_t col, float logit) {
        const float weight = __expf(logit - now);
        part += weight;
        if (to != nullptr) to[col] = FromFloat<W>(weight);
      });
  if (to != nullptr && has_label && held.Owns(label_col)) to[label_col] = FromFloat<W>(0);
  const float kept = __expf(before - now);
  const float sum = sum_before * kept + ReduceBlock(part, parts, 0.0f, Plus());
  if (threadIdx.x == 0) {
    running.largest[row] = now;
    running.sum[row] = sum;
  }
  return {now, sum, kept};
}

// How a kernel with a block a row is launched.
struct RowLaunch {
  int threads = 0;  // whole warps; depends on the columns alone, and with it the order of sums
  int64_t shared_bytes = 0;
};

// `beside_bytes`: shared memory that the kernel needs of its own. A row that does not fit is a CHECK. Lets `kernel`
// have as much.
template <typename Kernel>
RowLaunch LaunchOfRow(const CudaDeviceFacts& facts, const char* op, Kernel kernel, int64_t cols, int count,
                      int64_t element_bytes, int64_t beside_bytes) {
  const int64_t packs = cols / count, room = facts.shared_bytes_per_block - beside_bytes;
  RowLaunch launch;
  launch.threads =
      static_cast<int>(std::clamp<int64_t>(CeilDiv(CeilDiv(packs, kRowPacks), kWarp) * kWarp, kWarp, kRowMaxThreads));
  launch.shared_bytes = packs * count * element_bytes;
  LH_CHECK(launch.shared_bytes <= room, std::to_string(cols));
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(room)), op,
            "cudaFuncSetAttribute");
  return launch;
}

}  // namespace longhaul::kernels::cuda
