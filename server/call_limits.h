// What one caller on one host may take of the server: calls a second, open streams, transfers, rows of the audit log.
// A host is an IPv4 address or an IPv6 /64, so that nobody gets more by changing addresses within a network of its own;
// of what the server has so many of and no more, nobody gets all by having many hosts either: a name has a bound.
// Many machines may be one host for us, behind one IPv4 address or in one IPv6 network, and a fleet may share a token:
// so each worker is a caller of its own, by the id that its credentials are bound to, else by the session that it shows
// (wire/metadata.h). Sessions are opened at will, so that all of one name on one host have a bound together, too.
// People who share a token and a host share its limits. The local operator has only the server's own, but for streams:
// each connection has those of a caller. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

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
    int log_streams_of_name = limits::kMaxLogStreamsPerName;
    int transfers_of_sharers = limits::kMaxSharersTransfers;
    int streams_of_name = limits::kMaxStreamsPerName;
    int transfers_of_name = limits::kMaxTransfersPerName;
    int transfers_of_clients = limits::kMaxClientTransfers;
    int worker_transfers_of_name = limits::kMaxWorkerTransfersPerName;
  };

  CallLimits(Options options, const Clock* clock)
      : options_(options),
        clock_(clock),
        calls_(options.calls_per_second, options.call_burst, limits::kMaxCallersTracked),
        sharers_calls_(options.calls_per_second * limits::kMaxSharersCallTimes,
                       options.call_burst * limits::kMaxSharersCallTimes, limits::kMaxCallersTracked),
        refused_rows_(RateLimiter::Every{limits::kRefusedRowEveryMs * 1'000'000}, limits::kMaxRefusedRowBurst,
                      limits::kMaxCallersTracked) {}

  // One call. RESOURCE_EXHAUSTED RATE_LIMITED.
  absl::Status TakeCall(const Caller& caller);

  // Whether one more refused call of the caller is written into the audit log. Workers that share a name share these.
  bool TakeRefusedRow(const Caller& caller);

  // Something held for a while; given back when the last copy goes.
  using Slot = std::shared_ptr<const void>;
  // RESOURCE_EXHAUSTED TOO_MANY_STREAMS, of the caller on its host or of its name on all hosts; of the local operator,
  // of its `connection` ("127.0.0.1:40000").
  absl::StatusOr<Slot> TakeStream(const Caller& caller, const std::string& connection);
  // A reader of a log, beside its place among the streams: it holds a piece of the log. RESOURCE_EXHAUSTED
  // TOO_MANY_LOG_STREAMS, of the caller on its host, of its name on all hosts, or of all callers but the local
  // operator.
  absl::StatusOr<Slot> TakeLogStream(const Caller& caller);
  // RESOURCE_EXHAUSTED TOO_MANY_TRANSFERS, of the caller on its host, of its name on all hosts, or of all callers but
  // workers and the local operator.
  absl::StatusOr<Slot> TakeTransfer(const Caller& caller);

 private:
  struct Bound {
    std::string key;
    int most = 0;
    std::string refusal;
  };
  static Bound OfCaller(const Caller& caller, const std::string& what, int most);
  static Bound OfName(const Caller& caller, const std::string& what, int most);
  // One of each bound, or nothing and the refusal of the first that is reached.
  absl::StatusOr<Slot> Take(std::vector<Bound> bounds, const char* reason);

  const Options options_;
  const Clock* const clock_;
  RateLimiter calls_;
  RateLimiter sharers_calls_;
  RateLimiter refused_rows_;
  std::mutex mutex_;                 // guards held_
  std::map<std::string, int> held_;  // by the key of a bound; absent = 0
};

}  // namespace longhaul::server
