// The 8-bit maps of AdamW's moments: values in [-1, 1] (signed) and [0, 1] (unsigned), dense near 0 over seven decades.
// Signed is bitsandbytes' dynamic map. Unsigned is made the same way with twice the fractions a decade: for i = 0..6,
// 2^(i+1) values, the midpoints of an even division of [0.1, 1] times 10^(i-6); and 0 and 1. Ascending.
// Source: Dettmers et al. 2021 (8-bit optimizers).
#pragma once

#include <array>

#include "base/nf4_tables.h"

namespace longhaul::kernels {

inline constexpr const std::array<float, 256>& kSignedDynamicMap = kNf4NestedCodes;

constexpr std::array<float, 256> MakeUnsignedDynamicMap() {
  constexpr double kDecades[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
  std::array<float, 256> map{};
  size_t next = 1;  // map[0] is 0
  for (int i = 0; i < 7; ++i) {
    const int count = 2 << i;
    for (int k = 0; k < count; ++k) {
      map[next++] = static_cast<float>(kDecades[i] * (0.1 + 0.9 * (2 * k + 1) / (2 * count)));
    }
  }
  map[next] = 1;
  return map;
}
inline constexpr std::array<float, 256> kUnsignedDynamicMap = MakeUnsignedDynamicMap();

}  // namespace longhaul::kernels
