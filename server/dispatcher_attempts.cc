// The life of an attempt: placed, stopped, failed, lost, recovered; and the fenced references it commits.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "server/core/transitions.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

absl::Status Fenced(const AttemptKey& key, const std::string& why) {
  return MakeError(absl::StatusCode::kAborted, "LEASE_FENCED",
                   "attempt " + std::to_string(key.attempt) + " of " + key.job_id + " under epoch " +
                       std::to_string(key.lease_epoch) + " " + why);
}

std::string Place(const Attempt& attempt) {
  return "worker " + attempt.worker_id + (attempt.device_id.empty() ? "" : " (" + attempt.device_id + ")");
}

bool SameFiles(const std::vector<NamedBlob>& a, const std::vector<NamedBlob>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const NamedBlob& x, const NamedBlob& y) {
    return x.path == y.path && x.blob.sha256 == y.blob.sha256 && x.blob.size_bytes == y.blob.size_bytes;
  });
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
  worker.holds.erase(key);
  worker.gone[key] = worker.sync_number;
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
  LH_RETURN_IF_ERROR(CloseAttempt(record, AttemptOutcome::kLost, Reason::kWorkerLost, message));
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

absl::Status DispatcherCore::VerifyCheckpoint(JobRecord& record) {
  Job& job = record.job;
  if (!job.last_checkpoint.has_value()) return absl::OkStatus();
  // The store does not list yet what this batch has committed: the last one may be of it.
  LH_ASSIGN_OR_RETURN(const bool last_is_whole, FilesStay(job.last_checkpoint->files));
  if (last_is_whole) return absl::OkStatus();
  LH_ASSIGN_OR_RETURN(const std::vector<Checkpoint> checkpoints, store_->ListCheckpoints(job.id));
  std::optional<Checkpoint> whole;
  for (auto it = checkpoints.rbegin(); it != checkpoints.rend() && !whole.has_value(); ++it) {
    if (it->step >= job.last_checkpoint->step) continue;
    LH_ASSIGN_OR_RETURN(const bool stay, FilesStay(it->files));
    if (stay) whole = *it;
  }
  LH_RETURN_IF_ERROR(AddEvent(
      record, EventType::kWarning, job.state, Reason::kInternal,
      "checkpoint of step " + std::to_string(job.last_checkpoint->step) + " is not whole in the blob store any more",
      job.last_checkpoint->step));
  job.last_checkpoint = std::move(whole);
  return absl::OkStatus();
}

absl::StatusOr<std::string> DispatcherCore::CheckedFence(const std::string& session_id, const AttemptKey& key,
                                                         bool open_only) {
  const auto session = sessions_.find(session_id);
  if (session == sessions_.end()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED",
                     "the session is not open any more: open a new one");
  }
  absl::StatusOr<Job> job = FindJob(key.job_id);
  const auto fenced = [&](const std::string& why) -> absl::Status {
    ++stats_.fenced_writes_total;
    return Fenced(key, why);
  };
  if (absl::IsNotFound(job.status())) return fenced("is of a job that is not there any more");
  LH_RETURN_IF_ERROR(job.status());
  const Attempt& attempt = job->attempt;
  if (key.attempt != attempt.number || key.lease_epoch != attempt.lease_epoch || key.lease_epoch != job->lease_epoch) {
    return fenced("is stale: the job is at attempt " + std::to_string(attempt.number) + ", epoch " +
                  std::to_string(job->lease_epoch));
  }
  if (attempt.worker_id != session->second) return fenced("belongs to another worker");
  if (open_only && !HasOpenAttempt(*job)) return fenced("has ended");
  return session->second;
}

absl::Status DispatcherCore::CheckFence(const std::string& session_id, const AttemptKey& key) {
  return CheckedFence(session_id, key, false).status();
}

absl::Status DispatcherCore::CheckManifest(const std::vector<NamedBlob>& files, const char* field) {
  const std::string name = field;
  if (files.empty() || static_cast<int>(files.size()) > limits::kMaxManifestFiles) {
    return InvalidField(name, "lists " + std::to_string(files.size()) + " files; must be 1 to " +
                                  std::to_string(limits::kMaxManifestFiles));
  }
  std::set<std::string> paths;
  for (const NamedBlob& file : files) {
    const bool plain = !file.path.empty() && static_cast<int>(file.path.size()) <= limits::kMaxArtifactNameBytes &&
                       file.path != "." && file.path != ".." &&
                       std::all_of(file.path.begin(), file.path.end(),
                                   [](unsigned char c) { return c > 0x20 && c < 0x7f && c != '/' && c != '\\'; });
    if (!plain) return InvalidField(name + ".path", "\"" + file.path + "\" is not a plain file name");
    if (!paths.insert(file.path).second) return InvalidField(name + ".path", "\"" + file.path + "\" comes twice");
    if (!IsSha256Hex(file.blob.sha256)) return InvalidField(name + ".sha256", "of \"" + file.path + "\" is not one");
  }
  for (const NamedBlob& file : files) {
    LH_ASSIGN_OR_RETURN(const bool present, BlobStays(file.blob));
    if (present) continue;
    return MakeError(absl::StatusCode::kFailedPrecondition, "BLOB_MISSING",
                     "\"" + file.path + "\" (" + file.blob.sha256 + ", " + std::to_string(file.blob.size_bytes) +
                         " bytes) is not in the blob store: upload it first");
  }
  return absl::OkStatus();
}

absl::Status DispatcherCore::CommitCheckpoint(const std::string& session_id, const AttemptKey& key,
                                              Checkpoint checkpoint) {
  return Command([&]() -> absl::Status {
    LH_RETURN_IF_ERROR(CheckedFence(session_id, key, true).status());
    JobRecord& record = TouchJob(key.job_id);
    Job& job = record.job;
    const std::optional<Checkpoint>& last = job.last_checkpoint;
    if (last.has_value() && last->step == checkpoint.step && last->attempt == key.attempt &&
        SameFiles(last->files, checkpoint.files)) {
      return absl::OkStatus();  // asked again: the first answer was lost
    }
    if (job.attempt.kind != AttemptKind::kTrain || checkpoint.step < 1) {
      return InvalidField("checkpoint.step", "is " + std::to_string(checkpoint.step) + "; must be 1 or more");
    }
    // An earlier one of this attempt: a repetition that was long on its way. The later one counts.
    if (last.has_value() && last->attempt == key.attempt && checkpoint.step < last->step) return absl::OkStatus();
    LH_RETURN_IF_ERROR(CheckManifest(checkpoint.files, "checkpoint.files"));
    checkpoint.attempt = key.attempt;
    checkpoint.commit_wall_micros = clock_->WallMicros();
    // An earlier attempt's of the same step has its files to give back.
    LH_RETURN_IF_ERROR(Write(
        [&](StoreTransaction& tx) { return tx.DeleteCheckpoint(job.id, checkpoint.step, DroppedGraceMicros()); }));
    LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutCheckpoint(job.id, checkpoint); }));
    std::erase_if(record.checkpoints, [&](const auto& kept) { return kept.first == checkpoint.step; });
    record.checkpoints.emplace_back(checkpoint.step, checkpoint.eval_loss);
    std::sort(record.checkpoints.begin(), record.checkpoints.end());
    job.last_checkpoint = checkpoint;
    job.pinned_device_class = job.attempt.device_class;
    job.pinned_point = job.attempt.plan_point;
    LH_RETURN_IF_ERROR(KeepCheckpoints(record));
    if (Hold* hold = FindHold(job); hold != nullptr) {
      const double seconds = static_cast<double>(clock_->BootNanos() - hold->checkpoint_boot_nanos) / 1e9;
      hold->checkpoint_step = checkpoint.step;
      hold->checkpoint_boot_nanos = clock_->BootNanos();
      OnCommit([this, seconds] {
        ++stats_.checkpoints_total;
        stats_.checkpoint_interval_seconds.Add(seconds);
      });
    }
    return AddEvent(
        record, EventType::kCheckpoint, job.state, Reason::kNone,
        "checkpoint of step " + std::to_string(checkpoint.step) + (checkpoint.final ? ", the final one" : ""),
        checkpoint.step);
  });
}

// The newest limits::kCheckpointsKept and the one with the least eval_loss.
absl::Status DispatcherCore::KeepCheckpoints(JobRecord& record) {
  auto& all = record.checkpoints;
  int64_t best_step = -1;
  std::optional<double> best;
  for (const auto& [step, eval_loss] : all) {
    if (eval_loss.has_value() && std::isfinite(*eval_loss) && (!best.has_value() || *eval_loss < *best)) {
      best = eval_loss;
      best_step = step;
    }
  }
  const int64_t last_step = record.job.last_checkpoint->step;
  std::vector<int64_t> dropped;
  int newer = 0;
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    if (++newer > limits::kCheckpointsKept && it->first != best_step && it->first != last_step) {
      dropped.push_back(it->first);
    }
  }
  for (const int64_t step : dropped) {
    LH_RETURN_IF_ERROR(
        Write([&](StoreTransaction& tx) { return tx.DeleteCheckpoint(record.job.id, step, DroppedGraceMicros()); }));
    std::erase_if(all, [step](const auto& kept) { return kept.first == step; });
  }
  return absl::OkStatus();
}

absl::Status DispatcherCore::CommitArtifact(const std::string& session_id, const AttemptKey& key,
                                            std::vector<NamedBlob> files, std::string result) {
  return Command([&]() -> absl::Status {
    LH_RETURN_IF_ERROR(CheckedFence(session_id, key, false).status());
    LH_ASSIGN_OR_RETURN(const Job seen, FindJob(key.job_id));
    if (seen.state == JobState::kSucceeded && SameFiles(seen.artifact, files)) return absl::OkStatus();
    if (!HasOpenAttempt(seen)) {
      ++stats_.fenced_writes_total;
      return Fenced(key, "has ended");
    }
    if (seen.attempt.kind != AttemptKind::kTrain) return InvalidField("key", "names a validation attempt");
    LH_RETURN_IF_ERROR(CheckManifest(files, "artifact.files"));
    JobRecord& record = TouchJob(key.job_id);
    Job& job = record.job;
    if (job.state == JobState::kStarting) {
      LH_RETURN_IF_ERROR(SetState(record, JobState::kRunning, Reason::kNone, "training"));
    }
    if (job.state == JobState::kRunning || job.state == JobState::kPausing) {
      LH_RETURN_IF_ERROR(SetState(record, JobState::kFinalizing, Reason::kNone, "stores its adapter"));
    }
    job.artifact = std::move(files);
    job.result = std::move(result);
    job.artifact_wall_micros = clock_->WallMicros();
    // The job refers to them from its row's writing on, at the batch's end: a collection before that must not take
    // them.
    for (const NamedBlob& file : job.artifact) {
      LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutBlob(file.blob, job.artifact_wall_micros); }));
    }
    LH_RETURN_IF_ERROR(CloseAttempt(record, AttemptOutcome::kSucceeded, Reason::kNone, ""));
    return SetState(record, JobState::kSucceeded, Reason::kNone, "its adapter is stored");
  });
}

}  // namespace longhaul::server
