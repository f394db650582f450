// The JSON header of a safetensors file, read event by event so that a hostile header costs no tree in memory.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/formats/safetensors.h"

namespace longhaul::formats {

// `json` is the header without its length; `data_begin` is added to every offset. Checks syntax, keys, dtypes and
// limits; the caller checks how the offsets fit together and the file.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsJson(std::string_view json, int64_t data_begin,
                                                       const std::string& file);

}  // namespace longhaul::formats
