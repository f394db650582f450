// Numbers for people and the few string helpers that both server and client need.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace longhaul {

std::string FormatBytes(int64_t bytes);                     // "1.25 GiB"
std::string FormatDuration(double seconds);                 // "4m 07s", "2h 03m", "0.8s"
std::string FormatCount(int64_t n);                         // "12,345"
std::string FormatTimestamp(int64_t wall_micros);           // "2026-11-23T10:00:00.123Z"
absl::StatusOr<int64_t> ParseBytes(std::string_view text);  // "8GiB", "512 MiB", "1000"
// The candidate nearest in edit distance to `word`, "" if none is near enough to be a typo.
std::string NearestWord(std::string_view word, const std::string* begin, const std::string* end);

}  // namespace longhaul
