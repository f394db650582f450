// The life of an attempt: placed, stopped, failed, lost, recovered. What it commits: dispatcher_commits.cc.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "server/core/transitions.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

std::string Place(const Attempt& attempt) {
  return "worker " + attempt.worker_id + (attempt.device_id.empty() ? "" : " (" + attempt.device_id + ")");
}

}  // namespace

Hold* DispatcherCore::FindHold(const Job& job) {
  if (job.attempt.number == 0 || !workers_.contains(job.attempt.worker_id)) return nullptr;
  WorkerRecord& worker = TouchWorker(job.attempt.worker_id);
  const auto found = worker.holds.find({job.id, job.attempt.number});
  return found == worker.holds.end() ? nullptr : &found->second;
}

void DispatcherCore::EraseHold(const Hold& hold, const std::string& worker_id) {
  const std::pair<std::string, int> key{hold.key.job_id, hold.key.attempt};
  WorkerRecord& worker = TouchWorker(worker_id);
  if (hold.given) worker.gone[key] = worker.sync_number;
  worker.holds.erase(key);                             // and with it what `hold` refers to, perhaps
  if (jobs_.contains(key.first)) TouchJob(key.first);  // so that the commit looks whether the record can go
  schedule_wanted_ = true;
}

absl::Status DispatcherCore::StartAttempt(const Start& start) {
  JobRecord& record = TouchJob(start.job_id);
  Job& job = record.job;
  Hold hold;
  Demand demand = start.demand;
  if (start.kind == AttemptKind::kTrain) {
    const auto& devices = workers_.at(start.worker_id).worker->devices;
    const auto device = std::find_if(devices.begin(), devices.end(),
                                     [&](const DeviceEntry& entry) { return entry.id == start.device_id; });
    LH_CHECK(device != devices.end());
    // Devices of a class may differ in size: what counts is this one's plan, which is never the larger.
    const Demand here = planner_.Evaluate(PlanRequestOf(job), device->facts, start.point, false);
    if (here.fits) demand = here;
    LH_ASSIGN_OR_RETURN(std::string plan, planner_.PlanJson(PlanRequestOf(job), device->facts, start.point));
    hold.memory_plan_json = std::make_shared<const std::string>(std::move(plan));
  }
  ++job.lease_epoch;
  ++job.attempts;
  Attempt attempt;
  attempt.number = job.attempts;
  attempt.kind = start.kind;
  attempt.worker_id = start.worker_id;
  attempt.device_id = start.device_id;
  attempt.device_class = start.device_class;
  attempt.plan_point = start.point;
  attempt.lease_epoch = job.lease_epoch;
  attempt.start_wall_micros = clock_->WallMicros();
  attempt.device_bytes_planned = demand.device_bytes;
  attempt.host_bytes_planned = demand.host_bytes;
  attempt.disk_bytes_planned = demand.disk_bytes;
  attempt.cpu_threads_planned = demand.cpu_threads;
  if (start.kind == AttemptKind::kTrain && job.last_checkpoint.has_value()) {
    attempt.resumed_from_step = job.last_checkpoint->step;
  }
  job.attempt = attempt;
  hold.key = {job.id, attempt.number, attempt.lease_epoch};
  hold.kind = attempt.kind;
  hold.device_id = attempt.device_id;
  hold.device_bytes = attempt.device_bytes_planned;
  hold.host_bytes = attempt.host_bytes_planned;
  hold.disk_bytes = attempt.disk_bytes_planned;
  hold.cpu_threads = attempt.cpu_threads_planned;
  hold.last_step = attempt.resumed_from_step;
  hold.checkpoint_step = attempt.resumed_from_step;
  hold.checkpoint_boot_nanos = clock_->BootNanos();
  hold.heard_boot_nanos = clock_->BootNanos();
  TouchWorker(start.worker_id).holds[{job.id, attempt.number}] = std::move(hold);
  LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutAttempt(job.id, attempt); }));
  if (start.kind == AttemptKind::kValidate) {
    job.reason = Reason::kWaitingForValidation;
    job.reason_detail = "its dataset is being checked on " + Place(attempt);
    return AddEvent(record, EventType::kAttempt, job.state, job.reason, job.reason_detail, 0);
  }
  std::string detail = "attempt " + std::to_string(attempt.number) + " on " + Place(attempt) + ", plan " +
                       Name(start.point) + ", " + FormatBytes(attempt.host_bytes_planned) + " of host RAM";
  if (attempt.device_bytes_planned > 0) detail += ", " + FormatBytes(attempt.device_bytes_planned) + " of the device";
  if (attempt.resumed_from_step > 0) detail += ", from step " + std::to_string(attempt.resumed_from_step);
  return SetState(record, JobState::kStarting, Reason::kNone, detail);
}

// For a job of a higher class: the attempt writes a checkpoint and its job waits again.
absl::Status DispatcherCore::PreemptAttempt(const Preemption& preemption) {
  JobRecord& record = TouchJob(preemption.job_id);
  Job& job = record.job;
  if (job.state != JobState::kRunning) return absl::OkStatus();
  ++job.preemptions;
  job.pause_cause = PauseCause::kPreempt;
  LH_RETURN_IF_ERROR(SetState(record, JobState::kPausing, Reason::kNone,
                              "makes room for job " + preemption.for_job_id + " of a higher priority class"));
  OnCommit([this] { ++stats_.preemptions_total; });
  return RequestStop(record, StopMode::kCheckpoint);
}

absl::Status DispatcherCore::CloseAttempt(JobRecord& record, AttemptOutcome outcome, Reason reason,
                                          const std::string& message) {
  Job& job = record.job;
  LH_CHECK(HasOpenAttempt(job));
  LH_RETURN_IF_ERROR(FlushMetrics(record));
  job.attempt.end_wall_micros = std::max<int64_t>(clock_->WallMicros(), 1);
  job.attempt.outcome = outcome;
  job.attempt.reason = reason;
  job.attempt.message = message;
  LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutAttempt(job.id, job.attempt); }));
  OnCommit([this, outcome, reason] { ++stats_.attempts_ended_total[{outcome, reason}]; });
  // Of a validation there is no device.
  const auto worker = workers_.find(job.attempt.worker_id);
  if (outcome == AttemptOutcome::kSucceeded && worker != workers_.end() &&
      worker->second.faults.contains(job.attempt.device_id)) {
    TouchWorker(job.attempt.worker_id).faults.erase(job.attempt.device_id);
  }
  schedule_wanted_ = true;
  return AddEvent(record, EventType::kAttempt, job.state, reason,
                  "attempt " + std::to_string(job.attempt.number) + " on " + Place(job.attempt) + " ended, " +
                      Name(outcome) + (message.empty() ? "" : ": " + message),
                  0);
}

absl::Status DispatcherCore::RequestStop(JobRecord& record, StopMode mode) {
  Hold* hold = FindHold(record.job);
  LH_CHECK(hold != nullptr, "an open attempt without a hold: " + record.job.id);
  if (!hold->confirmed && !hold->offered) {
    // Its worker never heard of it: there is nothing to stop.
    EraseHold(*hold, record.job.attempt.worker_id);
    return StoppedAttempt(record, "stopped before it was sent");
  }
  if (hold->stop != StopMode::kCancel && hold->stop != mode) {
    hold->stop = mode;
    hold->stop_sent_in = 0;
  }
  return absl::OkStatus();
}

// For a job that is about to end: the attempt is over now, and the worker is told to stop it. Until it has, its hold
// counts its memory.
absl::Status DispatcherCore::ReleaseAttempt(JobRecord& record, const std::string& message) {
  if (!HasOpenAttempt(record.job)) return absl::OkStatus();
  Hold* hold = FindHold(record.job);
  if (hold != nullptr && !hold->confirmed && !hold->offered) {
    EraseHold(*hold, record.job.attempt.worker_id);
  } else if (hold != nullptr && hold->stop != StopMode::kCancel) {
    hold->stop = StopMode::kCancel;
    hold->stop_sent_in = 0;
  }
  return CloseAttempt(record, AttemptOutcome::kStopped, Reason::kNone, message);
}

// The attempt has ended as it was asked to: not a failure.
absl::Status DispatcherCore::StoppedAttempt(JobRecord& record, const std::string& message) {
  Job& job = record.job;
  LH_RETURN_IF_ERROR(CloseAttempt(record, AttemptOutcome::kStopped, Reason::kNone, message));
  switch (job.state) {
    case JobState::kCancelling:
      return SetState(record, JobState::kCancelled, Reason::kNone, "cancelled by the user");
    case JobState::kStarting:
    case JobState::kRunning:
      job.pause_cause = PauseCause::kDrain;
      LH_RETURN_IF_ERROR(SetState(record, JobState::kPausing, Reason::kNone, "its worker stops and hands it back"));
      break;
    case JobState::kFinalizing: {
      const std::string from = job.last_checkpoint.has_value()
                                   ? "continues from step " + std::to_string(job.last_checkpoint->step)
                                   : "starts again";
      return SetState(record, JobState::kRecovering, Reason::kNone, "its worker stopped before the upload; " + from);
    }
    default:
      break;
  }
  if (job.state != JobState::kPausing) return absl::OkStatus();  // VALIDATING: placed again; terminal: done
  if (job.pause_cause == PauseCause::kUser) {
    return SetState(record, JobState::kPaused, Reason::kPausedByUser, "paused by the user");
  }
  return SetState(
      record, JobState::kQueued, Reason::kNone,
      job.last_checkpoint.has_value() ? "moves on from step " + std::to_string(job.last_checkpoint->step) : "moves on");
}

absl::Status DispatcherCore::FailAttempt(JobRecord& record, AttemptOutcome outcome, Failure failure) {
  Job& job = record.job;
  LH_RETURN_IF_ERROR(CloseAttempt(record, outcome, failure.reason, failure.message));
  if (job.state == JobState::kCancelling) {
    return SetState(record, JobState::kCancelled, Reason::kNone, "cancelled by the user");
  }
  ++job.failed_attempts;
  if (!IsRetryable(failure.reason)) return FailJob(record, std::move(failure));
  if (job.failed_attempts > job.retry_limit) {
    failure.message = std::to_string(job.failed_attempts) + " attempts failed, " + std::to_string(job.retry_limit) +
                      " retries are allowed; the last: " + Name(failure.reason) + ": " + failure.message;
    failure.reason = Reason::kRetryLimitExceeded;
    return FailJob(record, std::move(failure));
  }
  int64_t wait_seconds = std::min(job.backoff_seconds, limits::kMaxBackoffSeconds);
  for (int i = 1; i < job.failed_attempts && wait_seconds < limits::kMaxBackoffSeconds; ++i) wait_seconds *= 2;
  wait_seconds = std::min(wait_seconds, limits::kMaxBackoffSeconds);
  job.not_before_wall_micros = clock_->WallMicros() + wait_seconds * 1'000'000;
  if (job.state == JobState::kValidating) {
    job.reason = Reason::kBackoff;
    job.reason_detail = "its dataset is checked again in " + FormatDuration(static_cast<double>(wait_seconds));
    command_undo_.dirty.insert(job.id);
    return absl::OkStatus();
  }
  return SetState(record, JobState::kRecovering, failure.reason, failure.message);
}

// A job that fails wherever it runs takes no device from the others: it alone never has enough faults.
void DispatcherCore::NoteDeviceFault(const Job& job) {
  if (job.attempt.device_id.empty() || !workers_.contains(job.attempt.worker_id)) return;
  const int64_t now = clock_->BootNanos();
  DeviceFaults& faults = TouchWorker(job.attempt.worker_id).faults[job.attempt.device_id];
  auto& counted = faults.counted;
  std::erase_if(counted, [&](const auto& at) { return at.first <= now - limits::kDeviceFaultWindowMs * kNanosPerMs; });
  const auto of_job = [&](const auto& at) { return at.second == job.id; };
  if (std::count_if(counted.begin(), counted.end(), of_job) >= limits::kDeviceFaultsOfAJob) {
    counted.erase(std::find_if(counted.begin(), counted.end(), of_job));
  }
  counted.emplace_back(now, job.id);
  if (static_cast<int>(counted.size()) >= limits::kDeviceFaultsToRest) {
    faults.rest_until_boot_nanos = now + limits::kDeviceRestMs * kNanosPerMs;
  }
}

// Fences the open attempt by a new epoch: whatever it still writes is refused. `counts`: against the retry limit.
absl::Status DispatcherCore::LoseAttempt(JobRecord& record, const std::string& message, bool counts) {
  Job& job = record.job;
  ++job.lease_epoch;
  command_undo_.dirty.insert(job.id);
  if (Hold* hold = FindHold(job); hold != nullptr) hold->fenced = true;
  if (job.last_checkpoint.has_value() || job.attempt.kind == AttemptKind::kTrain) {
    if (const Hold* hold = FindHold(job); hold != nullptr && hold->last_step > hold->checkpoint_step) {
      const Demand* demand = nullptr;
      if (record.demands != nullptr && job.attempt.plan_point != PlanPoint::kNone) {
        const auto demands = record.demands->find(job.attempt.device_class);
        if (demands != record.demands->end()) demand = &At(demands->second, job.attempt.plan_point);
      }
      const double seconds =
          static_cast<double>(hold->last_step - hold->checkpoint_step) * (demand == nullptr ? 0 : demand->step_seconds);
      OnCommit([this, seconds] { stats_.lost_step_seconds_total += seconds; });
    }
  }
  effects_.push_back(LogCompleteEffect{job.id, job.attempt.number});
  if (counts) {
    Failure failure;
    failure.reason = Reason::kWorkerLost;
    failure.message = message;
    return FailAttempt(record, AttemptOutcome::kLost, std::move(failure));
  }
  return LostUncounted(record, message);
}

// By no fault of the job or of its worker, which therefore has no reason against its name and may have it again.
absl::Status DispatcherCore::LostUncounted(JobRecord& record, const std::string& message) {
  Job& job = record.job;
  LH_RETURN_IF_ERROR(CloseAttempt(record, AttemptOutcome::kLost, Reason::kNone, message));
  if (job.state == JobState::kCancelling) {
    return SetState(record, JobState::kCancelled, Reason::kNone, "cancelled by the user");
  }
  if (job.state == JobState::kValidating || IsTerminal(job.state)) return absl::OkStatus();
  return SetState(record, JobState::kRecovering, Reason::kWorkerLost, message);
}

// The old epoch is fenced by a commit. The checkpoint to continue from is verified, an earlier one taken where its
// bytes are gone, and the job waits again.
absl::Status DispatcherCore::FinishRecovery(JobRecord& record) {
  Job& job = record.job;
  if (job.state != JobState::kRecovering) return absl::OkStatus();
  LH_RETURN_IF_ERROR(VerifyCheckpoint(record));
  const std::string from = job.last_checkpoint.has_value()
                               ? "continues from step " + std::to_string(job.last_checkpoint->step)
                               : std::string("starts again");
  if (job.pause_cause == PauseCause::kUser) {
    return SetState(record, JobState::kPaused, Reason::kPausedByUser, "paused by the user; then it " + from);
  }
  const int64_t now = clock_->WallMicros();
  const bool waits = scheduling::BackoffEnd(job.not_before_wall_micros, now) > now;
  return SetState(record, JobState::kQueued, waits ? Reason::kBackoff : Reason::kNone, from);
}

}  // namespace longhaul::server
