#include "worker/formats/dequant.h"

#include <cstring>

#include "base/check.h"
#include "base/half.h"

namespace longhaul::formats {
namespace {

// Everything below is inlined into the two bodies at the end, one compiled for AVX2: the blocks' loops are short, and
// widening bytes to floats is several times faster there.
#define LH_INLINE [[gnu::always_inline]] inline

LH_INLINE uint16_t LoadU16(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}

// x = d * (q - 8); byte j holds value j (low nibble) and j + 16 (high).
LH_INLINE void DequantizeQ4_0(const uint8_t* block, float* out) {
  const float d = F16ToFloat(LoadU16(block));
  const uint8_t* q = block + 2;
  for (int j = 0; j < 16; ++j) out[j] = d * static_cast<float>((q[j] & 15) - 8);
  for (int j = 0; j < 16; ++j) out[j + 16] = d * static_cast<float>((q[j] >> 4) - 8);
}

// x = d * q + m.
LH_INLINE void DequantizeQ4_1(const uint8_t* block, float* out) {
  const float d = F16ToFloat(LoadU16(block));
  const float m = F16ToFloat(LoadU16(block + 2));
  const uint8_t* q = block + 4;
  for (int j = 0; j < 16; ++j) out[j] = d * static_cast<float>(q[j] & 15) + m;
  for (int j = 0; j < 16; ++j) out[j + 16] = d * static_cast<float>(q[j] >> 4) + m;
}

// x = d * q, q signed.
LH_INLINE void DequantizeQ8_0(const uint8_t* block, float* out) {
  const float d = F16ToFloat(LoadU16(block));
  const uint8_t* q = block + 2;
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(static_cast<int8_t>(q[j]));
}

// x = (d * sc) * q - (dmin * m): eight groups of 32, each with a 6-bit scale and minimum packed in 12 bytes.
LH_INLINE void DequantizeQ4_K(const uint8_t* block, float* out) {
  const float d = F16ToFloat(LoadU16(block));
  const float d_min = F16ToFloat(LoadU16(block + 2));
  const uint8_t* s = block + 4;
  const uint8_t* q = block + 16;
  for (int g = 0; g < 8; ++g) {
    const int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | ((s[g - 4] >> 6) << 4);
    const int minimum = g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) | ((s[g] >> 6) << 4);
    const float group_d = d * static_cast<float>(scale);
    const float group_min = d_min * static_cast<float>(minimum);
    const uint8_t* run = q + (g / 2) * 32;
    const int shift = (g % 2) * 4;
    for (int j = 0; j < 32; ++j) out[g * 32 + j] = group_d * static_cast<float>((run[j] >> shift) & 15) - group_min;
  }
}

// x = (d * sc) * (q - 32): 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales of 16 values each, d last.
LH_INLINE void DequantizeQ6_K(const uint8_t* block, float* out) {
  const float d = F16ToFloat(LoadU16(block + 208));
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = block + half * 64;
    const uint8_t* high = block + 128 + half * 32;
    const uint8_t* scales = block + 192 + half * 8;
    for (int run = 0; run < 4; ++run) {
      const uint8_t* low_run = low + (run % 2) * 32;
      const int low_shift = (run / 2) * 4;
      const int high_shift = run * 2;
      for (int j = 0; j < 32; ++j) {
        const int q = (((low_run[j] >> low_shift) & 15) | (((high[j] >> high_shift) & 3) << 4)) - 32;
        const float scale = d * static_cast<float>(static_cast<int8_t>(scales[run * 2 + j / 16]));
        out[half * 128 + run * 32 + j] = scale * static_cast<float>(q);
      }
    }
  }
}

template <void (*kBlock)(const uint8_t*, float*)>
LH_INLINE void DequantizeBlocks(StorageType type, const uint8_t* src, int64_t elements, float* out) {
  const int64_t block_elements = BlockElements(type);
  const int64_t block_bytes = BlockBytes(type);
  const int64_t blocks = elements / block_elements;
  for (int64_t b = 0; b < blocks; ++b) kBlock(src + b * block_bytes, out + b * block_elements);
}

template <float (*kConvert)(uint16_t)>
LH_INLINE void ConvertHalves(const uint8_t* src, int64_t elements, float* out) {
  for (int64_t i = 0; i < elements; ++i) out[i] = kConvert(LoadU16(src + 2 * i));
}

LH_INLINE void Dequantize(StorageType type, const uint8_t* bytes, int64_t elements, float* out) {
  switch (type) {
    case StorageType::kF32:
      std::memcpy(out, bytes, static_cast<size_t>(elements) * sizeof(float));
      return;
    case StorageType::kF16:
      return ConvertHalves<F16ToFloat>(bytes, elements, out);
    case StorageType::kBF16:
      return ConvertHalves<Bf16ToFloat>(bytes, elements, out);
    case StorageType::kQ4_0:
      return DequantizeBlocks<DequantizeQ4_0>(type, bytes, elements, out);
    case StorageType::kQ4_1:
      return DequantizeBlocks<DequantizeQ4_1>(type, bytes, elements, out);
    case StorageType::kQ8_0:
      return DequantizeBlocks<DequantizeQ8_0>(type, bytes, elements, out);
    case StorageType::kQ4_K:
      return DequantizeBlocks<DequantizeQ4_K>(type, bytes, elements, out);
    case StorageType::kQ6_K:
      return DequantizeBlocks<DequantizeQ6_K>(type, bytes, elements, out);
    default:
      LH_CHECK(false, std::string("not a float type: ") + StorageTypeName(type));
  }
}

#undef LH_INLINE

[[gnu::target("avx2")]] void DequantizeAvx2(StorageType type, const uint8_t* bytes, int64_t elements, float* out) {
  Dequantize(type, bytes, elements, out);
}

void DequantizeBaseline(StorageType type, const uint8_t* bytes, int64_t elements, float* out) {
  Dequantize(type, bytes, elements, out);
}

}  // namespace

void DequantizeRows(StorageType type, const void* src, int64_t rows, int64_t cols, float* out) {
  LH_CHECK(rows >= 0 && cols >= 0 && cols % BlockElements(type) == 0, StorageTypeName(type));
  const auto* bytes = static_cast<const uint8_t*>(src);
  const int64_t elements = rows * cols;
  if (elements == 0) return;
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  (has_avx2 ? DequantizeAvx2 : DequantizeBaseline)(type, bytes, elements, out);
}

}  // namespace longhaul::formats
