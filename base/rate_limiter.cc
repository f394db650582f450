#include "base/rate_limiter.h"

#include <algorithm>

#include "base/check.h"

namespace longhaul {
namespace {

constexpr int64_t kSecondNanos = 1'000'000'000;

}  // namespace

RateLimiter::RateLimiter(int64_t per_second, int64_t burst, size_t most_keys)
    : RateLimiter(Every{std::max<int64_t>(1, kSecondNanos / per_second)}, burst, most_keys) {}

RateLimiter::RateLimiter(Every interval, int64_t burst, size_t most_keys)
    : interval_nanos_(interval.nanos), burst_nanos_(interval_nanos_ * burst), most_keys_(most_keys) {
  LH_CHECK(interval_nanos_ > 0 && burst > 0 && most_keys > 0);
}

int64_t RateLimiter::Take(const std::string& key, int64_t now_nanos) {
  std::lock_guard lock(mutex_);
  auto found = full_at_nanos_.find(key);
  if (found == full_at_nanos_.end()) {
    if (full_at_nanos_.size() >= most_keys_) MakeRoom(now_nanos);
    found = full_at_nanos_.emplace(key, now_nanos).first;
  }
  const int64_t full_at = std::max(found->second, now_nanos) + interval_nanos_;
  const int64_t missing = full_at - now_nanos - burst_nanos_;
  if (missing > 0) return missing;
  found->second = full_at;
  return 0;
}

void RateLimiter::MakeRoom(int64_t now_nanos) {
  std::erase_if(full_at_nanos_, [now_nanos](const auto& entry) { return entry.second <= now_nanos; });
  if (full_at_nanos_.size() < most_keys_) return;
  const auto soonest = std::min_element(full_at_nanos_.begin(), full_at_nanos_.end(),
                                        [](const auto& a, const auto& b) { return a.second < b.second; });
  full_at_nanos_.erase(soonest);
}

size_t RateLimiter::keys() const {
  std::lock_guard lock(mutex_);
  return full_at_nanos_.size();
}

}  // namespace longhaul
