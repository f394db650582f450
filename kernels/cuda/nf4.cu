// NF4 as bitsandbytes' CUDA kernels compute it: value = code * absmax in f32, absmax = map[u8] * nested + offset in two
// roundings where it is quantised itself. Quantising multiplies by the hardware's approximate reciprocal, as those do.
#include <cuda_fp16.h>

#include <array>
#include <cfloat>
#include <type_traits>
#include <utility>

#include "base/nf4.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnits = 4;        // units of kCount values that a thread has in flight
constexpr int kBlocksPerSm = 6;  // resident at once, with some 40 registers a thread
constexpr int kMeanThreads = 1024;
constexpr int64_t kMaxUnits = int64_t{1} << 30;  // of a launch: 32-bit arithmetic counts them

__device__ const std::array<float, 16> kDeviceCodes = kNf4Codes;
__device__ const std::array<float, 256> kDeviceNestedCodes = kNf4NestedCodes;

// A weight as kernels see it.
struct Weight {
  const uint8_t* packed;
  const float* absmax;          // where absmax_codes is null
  const uint8_t* absmax_codes;  // [blocks]
  const float* nested_absmax;
  const float* nested_offset;
  const float* nested_map;  // null: kDeviceNestedCodes
  int64_t first;            // value that the output starts with
  int log2_block;
};

enum class Rounded { kBF16, kF16, kF32 };

template <Rounded kRounded>
__device__ float Round(float x) {
  if constexpr (kRounded == Rounded::kBF16) return __bfloat162float(__float2bfloat16_rn(x));
  if constexpr (kRounded == Rounded::kF16) return __half2float(__float2half_rn(x));
  return x;
}

// A unit is kCount values of one row and one block: 8, which are 4 bytes of codes and 16 bytes of bf16, or 1 where rows
// are not whole units. The codes' table has a copy for every lane, so that no two lanes meet in a bank.
template <typename T, Rounded kRounded, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    DequantizeKernel(Weight w, uint32_t units, uint32_t units_per_block, uint32_t units_per_row, Rows<T> y,
                     int64_t first_row) {
  __shared__ float codes[16 * kWarp];
  __shared__ float nested_map[256];
  for (int i = static_cast<int>(threadIdx.x); i < 16 * kWarp; i += kThreads) codes[i] = kDeviceCodes[i / kWarp];
  nested_map[threadIdx.x] = w.nested_map != nullptr ? w.nested_map[threadIdx.x] : kDeviceNestedCodes[threadIdx.x];
  __syncthreads();
  const bool nested = w.absmax_codes != nullptr;
  const float offset = nested ? *w.nested_offset : 0.0f;
  const float* const my_codes = codes + threadIdx.x % kWarp;
  // T is rounded to anyway.
  constexpr bool kRoundedByStore = kRounded == Rounded::kBF16 && std::is_same_v<T, Bf16>;
  const uint32_t begin = blockIdx.x * units_per_block;
  const uint32_t end = min(begin + units_per_block, units);
  for (uint32_t first = begin + threadIdx.x; first < end; first += kThreads * kUnits) {
    uint32_t packed[kUnits];
    uint8_t absmax_code[kUnits];
    float scale[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const uint32_t unit = first + u * kThreads;
      if (unit >= end) continue;
      const int64_t at = w.first + int64_t{unit} * kCount;
      const int64_t block = at >> w.log2_block;
      if constexpr (kCount == 8) {
        packed[u] = *reinterpret_cast<const uint32_t*>(w.packed + at / 2);
      } else {
        packed[u] = w.packed[at / 2] >> (at % 2 == 0 ? 4 : 0);
      }
      if (nested) absmax_code[u] = w.absmax_codes[block];
      scale[u] = nested ? w.nested_absmax[block / kNf4NestedBlock] : w.absmax[block];
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const uint32_t unit = first + u * kThreads;
      if (unit >= end) continue;
      const float absmax = nested ? __fadd_rn(__fmul_rn(nested_map[absmax_code[u]], scale[u]), offset) : scale[u];
      float values[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        // Byte i / 2, the even value in its high nibble.
        const int shift = kCount == 1 ? 0 : i / 2 * 8 + (i % 2 == 0 ? 4 : 0);
        const float value = __fmul_rn(my_codes[(packed[u] >> shift & 15) * kWarp], absmax);
        values[i] = kRoundedByStore ? value : Round<kRounded>(value);
      }
      const uint32_t row = unit / units_per_row;
      Store(y(first_row + row, int64_t{unit - row * units_per_row} * kCount), PackOf<T>(values));
    }
  }
}

__device__ float ApproximateReciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

template <size_t kIndex>
constexpr float kThreshold = kNf4Thresholds[kIndex];

// The number of thresholds strictly below x; 0 for NaN.
template <size_t... kIndex>
__device__ uint32_t CodeOf(float x, std::index_sequence<kIndex...>) {
  return ((x > kThreshold<kIndex> ? 1u : 0u) + ...);
}

template <typename T>
__device__ float Read(const T* w, int64_t at, int64_t size) {
  if (at >= size) return 0;
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(w[at]);
  } else {
    return ToFloat(w[at]);
  }
}

// A warp takes a block of values, a lane two neighbours of every 64.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(const T* w, int64_t size, int64_t block_size, uint8_t* packed, float* absmax) {
  const int64_t block = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t begin = block * block_size;
  if (begin >= size) return;
  const int64_t end = begin + block_size < size ? begin + block_size : size;
  const int64_t first = begin + threadIdx.x % kWarp * 2;
  float largest = 0;
  for (int64_t at = first; at < end; at += 2 * kWarp) {
    largest = fmaxf(largest, fmaxf(fabsf(Read(w, at, end)), fabsf(Read(w, at + 1, end))));
  }
  largest = ReduceLanes<kWarp>(largest, Largest());
  // A block of nothing but zeros and subnormals, which those kernels flush: 0 * (1 / 0) is NaN, code 0.
  if (largest < FLT_MIN) largest = 0;
  if (threadIdx.x % kWarp == 0) absmax[block] = largest;
  const float inverse = ApproximateReciprocal(largest);
  constexpr auto kAll = std::make_index_sequence<15>();
  for (int64_t at = first; at < end; at += 2 * kWarp) {
    // Of an odd size the last low nibble is that of a zero.
    const float high = largest == 0 ? 0 : Read(w, at, end), low = largest == 0 ? 0 : Read(w, at + 1, end);
    packed[at / 2] = static_cast<uint8_t>(CodeOf(high * inverse, kAll) << 4 | CodeOf(low * inverse, kAll));
  }
}

__global__ void __launch_bounds__(kMeanThreads) MeanKernel(const float* absmax, int64_t count, float* mean) {
  __shared__ double shared[kMaxWarps];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kMeanThreads) sum += static_cast<double>(absmax[i]);
  sum = ReduceBlock(sum, shared, 0.0, Plus());
  if (threadIdx.x == 0) *mean = static_cast<float>(sum / static_cast<double>(count));
}

// bitsandbytes' 8-bit search, step for step (base/nf4.cc): the last pivot may be off the neighbours, and the midpoint
// rule settles it. NaN ends at 0.
__device__ uint8_t NestedCode(const float* map, float x) {
  int pivot = 127, upper_pivot = 255, lower_pivot = 0;
  float lower = -1.0f, upper = 1.0f, value = map[127];
#pragma unroll
  for (int step = 64; step > 0; step >>= 1) {
    if (x > value) {
      lower_pivot = pivot;
      lower = value;
      pivot += step;
    } else {
      upper_pivot = pivot;
      upper = value;
      pivot -= step;
    }
    value = map[pivot];
  }
  if (upper_pivot == 255) upper = map[255];
  if (lower_pivot == 0) lower = map[0];
  if (x > value) return static_cast<uint8_t>(x > (upper + value) * 0.5f ? upper_pivot : pivot);
  return static_cast<uint8_t>(x < (lower + value) * 0.5f ? lower_pivot : pivot);
}

// A warp takes 256 scales.
__global__ void __launch_bounds__(kThreads)
    QuantizeAbsmaxKernel(const float* absmax, int64_t count, const float* offset, uint8_t* codes, float* nested) {
  __shared__ float map[256];
  static_assert(kThreads == 256 && kNf4NestedBlock == 256);
  map[threadIdx.x] = kDeviceNestedCodes[threadIdx.x];
  __syncthreads();
  const int64_t block = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t begin = block * kNf4NestedBlock;
  if (begin >= count) return;
  const int64_t end = begin + kNf4NestedBlock < count ? begin + kNf4NestedBlock : count;
  const int64_t first = begin + threadIdx.x % kWarp;
  float largest = 0;
  for (int64_t i = first; i < end; i += kWarp) largest = fmaxf(largest, fabsf(absmax[i] - *offset));
  largest = ReduceLanes<kWarp>(largest, Largest());
  if (threadIdx.x % kWarp == 0) nested[block] = largest;
  const float inverse = ApproximateReciprocal(largest);
  for (int64_t i = first; i < end; i += kWarp) codes[i] = NestedCode(map, (absmax[i] - *offset) * inverse);
}

template <typename T>
void LaunchQuantize(const Exec& exec, const Tensor& w, const Nf4Weight& to) {
  Launch(exec, "Nf4Quantize", QuantizeKernel<T>, CeilDiv(to.blocks(), kThreads / kWarp), kThreads, 0, w.as<T>(),
         to.out * to.in, to.block, to.packed, to.absmax);
}

template <typename T, Rounded kRounded, int kCount>
void LaunchDequantize(const Exec& exec, const Nf4Weight& w, int64_t first_row, const Tensor& y) {
  const int64_t units_per_row = w.in / kCount;
  const int64_t rows_per_launch = kMaxUnits / units_per_row;
  LH_CHECK(rows_per_launch > 0, std::to_string(w.in));
  for (int64_t row = 0; row < y.rows; row += rows_per_launch) {
    const int64_t units = std::min(rows_per_launch, y.rows - row) * units_per_row;
    // One wave of blocks, each with the same share, so that all end together and the tables are filled once.
    const int64_t share = CeilDiv(units, int64_t{kBlocksPerSm} * exec.cuda().facts.multiprocessors);
    const int64_t units_per_block = CeilDiv(share, kThreads) * kThreads;
    const Weight weight{w.packed,
                        w.absmax,
                        w.absmax_codes,
                        w.nested_absmax,
                        w.nested_offset,
                        w.nested_map,
                        (first_row + row) * w.in,
                        __builtin_ctzll(static_cast<unsigned long long>(w.block))};
    Launch(exec, "Nf4Dequantize", DequantizeKernel<T, kRounded, kCount>, CeilDiv(units, units_per_block), kThreads, 0,
           weight, units, units_per_block, units_per_row, Rows<T>(y), row);
  }
}

template <typename T, Rounded kRounded>
void DequantizeRounded(const Exec& exec, const Nf4Weight& w, int64_t first_row, const Tensor& y) {
  const bool vectors = w.in % 8 == 0 && Vectorizable(8, {y}) && reinterpret_cast<uintptr_t>(w.packed) % 4 == 0;
  (vectors ? LaunchDequantize<T, kRounded, 8> : LaunchDequantize<T, kRounded, 1>)(exec, w, first_row, y);
}

}  // namespace

void Nf4Quantize(const Exec& exec, const Tensor& w, const Nf4Weight& to) {
  if (w.dtype == DType::kF32) {
    LaunchQuantize<float>(exec, w, to);
  } else if (w.dtype == DType::kBF16) {
    LaunchQuantize<Bf16>(exec, w, to);
  } else {
    LaunchQuantize<__half>(exec, w, to);
  }
}

void Nf4NestAbsmax(const Exec& exec, const Nf4Weight& w, bool keep_offset) {
  if (!keep_offset) {
    Launch(exec, "Nf4NestAbsmax", MeanKernel, 1, kMeanThreads, 0, w.absmax, w.blocks(), w.nested_offset);
  }
  const int64_t nested = CeilDiv(w.blocks(), kNf4NestedBlock);
  Launch(exec, "Nf4NestAbsmax", QuantizeAbsmaxKernel, CeilDiv(nested, kThreads / kWarp), kThreads, 0, w.absmax,
         w.blocks(), w.nested_offset, w.absmax_codes, w.nested_absmax);
}

void Nf4Dequantize(const Exec& exec, const Nf4Weight& w, int64_t first_row, const Tensor& y) {
  WithActivation(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (w.rounded_to) {
      case DType::kBF16:
        return DequantizeRounded<T, Rounded::kBF16>(exec, w, first_row, y);
      case DType::kF16:
        return DequantizeRounded<T, Rounded::kF16>(exec, w, first_row, y);
      default:
        return DequantizeRounded<T, Rounded::kF32>(exec, w, first_row, y);
    }
  });
}

}  // namespace longhaul::kernels::cuda
