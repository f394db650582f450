#include "server/http/metrics.h"

#include <sstream>

#include "prometheus/text_serializer.h"
#include "server/http/metric_builder.h"

namespace longhaul::server {
namespace {

void AddHistogram(const std::string& name, const std::string& help, const Histogram& histogram, MetricBuilder* out) {
  std::array<uint64_t, Histogram::kBounds.size()> cumulative{};
  uint64_t below = 0;
  for (size_t i = 0; i < cumulative.size(); ++i) cumulative[i] = below += histogram.counts[i];
  out->Histogram(name, help, Histogram::kBounds, cumulative, histogram.count, histogram.sum);
}

void AddJobs(const DispatcherStats& stats, MetricBuilder* out) {
  for (int state = 1; state <= kJobStates; ++state) {
    out->Gauge("jobs", "Jobs by state; terminal ones since the scheduler started.",
               static_cast<double>(stats.jobs_by_state[static_cast<size_t>(state)]),
               {{"state", Name(static_cast<JobState>(state))}});
  }
  for (const auto& [reason, count] : stats.waiting_by_reason) {
    out->Gauge("jobs_waiting", "Jobs that wait, by reason.", static_cast<double>(count), {{"reason", Name(reason)}});
  }
  out->Counter("jobs_created_total", "Jobs created.", static_cast<double>(stats.created_total));
  for (const auto& [key, count] : stats.finished_total) {
    out->Counter("jobs_finished_total", "Jobs that became terminal, by state and reason.", static_cast<double>(count),
                 {{"state", Name(key.first)}, {"reason", Name(key.second)}});
  }
  for (const auto& [key, count] : stats.attempts_ended_total) {
    out->Counter("attempts_ended_total", "Attempts that ended, by outcome and reason.", static_cast<double>(count),
                 {{"outcome", Name(key.first)}, {"reason", Name(key.second)}});
  }
  for (const auto& [cause, count] : stats.recoveries_total) {
    out->Counter("recoveries_total", "Recoveries from a failed or lost attempt, by cause.", static_cast<double>(count),
                 {{"cause", Name(cause)}});
  }
  AddHistogram("queue_wait_seconds", "Time from queued to starting.", stats.queue_wait_seconds, out);
  AddHistogram("start_latency_seconds", "Time from starting to the first step.", stats.start_latency_seconds, out);
  AddHistogram("job_run_seconds", "Time from create to end of terminal jobs.", stats.run_seconds, out);
  out->Counter("preemptions_total", "Attempts stopped for a job of a higher class.",
               static_cast<double>(stats.preemptions_total));
}

void AddTraining(const DispatcherStats& stats, MetricBuilder* out) {
  out->Counter("training_tokens_total", "Tokens trained on, from reported progress.",
               static_cast<double>(stats.training_tokens_total));
  AddHistogram("training_step_seconds", "Duration of an optimizer update.", stats.step_seconds, out);
  out->Counter("lost_step_seconds_total", "Training time done again because no checkpoint had it.",
               stats.lost_step_seconds_total);
  out->Counter("checkpoints_total", "Checkpoints committed.", static_cast<double>(stats.checkpoints_total));
  AddHistogram("checkpoint_interval_seconds", "Time between committed checkpoints of an attempt.",
               stats.checkpoint_interval_seconds, out);
  AddHistogram("estimate_absolute_error_ratio", "Absolute value of measured peak over planned bytes, minus 1.",
               stats.estimate_error_ratio, out);
  out->Counter("estimates_exceeded_total", "Training attempts whose measured peak was above the plan.",
               static_cast<double>(stats.estimates_exceeded_total));
}

void AddDispatcher(const DispatcherStats& stats, MetricBuilder* out) {
  AddHistogram("scheduler_cycle_seconds", "Duration of a scheduling pass.", stats.scheduler_cycle_seconds, out);
  AddHistogram("db_commit_seconds", "Duration of a database commit.", stats.commit_seconds, out);
  out->Counter("db_commits_total", "Database commits.", static_cast<double>(stats.commits_total));
  out->Counter("db_commit_failures_total", "Database commits that failed.",
               static_cast<double>(stats.failed_commits_total));
  out->Counter("dispatcher_commands_total", "Commands that the dispatcher took.",
               static_cast<double>(stats.commands_total));
  out->Counter("dispatcher_internal_errors_total", "Commands that ended in an internal error.",
               static_cast<double>(stats.internal_errors_total));
  out->Counter("lease_expirations_total", "Leases that ran out.", static_cast<double>(stats.lease_expirations_total));
  out->Counter("fenced_writes_total", "Writes refused because their lease epoch was stale.",
               static_cast<double>(stats.fenced_writes_total));
}

void AddDevice(const WorkerStats& worker, const WorkerStats::Device& device, MetricBuilder* out) {
  const MetricLabels labels = {
      {"worker", worker.worker_id}, {"device", device.device_id}, {"device_class", device.device_class}};
  out->Gauge("device_memory_bytes", "Device memory.", static_cast<double>(device.bytes_total), labels);
  out->Gauge("device_memory_reserved_bytes", "Device memory that placed attempts have reserved.",
             static_cast<double>(device.bytes_reserved), labels);
  out->Gauge("device_memory_used_bytes", "Device memory that running attempts were measured to use.",
             static_cast<double>(device.bytes_used), labels);
}

// Absent until measured: 0 would say that the estimate was exact.
void AddEstimateError(const WorkerStats& worker, const char* memory, const std::optional<double>& ratio,
                      MetricBuilder* out) {
  if (!ratio.has_value()) return;
  out->Gauge("estimate_error_ratio",
             "Measured peak of the worker's training attempts over their planned bytes, minus 1.", *ratio,
             {{"worker", worker.worker_id}, {"memory", memory}});
}

void AddWorkers(const DispatcherStats& stats, MetricBuilder* out) {
  for (const WorkerStats& worker : stats.workers) {
    const MetricLabels labels = {{"worker", worker.worker_id}};
    out->Gauge("worker_up", "1 while the worker is heard of.", worker.online ? 1 : 0, labels);
    out->Gauge("worker_draining", "1 while the worker takes no new attempts.", worker.draining ? 1 : 0, labels);
    out->Gauge("worker_heartbeat_age_seconds", "Time since the worker's last Sync.", worker.heartbeat_age_seconds,
               labels);
    out->Gauge("worker_attempts", "Attempts on the worker.", worker.attempts, labels);
    out->Gauge("host_memory_bytes", "Host memory that attempts may use.", static_cast<double>(worker.host_bytes_total),
               labels);
    out->Gauge("host_memory_reserved_bytes", "Host memory that placed attempts have reserved.",
               static_cast<double>(worker.host_bytes_reserved), labels);
    out->Gauge("host_memory_used_bytes", "Host memory that running attempts were measured to use.",
               static_cast<double>(worker.host_bytes_used), labels);
    out->Gauge("cpu_threads", "CPU threads that attempts may use.", worker.cpu_threads_total, labels);
    out->Gauge("cpu_threads_reserved", "CPU threads that placed attempts have reserved.", worker.cpu_threads_reserved,
               labels);
    AddEstimateError(worker, "host", worker.host_estimate_error_ratio, out);
    AddEstimateError(worker, "device", worker.device_estimate_error_ratio, out);
    for (const WorkerStats::Device& device : worker.devices) AddDevice(worker, device, out);
  }
}

void AddRequests(const RequestStats::Snapshot& requests, MetricBuilder* out) {
  for (const auto& [key, count] : requests.requests) {
    out->Counter("grpc_requests_total", "Ended gRPC calls, by method and code.", static_cast<double>(count),
                 {{"method", key.first}, {"code", key.second}});
  }
  for (const auto& [method, seconds] : requests.seconds) {
    out->Histogram("grpc_request_seconds", "Duration of unary gRPC calls, by method.", SecondsHistogram::kBounds,
                   seconds.cumulative, seconds.count, seconds.sum, {{"method", method}});
  }
  out->Gauge("watch_streams", "Open watch streams.", static_cast<double>(requests.watch_streams));
  const SecondsHistogram& lag = requests.watch_lag;
  out->Histogram("watch_lag_seconds", "Time from an event's commit to its hand-over to a watcher.",
                 SecondsHistogram::kBounds, lag.cumulative, lag.count, lag.sum);
  for (const auto& [cause, count] : requests.auth_failures) {
    out->Counter("auth_failures_total", "Calls refused for their credentials, by cause.", static_cast<double>(count),
                 {{"cause", cause}});
  }
  out->Counter("rate_limited_total", "Calls refused because their caller makes too many.",
               static_cast<double>(requests.rate_limited));
  out->Counter("audit_unrecorded_total", "Refused calls that the audit log lacks, because their caller makes too many.",
               static_cast<double>(requests.audit_unrecorded));
}

void AddTls(const TlsReloader::Counts& tls, MetricBuilder* out) {
  out->Gauge("tls_certificate_expiry_timestamp_seconds", "When the certificate in use expires, by the Unix clock.",
             static_cast<double>(tls.not_after_wall_micros) * 1e-6);
  out->Counter("tls_certificate_reloads_total", "Changed certificate files that are in use.",
               static_cast<double>(tls.reloads));
  out->Counter("tls_certificate_reload_failures_total", "Changed certificate files that cannot be used.",
               static_cast<double>(tls.failures));
}

}  // namespace

std::vector<prometheus::MetricFamily> MetricFamilies(const MetricsInput& input) {
  MetricBuilder out;
  out.Gauge("build_info", "Always 1; the label names the version.", 1, {{"version", input.version}});
  AddJobs(input.dispatcher, &out);
  AddTraining(input.dispatcher, &out);
  AddDispatcher(input.dispatcher, &out);
  AddWorkers(input.dispatcher, &out);
  AddRequests(input.requests, &out);
  if (input.tls.has_value()) AddTls(*input.tls, &out);
  out.Gauge("db_bytes", "Size of the database file.", static_cast<double>(input.sizes.db_bytes));
  out.Gauge("db_wal_bytes", "Size of the database's write-ahead log.", static_cast<double>(input.sizes.wal_bytes));
  out.Gauge("blob_bytes", "Bytes of all blobs.", static_cast<double>(input.sizes.blob_bytes));
  return out.Take();
}

std::string RenderMetrics(const MetricsInput& input) {
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, MetricFamilies(input));
  return text.str();
}

}  // namespace longhaul::server
