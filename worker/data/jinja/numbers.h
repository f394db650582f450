// What Python's int() and float() read from text. Source: CPython 3.11's long_from_string and float_from_string.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/data/jinja/value.h"

namespace longhaul::data::jinja {

// int(text, base): white space around it, a sign, 0x 0o 0b where `base` is 16, 8, 2 or 0 (which takes any of them),
// single underscores between digits, decimal digits of any script. None (Python's ValueError) for anything else, and
// for a base other than 0 and 2 to 36. An integer that does not fit 64 bits is an error.
absl::StatusOr<std::optional<int64_t>> ParsePythonInt(std::string_view text, int64_t base);

// float(text): the same spaces, underscores and digits; inf, infinity and nan in any case. None for anything else.
std::optional<double> ParsePythonFloat(std::string_view text);

// int(value): towards zero. An error where it does not fit 64 bits. REQUIRES: finite.
absl::StatusOr<Value> IntegerOf(double value);

}  // namespace longhaul::data::jinja
