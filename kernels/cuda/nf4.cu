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
constexpr int kUnits = 4;                                            // of kCount values, that a thread has in flight
constexpr int ChunkOf(int count) { return kWarp * kUnits * count; }  // values that a warp dequantises
constexpr int kMeanThreads = 1024;
constexpr int kQuantizeValues = 8;               // that a lane takes where they lie on whole vectors
constexpr int64_t kMaxUnits = int64_t{1} << 30;  // of a launch: 32-bit arithmetic counts them

__device__ const std::array<float, 16> kDeviceCodes = kNf4Codes;
__device__ const std::array<float, 15> kDeviceThresholds = kNf4Thresholds;
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
  int64_t blocks;
  int log2_block;
};

__device__ float ScaleOf(const Weight& w, int64_t block) {
  if (w.absmax_codes == nullptr) return w.absmax[block];
  const float* const map = w.nested_map != nullptr ? w.nested_map : kDeviceNestedCodes.data();
  return __fadd_rn(__fmul_rn(map[w.absmax_codes[block]], w.nested_absmax[block / kNf4NestedBlock]), *w.nested_offset);
}

enum class Rounded { kBF16, kF16, kF32 };

template <Rounded kRounded>
__device__ float Round(float x) {
  if constexpr (kRounded == Rounded::kBF16) return __bfloat162float(__float2bfloat16_rn(x));
  if constexpr (kRounded == Rounded::kF16) return __half2float(__float2half_rn(x));
  return x;
}

// n / divisor for n < 2^30 in three instructions: a division by what the compiler does not know takes twenty.
struct Divisor {
  uint32_t value, magic, shift;
  explicit Divisor(uint32_t divisor) : value(divisor), shift(0) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    magic = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  __device__ uint32_t operator()(uint32_t n) const { return (__umulhi(n, magic) + n) >> shift; }
};

// A unit is kCount values of one row and one block: 8, which are 4 bytes of codes and 16 bytes of bf16, or 1 where rows
// are not whole units. A warp takes a chunk: kUnits * 32 neighbouring units, from a multiple of the chunk's length on,
// so that it is whole blocks or a part of one. Its scales, 32 at most, are made once, each by a lane, and looked up by
// shuffles; so are the 16 codes, one of which every lane keeps (a shuffle reads the low four bits of a lane number
// alone): no table to fill, no banks to meet in. Codes are read once and values written once, both past the other lines
// of the cache (ldcs, stcs).
template <typename T, Rounded kRounded, int kCount>
__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(Weight w, uint32_t units, Divisor units_per_row, Rows<T> y, int64_t first_row) {
  constexpr int kChunk = ChunkOf(kCount);
  const uint32_t warp = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t begin = w.first / kChunk * kChunk + int64_t{warp} * kChunk;  // of the chunk, in values
  // Of the output, in units; those before its begin wrap around, and are behind its end.
  const uint32_t first = warp * (kUnits * kWarp) + lane - static_cast<uint32_t>(w.first % kChunk) / kCount;
  uint32_t packed[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    packed[u] = 0;
    if (first + u * kWarp >= units) continue;
    const int64_t at = begin + int64_t{u * kWarp + lane} * kCount;
    if constexpr (kCount == 8) {
      packed[u] = __ldcs(reinterpret_cast<const uint32_t*>(w.packed + at / 2));
    } else {
      packed[u] = w.packed[at / 2] >> (at % 2 == 0 ? 4 : 0);
    }
  }
  const int64_t block = (begin >> w.log2_block) + lane;
  const bool has_block = lane <= static_cast<uint32_t>(kChunk - 1) >> w.log2_block && block < w.blocks;
  const float own_scale = has_block ? ScaleOf(w, block) : 0.0f;
  constexpr int kCodes = 16;
  const float code = kDeviceCodes[threadIdx.x % kCodes];
  // T is rounded to anyway.
  constexpr bool kRoundedByStore = kRounded == Rounded::kBF16 && std::is_same_v<T, Bf16>;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const float scale = __shfl_sync(~0u, own_scale, static_cast<int>((u * kWarp + lane) * kCount >> w.log2_block));
    float values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      // Byte i / 2, the even value in its high nibble. Lanes beyond the output take part.
      const int shift = kCount == 1 ? 0 : i / 2 * 8 + (i % 2 == 0 ? 4 : 0);
      const float value = __fmul_rn(__shfl_sync(~0u, code, static_cast<int>(packed[u] >> shift), kCodes), scale);
      values[i] = kRoundedByStore ? value : Round<kRounded>(value);
    }
    const uint32_t unit = first + u * kWarp;
    if (unit >= units) continue;
    const uint32_t row = units_per_row(unit);
    StoreOnce(y(first_row + row, int64_t{unit - row * units_per_row.value} * kCount), PackOf<T>(values));
  }
}

__device__ float ApproximateReciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The number of thresholds strictly below x, by halves; 0 for NaN. `threshold` is the lane's own (lane % 16), of which
// the last two steps look up the others'. The whole warp takes part.
__device__ uint32_t CodeOf(float x, float threshold) {
  constexpr int kLanes = 16;
  constexpr float kHalf = kNf4Thresholds[7], kLow = kNf4Thresholds[3], kHigh = kNf4Thresholds[11];
  uint32_t code = x > kHalf ? 8 : 0;
  code += x > (code != 0 ? kHigh : kLow) ? 4 : 0;
  code += x > __shfl_sync(~0u, threshold, static_cast<int>(code + 1), kLanes) ? 2 : 0;
  code += x > __shfl_sync(~0u, threshold, static_cast<int>(code), kLanes) ? 1 : 0;
  return code;
}
__device__ float OwnThreshold() {
  const unsigned index = threadIdx.x % 16;
  return index < kDeviceThresholds.size() ? kDeviceThresholds[index] : 0.0f;
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

// What the values of a block are multiplied by, from the largest magnitude; that is made 0 where there is nothing but
// zeros and subnormals, which bitsandbytes' kernels flush: 0 * (1 / 0) is NaN, code 0.
__device__ float InverseOf(float* largest) {
  if (*largest < FLT_MIN) *largest = 0;
  return ApproximateReciprocal(*largest);
}

// A warp takes a block of values, a lane two neighbours of every 64.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(const T* w, int64_t size, int64_t block_size, uint8_t* packed, float* absmax) {
  const int64_t block = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t begin = block * block_size;
  if (begin >= size) return;
  const int64_t end = begin + block_size < size ? begin + block_size : size;
  const int64_t mine = threadIdx.x % kWarp * 2;
  float largest = 0;
  for (int64_t at = begin + mine; at < end; at += 2 * kWarp) {
    largest = fmaxf(largest, fmaxf(fabsf(Read(w, at, end)), fabsf(Read(w, at + 1, end))));
  }
  largest = ReduceLanes<kWarp>(largest, Largest());
  const float inverse = InverseOf(&largest), threshold = OwnThreshold();
  if (threadIdx.x % kWarp == 0) absmax[block] = largest;
  for (int64_t first = begin; first < end; first += 2 * kWarp) {
    const int64_t at = first + mine;
    // Of an odd size the last low nibble is that of a zero.
    const float high = largest == 0 ? 0 : Read(w, at, end), low = largest == 0 ? 0 : Read(w, at + 1, end);
    const uint32_t byte = CodeOf(high * inverse, threshold) << 4 | CodeOf(low * inverse, threshold);
    if (at < end) packed[at / 2] = static_cast<uint8_t>(byte);
  }
}

// A lane takes 8 values, `lanes` of them (a power of two up to a warp) a block. Whole vectors: size % 8 == 0.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    QuantizePacksKernel(const T* w, int64_t size, int lanes, uint32_t* packed, float* absmax) {
  const int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t at = unit * kQuantizeValues;
  float values[kQuantizeValues] = {};
  if (at < size) {
    const auto pack = *reinterpret_cast<const Pack<T, kQuantizeValues>*>(w + at);
#pragma unroll
    for (int i = 0; i < kQuantizeValues; ++i) values[i] = Read(pack.values, i, kQuantizeValues);
  }
  float largest = 0;
#pragma unroll
  for (const float value : values) largest = fmaxf(largest, fabsf(value));
  for (int step = lanes / 2; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  const float inverse = InverseOf(&largest), threshold = OwnThreshold();
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kQuantizeValues; ++i) {
    const uint32_t code = CodeOf((largest == 0 ? 0 : values[i]) * inverse, threshold);
    word |= code << (i / 2 * 8 + (i % 2 == 0 ? 4 : 0));
  }
  if (at >= size) return;
  packed[unit] = word;
  if (unit % lanes == 0) absmax[unit / lanes] = largest;
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
  const int64_t size = to.out * to.in;
  const bool packs = size % kQuantizeValues == 0 && to.block <= kQuantizeValues * kWarp &&
                     reinterpret_cast<uintptr_t>(w.data) % kVectorBytes == 0 &&
                     reinterpret_cast<uintptr_t>(to.packed) % sizeof(uint32_t) == 0;
  if (packs) {
    Launch(exec, "Nf4Quantize", QuantizePacksKernel<T>, CeilDiv(size / kQuantizeValues, kThreads), kThreads, 0,
           w.as<T>(), size, to.block / kQuantizeValues, reinterpret_cast<uint32_t*>(to.packed), to.absmax);
  } else {
    Launch(exec, "Nf4Quantize", QuantizeKernel<T>, CeilDiv(to.blocks(), kThreads / kWarp), kThreads, 0, w.as<T>(), size,
           to.block, to.packed, to.absmax);
  }
}

template <typename T, Rounded kRounded, int kCount>
void LaunchDequantize(const Exec& exec, const Nf4Weight& w, int64_t first_row, const Tensor& y) {
  const int64_t units_per_row = w.in / kCount;
  const int64_t rows_per_launch = kMaxUnits / units_per_row;
  LH_CHECK(rows_per_launch > 0, std::to_string(w.in));
  for (int64_t row = 0; row < y.rows; row += rows_per_launch) {
    const int64_t units = std::min(rows_per_launch, y.rows - row) * units_per_row;
    const Weight weight{w.packed,
                        w.absmax,
                        w.absmax_codes,
                        w.nested_absmax,
                        w.nested_offset,
                        w.nested_map,
                        (first_row + row) * w.in,
                        w.blocks(),
                        __builtin_ctzll(static_cast<unsigned long long>(w.block))};
    const int64_t chunks = CeilDiv(weight.first % ChunkOf(kCount) + units * kCount, ChunkOf(kCount));
    Launch(exec, "Nf4Dequantize", DequantizeKernel<T, kRounded, kCount>, CeilDiv(chunks, kThreads / kWarp), kThreads, 0,
           weight, units, Divisor(static_cast<uint32_t>(units_per_row)), Rows<T>(y), row);
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
