// What one caller on one host may take of the server: calls a second, open streams, transfers, rows of the audit log.
// A host is an IPv4 address or an IPv6 /64. The local operator has only the server's own limits. Thread-safe.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/rate_limiter.h"
#include "server/core/access.h"

namespace longhaul::server {

class CallLimits {
 public:
  struct Options {
    int64_t calls_per_second = limits::kMaxCallsPerSecond;
    int64_t call_burst = limits::kMaxCallBurst;
    int streams = limits::kMaxStreamsPerCaller;
    int transfers = limits::kMaxTransfersPerCaller;
    int log_streams = limits::kMaxLogStreamsPerCaller;
    int log_streams_of_all = limits::kMaxLogStreams;
  };

  CallLimits(Options options, const Clock* clock)
      : options_(options),
        clock_(clock),
        calls_(options.calls_per_second, options.call_burst, limits::kMaxCallersTracked),
        refused_rows_(RateLimiter::Every{limits::kRefusedRowEveryMs * 1'000'000}, limits::kMaxRefusedRowBurst,
                      limits::kMaxCallersTracked) {}

  // One call. RESOURCE_EXHAUSTED RATE_LIMITED.
  absl::Status TakeCall(const Caller& caller);

  // Whether one more refused call of the caller is written into the audit log.
  bool TakeRefusedRow(const Caller& caller);

  // Something held for a while; given back when the last copy goes.
  using Slot = std::shared_ptr<const void>;
  // RESOURCE_EXHAUSTED TOO_MANY_STREAMS.
  absl::StatusOr<Slot> TakeStream(const Caller& caller) { return Take(caller, "stream", options_.streams); }
  // A reader of a log, beside its place among the streams: it holds a piece of the log. RESOURCE_EXHAUSTED
  // TOO_MANY_LOG_STREAMS, of the caller or, also for the local operator, of the server.
  absl::StatusOr<Slot> TakeLogStream(const Caller& caller);
  // RESOURCE_EXHAUSTED TOO_MANY_TRANSFERS.
  absl::StatusOr<Slot> TakeTransfer(const Caller& caller) { return Take(caller, "transfer", options_.transfers); }

 private:
  absl::StatusOr<Slot> Take(const Caller& caller, const char* what, int most);

  const Options options_;
  const Clock* const clock_;
  RateLimiter calls_;
  RateLimiter refused_rows_;
  std::mutex mutex_;                 // guards held_
  std::map<std::string, int> held_;  // by what and caller; absent = 0
  std::atomic<int> log_streams_{0};
};

}  // namespace longhaul::server
