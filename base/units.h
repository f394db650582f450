// Multiples of units, where a name reads better than the number.
#pragma once

#include <cstdint>

namespace longhaul {

inline constexpr int64_t kMiB = int64_t{1} << 20;
inline constexpr int64_t kGiB = int64_t{1} << 30;
inline constexpr int64_t kNanosPerMs = 1'000'000;
inline constexpr int64_t kMicrosPerSecond = 1'000'000;

}  // namespace longhaul
