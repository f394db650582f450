// One independent draw after the other from a key.
#pragma once

#include <cstdint>

#include "base/random.h"

namespace longhaul::simulation {

class Draws {
 public:
  explicit Draws(uint64_t key) : key_(key) {}
  uint64_t Below(uint64_t n) { return CounterBits(key_, ++count_) % n; }
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Below(static_cast<uint64_t>(high - low + 1)));
  }
  bool Percent(uint64_t percent) { return Below(100) < percent; }

 private:
  const uint64_t key_;
  uint64_t count_ = 0;
};

}  // namespace longhaul::simulation
