// What an agent says about one attempt, turned into transitions. Reports repeat and may come late: everything here is
// idempotent, and what a stale epoch says changes nothing but its own hold.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

// A trainer that succeeded still has its artifact to upload: it ends with phase ENDED.
bool Ended(const AttemptReport& report, AttemptKind kind) {
  if (report.phase == AttemptPhase::kEnded) return true;
  if (report.exit == ExitReason::kNone) return false;
  return report.exit != ExitReason::kSucceeded || kind == AttemptKind::kValidate;
}

Failure FailureOf(const AttemptReport& report) {
  Failure failure = report.exit_failure;
  switch (report.exit) {
    case ExitReason::kFailed:
      // Only failures are reasons to fail, whatever a worker says.
      if (failure.reason < Reason::kInvalidDataset) failure.reason = Reason::kInternal;
      break;
    case ExitReason::kCrashed:
      // The agent may know more: the kernel's OOM killer, a full disk.
      if (failure.reason == Reason::kNone) failure.reason = Reason::kTrainerCrashed;
      if (failure.message.empty()) failure.message = "the trainer died without a word";
      break;
    case ExitReason::kLeaseLost:
      failure.reason = Reason::kWorkerLost;
      if (failure.message.empty()) failure.message = "the trainer was without a lease for too long";
      break;
    default:
      failure.reason = Reason::kInternal;
      if (failure.message.empty()) failure.message = "the attempt ended without its artifact";
  }
  if (static_cast<int64_t>(failure.log_tail.size()) > limits::kFailureLogTailBytes) {
    failure.log_tail.erase(0, failure.log_tail.size() - limits::kFailureLogTailBytes);
  }
  return failure;
}

}  // namespace

absl::Status DispatcherCore::ApplyReport(const std::string& worker_id, const AttemptReport& report) {
  WorkerRecord& worker = TouchWorker(worker_id);
  const auto found = worker.holds.find({report.key.job_id, report.key.attempt});
  if (found == worker.holds.end() || found->second.key.lease_epoch != report.key.lease_epoch) {
    return ApplyStrangeReport(worker_id, report);
  }
  Hold& hold = found->second;
  hold.confirmed = true;
  hold.memory_plan_json.reset();
  hold.phase = report.phase;
  hold.host_bytes_peak = std::max(hold.host_bytes_peak, report.host_bytes_peak);
  hold.device_bytes_peak = std::max(hold.device_bytes_peak, report.device_bytes_peak);
  const bool ended = Ended(report, hold.kind);
  if (!ended) hold.heard_boot_nanos = clock_->BootNanos();
  const auto done = [&] {
    worker.acknowledged.push_back(report.key);
    effects_.push_back(LogCompleteEffect{report.key.job_id, report.key.attempt});
    EraseHold(Hold(hold), worker_id);
  };
  if (hold.fenced) {
    if (ended) done();
    return absl::OkStatus();
  }
  JobRecord& record = TouchJob(report.key.job_id);
  Attempt& attempt = record.job.attempt;
  attempt.host_bytes_peak = hold.host_bytes_peak;
  attempt.device_bytes_peak = hold.device_bytes_peak;
  if (HasOpenAttempt(record.job)) LH_RETURN_IF_ERROR(ApplyLiveReport(record, hold, report));
  if (!ended) return absl::OkStatus();
  if (HasOpenAttempt(record.job)) {
    LH_RETURN_IF_ERROR(EndedAttempt(record, report));
  } else {
    // Closed before, when the job ended: what is new are the peaks.
    LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutAttempt(record.job.id, record.job.attempt); }));
    command_undo_.dirty.insert(record.job.id);
  }
  if (hold.kind == AttemptKind::kTrain) {
    const auto host = ErrorRatio(hold.host_bytes_peak, hold.host_bytes);
    const auto device = ErrorRatio(hold.device_bytes_peak, hold.device_bytes);
    OnCommit([this, host, device] {
      for (const std::optional<double>& ratio : {host, device}) {
        if (ratio.has_value()) stats_.estimate_error_ratio.Add(std::abs(*ratio));
      }
      if (std::max(host.value_or(0), device.value_or(0)) > 0) ++stats_.estimates_exceeded_total;
    });
  }
  done();
  return absl::OkStatus();
}

// Of an attempt that we hold nothing for, or under another epoch.
absl::Status DispatcherCore::ApplyStrangeReport(const std::string& worker_id, const AttemptReport& report) {
  WorkerRecord& worker = TouchWorker(worker_id);
  if (report.phase == AttemptPhase::kEnded || report.exit != ExitReason::kNone) {
    worker.acknowledged.push_back(report.key);  // recorded before, or of no use to anybody: its folder may go
    return absl::OkStatus();
  }
  const std::pair<std::string, int> at{report.key.job_id, report.key.attempt};
  if (const auto held = worker.holds.find(at); held != worker.holds.end()) {
    // The right attempt under an epoch that is over: told to stop, below its own key.
    ++stats_.fenced_writes_total;
    if (held->second.fenced) held->second.key = report.key;
    return absl::OkStatus();
  }
  // Of a worker that makes them up: what it holds is given to it, and named, by the thousand at most.
  if (worker.holds.size() >= static_cast<size_t>(limits::kMaxHoldsPerWorker)) {
    ++stats_.fenced_writes_total;
    return absl::OkStatus();
  }
  Hold hold;
  hold.key = report.key;
  hold.confirmed = true;
  hold.offered = true;
  hold.fenced = true;
  hold.given = false;
  hold.host_bytes_peak = report.host_bytes_peak;
  hold.device_bytes_peak = report.device_bytes_peak;
  hold.host_bytes = report.host_bytes_peak;
  // What it may hold of the worker's memory is what was planned for it.
  const absl::StatusOr<std::vector<Attempt>> attempts = store_->ListAttempts(report.key.job_id);
  for (const Attempt& attempt : attempts.ok() ? *attempts : std::vector<Attempt>()) {
    if (attempt.number != report.key.attempt || attempt.worker_id != worker_id) continue;
    hold.given = true;
    hold.kind = attempt.kind;
    hold.device_id = attempt.device_id;
    hold.device_bytes = attempt.device_bytes_planned;
    hold.host_bytes = std::max(hold.host_bytes, attempt.host_bytes_planned);
    hold.disk_bytes = attempt.disk_bytes_planned;
    hold.cpu_threads = attempt.cpu_threads_planned;
  }
  // A job that ended just before the scheduler restarted: its attempt is in order and is told to stop, or, after a
  // success, left to ship its log. One that has its adapter to make yet runs a second time, from what an agent found
  // again.
  const absl::StatusOr<Job> job = FindJob(report.key.job_id);
  if (job.ok() && IsTerminal(job->state) && !jobs_.contains(job->id) && job->attempt.number == report.key.attempt &&
      job->attempt.lease_epoch == report.key.lease_epoch && job->lease_epoch == report.key.lease_epoch &&
      job->attempt.worker_id == worker_id) {
    hold.fenced = false;
    const bool after_its_success = job->state == JobState::kSucceeded && report.phase == AttemptPhase::kFinalizing;
    if (!after_its_success) hold.stop = StopMode::kCancel;
    TouchJob(job->id).job = *job;
  } else {
    ++stats_.fenced_writes_total;
  }
  worker.holds[at] = std::move(hold);
  schedule_wanted_ = true;
  return absl::OkStatus();
}

absl::Status DispatcherCore::ApplyLiveReport(JobRecord& record, Hold& hold, const AttemptReport& report) {
  if (!report.warnings.empty() && !hold.warnings.has_value()) {
    // Where they cannot be read, one may be told twice: better than a worker whose Syncs are refused for it.
    hold.warnings = WarningsOf(record.job).value_or(std::set<std::string>());
  }
  for (const std::string& warning : report.warnings) {
    if (static_cast<int>(hold.warnings->size()) >= limits::kMaxWarningsPerAttempt) break;
    if (!hold.warnings->insert(warning).second) continue;
    LH_RETURN_IF_ERROR(AddEvent(record, EventType::kWarning, record.job.state, Reason::kNone, warning, hold.last_step));
  }
  if (!report.data_report.empty() && report.data_report != record.job.data_report) {
    record.job.data_report = report.data_report;
    command_undo_.dirty.insert(record.job.id);
  }
  if (hold.kind != AttemptKind::kTrain) return absl::OkStatus();
  LH_RETURN_IF_ERROR(ApplyPhase(record, report));
  return ApplyProgress(record, hold, report);
}

absl::Status DispatcherCore::ApplyPhase(JobRecord& record, const AttemptReport& report) {
  const bool succeeded = report.exit == ExitReason::kSucceeded;
  const bool runs = report.phase == AttemptPhase::kRunning || report.phase == AttemptPhase::kHeld ||
                    report.phase == AttemptPhase::kFinalizing || !report.progress.empty() || succeeded;
  if (runs && record.job.state == JobState::kStarting) {
    LH_RETURN_IF_ERROR(SetState(record, JobState::kRunning, Reason::kNone, "training"));
  }
  const bool finalizes = report.phase == AttemptPhase::kFinalizing || succeeded;
  if (finalizes && (record.job.state == JobState::kRunning || record.job.state == JobState::kPausing)) {
    LH_RETURN_IF_ERROR(SetState(record, JobState::kFinalizing, Reason::kNone, "stores its adapter"));
  }
  return absl::OkStatus();
}

// Of a store that takes nothing, for a job that goes on training: every second point goes, the first and the last stay.
void DispatcherCore::ThinPending(JobRecord* record) {
  std::vector<MetricPoint>& points = record->pending_metrics;
  size_t kept = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    if (i % 2 == 0 || i + 1 == points.size()) std::swap(points[kept++], points[i]);
  }
  points.resize(kept);
}

absl::Status DispatcherCore::ApplyProgress(JobRecord& record, Hold& hold, const AttemptReport& report) {
  for (size_t i = 0; i < report.progress.size(); ++i) {
    const MetricPoint& told = report.progress[i];
    // A step is told again with the evaluation that followed it: the later telling replaces the earlier one.
    if (i + 1 < report.progress.size() && report.progress[i + 1].step == told.step) continue;
    const bool again = told.step == hold.last_step && hold.last_step > record.job.attempt.resumed_from_step;
    const bool news = again ? told.progress != record.job.progress && told.wall_micros >= hold.last_step_wall_micros
                            : told.step > hold.last_step;
    if (!news) continue;
    hold.last_step = told.step;
    hold.last_step_wall_micros = told.wall_micros;
    record.job.attempt.last_step = told.step;
    if (told.step_seconds > 0) hold.step_seconds = told.step_seconds;
    MetricPoint point = told;
    point.attempt = hold.key.attempt;
    record.job.progress = point.progress;
    const int64_t tokens = std::max<int64_t>(0, point.trained_tokens - record.job.trained_tokens);
    record.job.trained_tokens += tokens;
    OnCommit([this, tokens, seconds = again ? 0 : point.step_seconds] {
      stats_.training_tokens_total += static_cast<uint64_t>(tokens);
      if (seconds > 0) stats_.step_seconds.Add(seconds);
    });
    effects_.push_back(ProgressEffect{record.job.id, point});
    if (record.pending_metrics.empty()) {
      record.pending_since_boot_nanos = clock_->BootNanos();
      metrics_due_boot_nanos_ =
          std::min(metrics_due_boot_nanos_, record.pending_since_boot_nanos + limits::kMetricsFlushMs * 1'000'000);
    }
    record.pending_metrics.push_back(std::move(point));
    if (record.pending_metrics.size() > static_cast<size_t>(limits::kMaxPendingMetrics)) ThinPending(&record);
    metric_jobs_.insert(record.job.id);
  }
  return absl::OkStatus();
}

absl::Status DispatcherCore::EndedAttempt(JobRecord& record, const AttemptReport& report) {
  if (record.job.attempt.kind == AttemptKind::kValidate) return EndedValidation(record, report);
  const bool asked = report.exit == ExitReason::kCheckpointed || report.exit == ExitReason::kCancelled;
  if (asked || record.job.state == JobState::kCancelling) {
    const std::optional<Checkpoint>& last = record.job.last_checkpoint;
    const bool its_own = last.has_value() && last->attempt == report.key.attempt;
    return StoppedAttempt(record, report.exit != ExitReason::kCheckpointed ? "stopped"
                                  : its_own ? "stopped at the checkpoint of step " + std::to_string(last->step)
                                            : "stopped before a checkpoint of its own");
  }
  if (report.exit == ExitReason::kLeaseLost) return LeaseLost(record, report);
  if (report.device_at_fault) NoteDeviceFault(record.job);
  return FailAttempt(record, AttemptOutcome::kFailed, FailureOf(report));
}

// Its epoch was never fenced. Where we have been away since it was last heard of alive, that was the reason: nothing is
// counted.
absl::Status DispatcherCore::LeaseLost(JobRecord& record, const AttemptReport& report) {
  const Hold* hold = FindHold(record.job);
  if (hold != nullptr && hold->heard_boot_nanos < away_until_boot_nanos_) {
    return LostUncounted(record, "its lease ran out while the scheduler was away");
  }
  return FailAttempt(record, AttemptOutcome::kLost, FailureOf(report));
}

absl::Status DispatcherCore::EndedValidation(JobRecord& record, const AttemptReport& report) {
  Job& job = record.job;
  if (report.exit == ExitReason::kCheckpointed || report.exit == ExitReason::kCancelled) {
    return StoppedAttempt(record, "its worker stops and hands it back");
  }
  if (report.exit == ExitReason::kLeaseLost) return LeaseLost(record, report);
  if (report.exit != ExitReason::kSucceeded) {
    return FailAttempt(record, AttemptOutcome::kFailed, FailureOf(report));
  }
  if (report.report_error_count > 0 || report.report_examples <= 0) {
    Failure failure;
    failure.reason = Reason::kInvalidDataset;
    failure.user_can_fix = true;
    failure.message = report.report_examples <= 0
                          ? "the dataset has no example to train on"
                          : std::to_string(report.report_error_count) + " lines of the dataset are not valid";
    return FailAttempt(record, AttemptOutcome::kFailed, std::move(failure));
  }
  LH_RETURN_IF_ERROR(CloseAttempt(record, AttemptOutcome::kSucceeded, Reason::kNone, ""));
  job.validated = true;
  job.not_before_wall_micros = 0;
  job.total_steps = report.report_total_steps;
  if (report.report_longest_tokens > 0) {
    job.train_shape.longest_document = std::min(report.report_longest_tokens, job.train_shape.sequence_length);
  }
  if (report.report_tokens > 0) job.train_shape.dataset_tokens = report.report_tokens;
  record.demands.reset();
  const std::shared_ptr<const JobDemands> demands = DemandsOf(record);
  bool fits = demands->empty();  // no device is registered: wait for one
  std::string why;
  for (const auto& [device_class, points] : *demands) {
    for (const Demand& demand : points) {
      fits = fits || demand.fits;
      if (!demand.fits && !demand.why.empty() && why.empty())
        why = "on device class " + device_class + " it " + demand.why;
    }
  }
  if (fits) {
    return SetState(record, JobState::kQueued, Reason::kNone,
                    "its dataset is valid: " + std::to_string(report.report_examples) +
                        (report.report_examples == 1 ? " example" : " examples"));
  }
  Failure failure;
  failure.reason = Reason::kExceedsEveryDevice;
  failure.user_can_fix = true;
  failure.message = "with this dataset it fits no registered device: " + why;
  return FailJob(record, std::move(failure));
}

}  // namespace longhaul::server
