// When a project's quota has room for its waiting jobs, one after another, by the predicted ends of what it runs and of
// the jobs before: what a scheduling pass tells those who wait. Times are boot micros. Pure, not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "server/core/quota.h"
#include "server/core/scheduler.h"

namespace longhaul::server {

class QuotaLine {
 public:
  // With nothing held. A quota of zeros has no limit.
  QuotaLine(const Quota& quota, int64_t now) : quota_(quota), at_(now) {}

  // Held from now on until `end`.
  void Take(const Need& need, int64_t end);
  // The first moment that has room for `need`, not before those that were answered earlier: a line is a line.
  // kNeverMicros where the whole quota is less.
  int64_t Earliest(const Need& need);

 private:
  struct Return {
    int64_t end = 0;
    Need need;
    bool operator>(const Return& other) const { return end > other.end; }
  };

  bool HasRoom(const Need& need) const;

  const Quota quota_;
  int64_t at_;
  int jobs_ = 0;  // held at at_; and what is held
  Need held_;
  std::priority_queue<Return, std::vector<Return>, std::greater<>> returns_;
};

}  // namespace longhaul::server
