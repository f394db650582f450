// How a checkpoint of bitsandbytes describes an NF4 weight. The codes themselves: base/nf4.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/nf4.h"
#include "worker/formats/tensor_info.h"

namespace longhaul::formats {

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

// A weight as it lies in the checkpoint, for whoever keeps it in 4 bits. Borrowed from its ModelSource.
struct Nf4View {
  const Nf4QuantState* state = nullptr;
  const uint8_t* packed = nullptr;       // [Nf4PackedBytes(elements)]
  const uint8_t* absmax = nullptr;       // [blocks] u8 codes where nested, else f32, not aligned
  const float* nested_absmax = nullptr;  // where nested: [ceil(blocks / nested_block_size)]
  const float* nested_map = nullptr;     // where nested: [256]
};

std::string Nf4QuantStateToJson(const Nf4QuantState& state);
// `file` names the text in messages. INVALID_ARGUMENT names the key at fault, a missing nested_offset among them;
// UNIMPLEMENTED where quant_type is not nf4.
absl::StatusOr<Nf4QuantState> Nf4QuantStateFromJson(std::string_view json, const std::string& file);

}  // namespace longhaul::formats
