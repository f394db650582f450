// Counts of the API's requests and streams, for /metrics. Filled by every handler, read by a scrape.
// Thread-safe: one mutex, held for a map look-up.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace longhaul::server {

// Cumulative counts below fixed bounds, as Prometheus wants them.
struct SecondsHistogram {
  static constexpr std::array<double, 12> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                     0.1,   0.25,   0.5,   1,    2.5,   10};
  std::array<uint64_t, kBounds.size()> cumulative{};
  uint64_t count = 0;
  double sum = 0;

  void Add(double seconds);
};

class RequestStats {
 public:
  struct Snapshot {
    std::map<std::pair<std::string, std::string>, uint64_t> requests;  // (method, code) -> ended calls
    std::map<std::string, SecondsHistogram> seconds;                   // by method; unary calls only
    SecondsHistogram watch_lag;                                        // commit to hand-over, per live event
    int64_t watch_streams = 0;
    std::map<std::string, uint64_t> auth_failures;  // by cause
    uint64_t rate_limited = 0;
    uint64_t audit_unrecorded = 0;  // refused calls beyond a caller's rows
  };

  // `code` is the canonical name, "OK" or "NOT_FOUND".
  void CountCall(const std::string& method, const std::string& code);
  void CountUnary(const std::string& method, const std::string& code, double seconds);
  void AddWatchLag(double seconds);
  // "NO_CREDENTIALS", "TOKEN_EXPIRED", ...: of a fixed set, never what a caller sent.
  void CountAuthFailure(const std::string& cause);
  void CountRateLimited() { rate_limited_.fetch_add(1, std::memory_order_relaxed); }
  void CountUnrecorded() { unrecorded_.fetch_add(1, std::memory_order_relaxed); }
  void AddWatchStreams(int64_t delta) { watch_streams_.fetch_add(delta, std::memory_order_relaxed); }
  // Whether a line may be written about a fault of the server's own: one each limits::kServerFaultLineMs.
  bool TakeFaultLine(int64_t now_boot_nanos);
  Snapshot Read() const;

 private:
  mutable std::mutex mutex_;  // guards counts_
  Snapshot counts_;
  std::atomic<int64_t> watch_streams_{0};
  std::atomic<uint64_t> rate_limited_{0};
  std::atomic<uint64_t> unrecorded_{0};
  std::atomic<int64_t> next_fault_line_boot_nanos_{0};
};

}  // namespace longhaul::server
