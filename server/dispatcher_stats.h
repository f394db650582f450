// What the dispatcher knows for /metrics (API.md section 8): counters since start, gauges of now. A value.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/core/job.h"

namespace longhaul::server {

// Cumulative when shown: counts[i] is the number of values <= kBounds[i], the last one of all above.
struct Histogram {
  static constexpr std::array<double, 14> kBounds = {0.0005, 0.001, 0.005, 0.01, 0.05, 0.1,  0.5,
                                                     1,      5,     30,    60,   600,  3600, 36'000};
  std::array<uint64_t, kBounds.size() + 1> counts{};  // per bucket, not cumulative
  uint64_t count = 0;
  double sum = 0;
  void Add(double value);
};

struct WorkerStats {
  std::string worker_id;
  bool online = false;
  bool draining = false;
  double heartbeat_age_seconds = 0;
  int attempts = 0;
  int64_t host_bytes_total = 0;
  int64_t host_bytes_reserved = 0;
  int64_t host_bytes_used = 0;  // the last measured peaks of what runs
  // Of its training attempts that were measured: peak over planned bytes, minus 1, by kind of memory.
  std::optional<double> host_estimate_error_ratio;
  std::optional<double> device_estimate_error_ratio;
  int cpu_threads_total = 0;
  int cpu_threads_reserved = 0;
  struct Device {
    std::string device_id;
    std::string device_class;
    int64_t bytes_total = 0;
    int64_t bytes_reserved = 0;
    int64_t bytes_used = 0;
  };
  std::vector<Device> devices;
};

struct DispatcherStats {
  std::array<int64_t, kJobStates + 1> jobs_by_state{};  // by JobState; terminal ones since start only
  std::map<Reason, int64_t> waiting_by_reason;
  uint64_t created_total = 0;
  std::map<std::pair<JobState, Reason>, uint64_t> finished_total;
  std::map<std::pair<AttemptOutcome, Reason>, uint64_t> attempts_ended_total;
  std::map<Reason, uint64_t> recoveries_total;  // by cause
  uint64_t lease_expirations_total = 0;
  uint64_t fenced_writes_total = 0;
  uint64_t preemptions_total = 0;
  uint64_t checkpoints_total = 0;
  uint64_t training_tokens_total = 0;
  double lost_step_seconds_total = 0;  // done again because no checkpoint had them
  uint64_t commits_total = 0;
  uint64_t failed_commits_total = 0;
  uint64_t commands_total = 0;
  uint64_t internal_errors_total = 0;
  std::string last_internal_error;
  Histogram queue_wait_seconds;     // QUEUED to STARTING
  Histogram start_latency_seconds;  // STARTING to RUNNING
  Histogram run_seconds;            // create to end, terminal jobs
  Histogram scheduler_cycle_seconds;
  Histogram commit_seconds;
  Histogram step_seconds;
  Histogram checkpoint_interval_seconds;  // between commits of one attempt
  // Measured peak / planned - 1, of host and of device memory, of attempts of kind TRAIN that ended.
  Histogram estimate_error_ratio;         // of its absolute value
  uint64_t estimates_exceeded_total = 0;  // measured above planned
  std::vector<WorkerStats> workers;
};

}  // namespace longhaul::server
