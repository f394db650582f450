// Virtual time, and what happens in it. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "base/clock.h"

namespace longhaul::simulation {

inline constexpr int64_t kMillis = 1'000'000;  // in nanoseconds

class Timeline {
 public:
  FakeClock* clock() { return &clock_; }
  int64_t now() const { return clock_.BootNanos(); }

  void At(int64_t boot_nanos, std::function<void()> what) {
    due_.emplace(std::pair(boot_nanos < now() ? now() : boot_nanos, ++number_), std::move(what));
  }
  void In(int64_t nanos, std::function<void()> what) { At(now() + nanos, std::move(what)); }

  // Everything up to that time in order, and `after` behind each; stops where `after` says false.
  void RunUntil(int64_t boot_nanos, const std::function<bool()>& after) {
    while (!due_.empty() && due_.begin()->first.first <= boot_nanos) {
      const auto next = due_.begin();
      clock_.AdvanceNanosTo(next->first.first);
      const std::function<void()> what = std::move(next->second);
      due_.erase(next);
      what();
      if (!after()) return;
    }
    clock_.AdvanceNanosTo(boot_nanos);
  }

 private:
  FakeClock clock_;
  std::map<std::pair<int64_t, uint64_t>, std::function<void()>> due_;
  uint64_t number_ = 0;
};

}  // namespace longhaul::simulation
