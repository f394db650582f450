// Token buckets by key, as one number a key (the generic cell rate algorithm): the moment at which the bucket is full
// again. Time is handed in. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

namespace longhaul {

class RateLimiter {
 public:
  // A key may do `burst` at once and `per_second` in the long run. Keeps at most `most_keys`: past that, keys whose
  // bucket is full are forgotten, then the one that is full soonest.
  // REQUIRES: all positive.
  RateLimiter(int64_t per_second, int64_t burst, size_t most_keys);
  // One every so often in the long run.
  struct Every {
    int64_t nanos = 0;
  };
  RateLimiter(Every interval, int64_t burst, size_t most_keys);

  // Takes one of `key`. 0: taken. Else nothing is taken, and it is the nanoseconds until one is there.
  int64_t Take(const std::string& key, int64_t now_nanos);

  size_t keys() const;

 private:
  void MakeRoom(int64_t now_nanos);

  const int64_t interval_nanos_;
  const int64_t burst_nanos_;
  const size_t most_keys_;
  mutable std::mutex mutex_;                                // guards full_at_nanos_
  std::unordered_map<std::string, int64_t> full_at_nanos_;  // absent = full
};

}  // namespace longhaul
