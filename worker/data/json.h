// JSON from outside: bounded in depth and in count before a value is built. Members keep their order.
// Thread-safe: no state.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace longhaul::data {

using Json = nlohmann::ordered_json;

// INVALID_ARGUMENT, with the byte where it can be named, where the text is not JSON, is not UTF-8, nests deeper than
// limits::kMaxJsonDepth or holds more than max_values values. Of a repeated key the last value stays.
absl::StatusOr<Json> ParseJson(std::string_view text, int64_t max_values);

}  // namespace longhaul::data
