// How long to wait before asking again: doubled each time up to a limit, with jitter so that a fleet does not come back
// in step. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/limits.h"
#include "base/random.h"

namespace longhaul::agent {

class Backoff {
 public:
  // `key` spreads the jitter: the same key gives the same waits.
  explicit Backoff(uint64_t key) : key_(key) {}

  // Between half of the current wait and all of it; the next is twice as long, up to the longest.
  int64_t NextMs() {
    const double part = 0.5 + 0.5 * CounterUniform(key_, counter_++);
    const int64_t full = std::min(wait_ms_, longest_ms_);
    wait_ms_ = std::min(2 * wait_ms_, limits::kMaxBackoffMs);
    return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(full) * part));
  }
  void Reset() { wait_ms_ = limits::kMinBackoffMs; }
  // limits::kMaxBackoffMs, or less.
  void SetLongest(int64_t ms) { longest_ms_ = std::clamp<int64_t>(ms, 1, limits::kMaxBackoffMs); }

 private:
  uint64_t key_;
  uint64_t counter_ = 0;
  int64_t wait_ms_ = limits::kMinBackoffMs;
  int64_t longest_ms_ = limits::kMaxBackoffMs;
};

}  // namespace longhaul::agent
