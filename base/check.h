// LH_CHECK: a broken invariant, a bug of ours. Prints the expression, the place and the detail, and aborts.
// User and I/O errors are absl::Status, never a CHECK.
#pragma once

#include <string>

namespace longhaul {

[[noreturn]] void CheckFailed(const char* expression, const char* file, int line, const std::string& detail);

}  // namespace longhaul

#define LH_CHECK(condition, ...)                                                         \
  do {                                                                                   \
    if (!(condition)) [[unlikely]]                                                       \
      ::longhaul::CheckFailed(#condition, __FILE__, __LINE__, std::string(__VA_ARGS__)); \
  } while (false)
