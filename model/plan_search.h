// The search that every choice of a plan is made by.
#pragma once

#include <cstdint>

namespace longhaul {

// The largest value up to `most` for which fits(value) holds, where it holds for all below one that it holds for; at
// least `least`, which is not asked about.
template <typename Fits>
int64_t MostThatFits(int64_t least, int64_t most, const Fits& fits) {
  while (least < most) {
    const int64_t middle = least + (most - least + 1) / 2;
    if (fits(middle)) {
      least = middle;
    } else {
      most = middle - 1;
    }
  }
  return least;
}

}  // namespace longhaul
