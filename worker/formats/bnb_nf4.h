// NF4 as bitsandbytes stores it: 16 codes, one absmax a block, optionally the absmaxes themselves quantised to 8 bits.
// Bit-exact with bitsandbytes' CUDA kernels, except where their fast reciprocal differs from IEEE's by one ulp and a
// value lies within an ulp of a threshold (tests/worker/formats/bnb_nf4_test.cc names the cases).
// Source: FORMATS.md section 2. All functions are pure and thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/formats/tensor_info.h"

namespace longhaul::formats {

inline constexpr int64_t kNf4DefaultBlock = 64;
inline constexpr int64_t kNf4NestedBlock = 256;

// Code 7 is 0, code 15 is 1.
extern const std::array<float, 16> kNf4Codes;
// kNf4Thresholds[c] parts code c (not above) from code c + 1 (strictly above).
extern const std::array<float, 15> kNf4Thresholds;
// The 8-bit dynamic map of the absmaxes, ascending; index 127 is 0, 255 is 1.
extern const std::array<float, 256> kNf4NestedCodes;

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

// The JSON under `<weight>.quant_state.bitsandbytes__nf4`.
struct Nf4QuantState {
  int64_t block_size = kNf4DefaultBlock;
  StorageType dtype = StorageType::kBF16;  // kBF16, kF16 or kF32: what a dequantised weight is rounded to
  std::vector<int64_t> shape;              // [out, in]
  bool nested = false;
  int64_t nested_block_size = kNf4NestedBlock;
  float nested_offset = 0.0f;
  int64_t elements() const;
};

std::string Nf4QuantStateToJson(const Nf4QuantState& state);
// `file` names the text in messages. INVALID_ARGUMENT names the key at fault, a missing nested_offset among them;
// UNIMPLEMENTED where quant_type is not nf4.
absl::StatusOr<Nf4QuantState> Nf4QuantStateFromJson(std::string_view json, const std::string& file);

}  // namespace longhaul::formats
