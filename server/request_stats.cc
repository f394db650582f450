#include "server/request_stats.h"

#include "base/limits.h"

namespace longhaul::server {

void SecondsHistogram::Add(double seconds) {
  for (size_t i = 0; i < kBounds.size(); ++i) {
    if (seconds <= kBounds[i]) ++cumulative[i];
  }
  ++count;
  sum += seconds;
}

void RequestStats::CountCall(const std::string& method, const std::string& code) {
  std::lock_guard lock(mutex_);
  ++counts_.requests[{method, code}];
}

void RequestStats::CountUnary(const std::string& method, const std::string& code, double seconds) {
  std::lock_guard lock(mutex_);
  ++counts_.requests[{method, code}];
  counts_.seconds[method].Add(seconds);
}

void RequestStats::CountAuthFailure(const std::string& cause) {
  std::lock_guard lock(mutex_);
  ++counts_.auth_failures[cause];
}

void RequestStats::AddWatchLag(double seconds) {
  std::lock_guard lock(mutex_);
  counts_.watch_lag.Add(seconds < 0 ? 0 : seconds);
}

bool RequestStats::TakeFaultLine(int64_t now_boot_nanos) {
  int64_t next = next_fault_line_boot_nanos_.load(std::memory_order_relaxed);
  return now_boot_nanos >= next && next_fault_line_boot_nanos_.compare_exchange_strong(
                                       next, now_boot_nanos + limits::kServerFaultLineMs * 1'000'000);
}

RequestStats::Snapshot RequestStats::Read() const {
  Snapshot snapshot;
  {
    std::lock_guard lock(mutex_);
    snapshot = counts_;
  }
  snapshot.watch_streams = watch_streams_.load(std::memory_order_relaxed);
  snapshot.rate_limited = rate_limited_.load(std::memory_order_relaxed);
  snapshot.audit_unrecorded = unrecorded_.load(std::memory_order_relaxed);
  return snapshot;
}

}  // namespace longhaul::server
