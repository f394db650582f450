// JSON from outside: one object or array, valid UTF-8, no duplicate keys, nesting of at most limits::kMaxJsonDepth,
// nothing after it but whitespace. INVALID_ARGUMENT (reason FILE_INVALID) names the file and the byte.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace longhaul::formats {

// `file` names the text in messages.
absl::StatusOr<nlohmann::json> ParseJsonStrict(std::string_view text, const std::string& file);

// Reads at most limits::kMaxJsonFileBytes and parses them.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

// A double as Python's repr writes it ("0.05", "1e-05", "3.0"): the shortest text that reads back as the same value.
// REQUIRES: finite.
std::string PythonFloat(double value);

}  // namespace longhaul::formats
