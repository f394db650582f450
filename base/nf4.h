// NF4 as bitsandbytes computes it: 16 codes, one absmax a block, optionally the absmaxes themselves quantised to 8
// bits. Bit-exact with bitsandbytes' CUDA kernels, except where their fast reciprocal differs from IEEE's by one ulp
// and a value lies within an ulp of a threshold (tests/worker/formats/bnb_nf4_test.cc names the cases). Source:
// FORMATS.md section 2. All functions are pure and thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "base/nf4_tables.h"

namespace longhaul {

inline constexpr int64_t kNf4DefaultBlock = 64;
inline constexpr int64_t kNf4NestedBlock = 256;

// Powers of two from 32 to 4096.
bool IsNf4BlockSize(int64_t block_size);
inline int64_t Nf4Blocks(int64_t n, int64_t block_size) { return (n + block_size - 1) / block_size; }
inline int64_t Nf4PackedBytes(int64_t n) { return (n + 1) / 2; }

// absmax[b] = max |w| of block b; code = number of thresholds strictly below w * (1 / absmax); the even element is the
// high nibble. A block of zeros (or of nothing above the subnormals, which CUDA flushes) has absmax 0 and codes 0.
// w: [n] f32, the matrix row-major, flattened. packed: [Nf4PackedBytes(n)]. absmax: [Nf4Blocks(n, block_size)] f32.
// REQUIRES: IsNf4BlockSize(block_size). INVALID_ARGUMENT names the first element that is not finite.
absl::Status QuantizeNf4(const float* w, int64_t n, int64_t block_size, uint8_t* packed, float* absmax);

// out[i - begin] = kNf4Codes[code i] * absmax[i / block_size] for i in [begin, end), in f32.
void DequantizeNf4(const uint8_t* packed, const float* absmax, int64_t begin, int64_t end, int64_t block_size,
                   float* out);

// The offset that double quantisation subtracts: the mean, summed in double. torch.mean adds in an order that depends
// on the device, so the last bit may differ; codes are exact given the same offset.
float MeanAbsmax(const float* absmax, int64_t n);
// codes: [n]; nested_absmax: [Nf4Blocks(n, kNf4NestedBlock)].
void QuantizeAbsmax(const float* absmax, int64_t n, float offset, uint8_t* codes, float* nested_absmax);
// out[i - begin] = map[codes[i]] * nested_absmax[i / nested_block] + offset: two rounded operations. `map` has 256
// entries: kNf4NestedCodes for our own, the checkpoint's nested_quant_map for another's.
void DequantizeAbsmax(const uint8_t* codes, const float* map, const float* nested_absmax, float offset, int64_t begin,
                      int64_t end, int64_t nested_block, float* out);

}  // namespace longhaul
