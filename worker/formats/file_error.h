// The two errors that a file from outside can cause. Both name the file; text taken from the file is made printable.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace longhaul::formats {

// INVALID_ARGUMENT, reason FILE_INVALID: "<file>: <what>".
absl::Status BadFile(const std::string& file, const std::string& what);
// UNIMPLEMENTED, reason MODEL_UNSUPPORTED: "<file>: <what>".
absl::Status Unsupported(const std::string& file, const std::string& what);

// Text from a file, fit for a message: at most max_bytes of it, everything outside printable ASCII as \xHH.
std::string Printable(std::string_view text, size_t max_bytes = 80);
// A tensor's shape as messages show it: [576, 64].
std::string ShapeText(const std::vector<int64_t>& shape);

}  // namespace longhaul::formats
