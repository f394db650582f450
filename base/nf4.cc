#include "base/nf4.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/error.h"

namespace longhaul {
namespace {

constexpr int64_t kMinBlock = 32;
constexpr int64_t kMaxBlock = 4096;

// codes[i] = thresholds strictly below w[i] * inverse, for i < n.
[[gnu::always_inline]] inline void CodesOfBlock(const float* w, int64_t n, float inverse, uint8_t* codes) {
  // Sixteen elements at a time against all thresholds: the compiler keeps them in vector registers.
  constexpr int64_t kLanes = 16;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    int32_t counts[kLanes] = {};
    float scaled[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) scaled[lane] = w[i + lane] * inverse;
    for (float threshold : kNf4Thresholds) {
      for (int64_t lane = 0; lane < kLanes; ++lane) counts[lane] += scaled[lane] > threshold ? 1 : 0;
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) codes[i + lane] = static_cast<uint8_t>(counts[lane]);
  }
  for (; i < n; ++i) {
    const float scaled = w[i] * inverse;
    int count = 0;
    for (float threshold : kNf4Thresholds) count += scaled > threshold ? 1 : 0;
    codes[i] = static_cast<uint8_t>(count);
  }
}

[[gnu::target("avx2")]] void CodesOfBlockAvx2(const float* w, int64_t n, float inverse, uint8_t* codes) {
  CodesOfBlock(w, n, inverse, codes);
}

void CodesOfBlockBaseline(const float* w, int64_t n, float inverse, uint8_t* codes) {
  CodesOfBlock(w, n, inverse, codes);
}

// max |w|, and whether all are finite. NaN compares false and so is not finite.
float LargestMagnitude(const float* w, int64_t n, bool* finite) {
  float largest = 0.0f;
  int bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(w[i]);
    bad += magnitude <= FLT_MAX ? 0 : 1;
    largest = magnitude > largest ? magnitude : largest;
  }
  *finite = bad == 0;
  return largest;
}

// bitsandbytes' 8-bit search, step for step: the last pivot may be off the neighbours, and the midpoint rule settles
// it. NaN (a block of zeros times an infinite reciprocal) ends at 0.
uint8_t NestedCode(float x) {
  int pivot = 127;
  int upper_pivot = 255;
  int lower_pivot = 0;
  float lower = -1.0f;
  float upper = 1.0f;
  float value = kNf4NestedCodes[127];
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
    value = kNf4NestedCodes[static_cast<size_t>(pivot)];
  }
  if (upper_pivot == 255) upper = kNf4NestedCodes[255];
  if (lower_pivot == 0) lower = kNf4NestedCodes[0];
  if (x > value) return static_cast<uint8_t>(x > (upper + value) * 0.5f ? upper_pivot : pivot);
  return static_cast<uint8_t>(x < (lower + value) * 0.5f ? lower_pivot : pivot);
}

}  // namespace

bool IsNf4BlockSize(int64_t block_size) {
  return block_size >= kMinBlock && block_size <= kMaxBlock && (block_size & (block_size - 1)) == 0;
}

absl::Status QuantizeNf4(const float* w, int64_t n, int64_t block_size, uint8_t* packed, float* absmax) {
  LH_CHECK(IsNf4BlockSize(block_size), std::to_string(block_size));
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  const auto codes_of_block = has_avx2 ? CodesOfBlockAvx2 : CodesOfBlockBaseline;
  uint8_t codes[kMaxBlock + 1];
  for (int64_t begin = 0; begin < n; begin += block_size) {
    const int64_t count = std::min(block_size, n - begin);
    bool finite = true;
    const float largest = LargestMagnitude(w + begin, count, &finite);
    if (!finite) {
      const float* bad = std::find_if(w + begin, w + begin + count, [](float x) { return !std::isfinite(x); });
      return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_FINITE",
                       "weight " + std::to_string(bad - w) + " is " + (std::isnan(*bad) ? "NaN" : "infinite"));
    }
    // The CUDA kernels run with subnormals flushed, where such a block is one of zeros: 0 * (1 / 0) is NaN, code 0.
    const bool zeros = largest < FLT_MIN;
    absmax[begin / block_size] = zeros ? 0.0f : largest;
    if (zeros) {
      std::memset(codes, 0, static_cast<size_t>(count));
    } else {
      codes_of_block(w + begin, count, 1.0f / largest, codes);
    }
    // An odd count can only end the whole tensor: its last low nibble is 0 * (1 / absmax), code 7 as on CUDA.
    codes[count] = zeros ? 0 : 7;
    uint8_t* out = packed + begin / 2;
    for (int64_t i = 0; i < (count + 1) / 2; ++i) {
      out[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
    }
  }
  return absl::OkStatus();
}

void DequantizeNf4(const uint8_t* packed, const float* absmax, int64_t begin, int64_t end, int64_t block_size,
                   float* out) {
  LH_CHECK(IsNf4BlockSize(block_size), std::to_string(block_size));
  for (int64_t i = begin; i < end;) {
    const float scale = absmax[i / block_size];
    const int64_t stop = std::min(end, (i / block_size + 1) * block_size);
    // One scaled table a block: the products are the same ones, sixteen instead of block_size.
    float table[16];
    for (size_t c = 0; c < 16; ++c) table[c] = kNf4Codes[c] * scale;
    if (i % 2 != 0) {
      out[i - begin] = table[packed[i / 2] & 15];
      ++i;
    }
    for (; i + 2 <= stop; i += 2) {
      const uint8_t pair = packed[i / 2];
      out[i - begin] = table[pair >> 4];
      out[i - begin + 1] = table[pair & 15];
    }
    if (i < stop) {
      out[i - begin] = table[packed[i / 2] >> 4];
      ++i;
    }
  }
}

float MeanAbsmax(const float* absmax, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(absmax[i]);
  return n == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(n));
}

void QuantizeAbsmax(const float* absmax, int64_t n, float offset, uint8_t* codes, float* nested_absmax) {
  for (int64_t begin = 0; begin < n; begin += kNf4NestedBlock) {
    const int64_t end = std::min(n, begin + kNf4NestedBlock);
    float largest = 0.0f;
    for (int64_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(absmax[i] - offset));
    nested_absmax[begin / kNf4NestedBlock] = largest;
    const float inverse = 1.0f / largest;
    for (int64_t i = begin; i < end; ++i) codes[i] = NestedCode((absmax[i] - offset) * inverse);
  }
}

void DequantizeAbsmax(const uint8_t* codes, const float* map, const float* nested_absmax, float offset, int64_t begin,
                      int64_t end, int64_t nested_block, float* out) {
  for (int64_t i = begin; i < end; ++i) {
    const float product = map[codes[i]] * nested_absmax[i / nested_block];
    out[i - begin] = product + offset;
  }
}

}  // namespace longhaul
