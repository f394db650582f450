// Users' commands on jobs, and the one way in which a job changes its state.
#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/transitions.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

constexpr int64_t kDayMicros = int64_t{24} * 3600 * 1'000'000;

absl::Status CheckCreate(const CreateInput& input) {
  const Job& job = input.job;
  if (job.project.empty()) return InvalidField("project", "is empty");
  if (job.model.empty()) return InvalidField("spec.model", "is empty");
  if (job.inputs.empty()) return InvalidField("spec.dataset", "is absent");
  if (job.retry_limit < 0) return InvalidField("spec.retry.limit", "is negative");
  if (job.backoff_seconds < 0) return InvalidField("spec.retry.backoff_seconds", "is negative");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Job> DispatcherCore::FindJob(const std::string& id) {
  const auto found = jobs_.find(id);
  if (found != jobs_.end()) return found->second.job;
  // The store has it until the commit, as it was before the batch: perhaps running.
  if (batch_deleted_.contains(id)) {
    return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "there is no job " + id);
  }
  return store_->GetJob(id);
}

absl::StatusOr<std::optional<Job>> DispatcherCore::FindByRequest(const CreateInput& input) {
  std::optional<RequestKey> key;
  for (const RequestKey& candidate : batch_keys_) {
    if (candidate.project == input.job.project && candidate.request_id == input.job.request_id) key = candidate;
  }
  if (!key.has_value()) {
    LH_ASSIGN_OR_RETURN(key, store_->GetRequestKey(input.job.project, input.job.request_id));
    const int64_t oldest = clock_->WallMicros() - limits::kRequestIdTtlDays * kDayMicros;
    if (key.has_value() && key->create_wall_micros < oldest) key.reset();
  }
  if (!key.has_value()) return std::optional<Job>();
  if (key->body_sha256 != input.body_sha256) {
    return MakeError(absl::StatusCode::kAlreadyExists, "REQUEST_ID_REUSED",
                     "request_id \"" + input.job.request_id + "\" was used for another request, which made job " +
                         key->job_id + ": send a new request_id");
  }
  absl::StatusOr<Job> job = FindJob(key->job_id);
  if (absl::IsNotFound(job.status())) return DeletedSince(input.job.request_id, key->job_id);
  LH_RETURN_IF_ERROR(job.status());
  return std::optional<Job>(*std::move(job));
}

absl::StatusOr<Job> DispatcherCore::Create(CreateInput input) {
  return Command([&]() -> absl::StatusOr<Job> {
    LH_RETURN_IF_ERROR(CheckCreate(input));
    if (!input.job.request_id.empty()) {
      LH_ASSIGN_OR_RETURN(std::optional<Job> existing, FindByRequest(input));
      if (existing.has_value()) return *std::move(existing);
    }
    const auto active = project_jobs_.find(input.job.project);
    if (active != project_jobs_.end() && active->second >= limits::kMaxActiveJobsPerProject) {
      return MakeError(absl::StatusCode::kResourceExhausted, "TOO_MANY_JOBS",
                       "project " + input.job.project + " has " + std::to_string(active->second) +
                           " active jobs, the most that it may have: wait, or cancel some");
    }
    const int64_t now = clock_->WallMicros();
    // Asked again here, on the thread that also collects garbage: from now on the job keeps its inputs.
    for (const BlobRef& blob : input.job.inputs) {
      LH_ASSIGN_OR_RETURN(const bool present, BlobStays(blob));
      if (!present) {
        return MakeError(absl::StatusCode::kFailedPrecondition, "DATASET_NOT_UPLOADED",
                         "dataset " + blob.sha256 + " is not in the blob store: upload it first");
      }
      LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutBlob(blob, now); }));
    }
    const std::string id = "ftjob-" + MakeId();
    JobRecord& record = TouchJob(id);
    Job& job = record.job;
    job = std::move(input.job);
    job.id = id;
    job.create_number = next_create_number_++;
    job.create_wall_micros = now;
    job.state = JobState::kValidating;
    job.reason = Reason::kWaitingForValidation;
    job.reason_detail = "waits for a worker to check its dataset";
    record.state_since_boot_nanos = clock_->BootNanos();
    // The row is written with its first event counted, so that the commit need not write it once more.
    job.sequence = 1;
    LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutJob(job); }));
    job.sequence = 0;
    LH_RETURN_IF_ERROR(
        AddEvent(record, EventType::kState, JobState::kValidating, job.reason, "created; " + job.reason_detail, 0));
    command_undo_.dirty.erase(id);
    if (!job.request_id.empty()) {
      const RequestKey key{job.project, job.request_id, input.body_sha256, id, now};
      LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutRequestKey(key); }));
      batch_keys_.push_back(key);
    }
    schedule_wanted_ = true;
    OnCommit([this, project = job.project] {
      ++project_jobs_[project];
      ++stats_.created_total;
    });
    return job;
  });
}

absl::Status DispatcherCore::AddEvent(JobRecord& record, EventType type, JobState from, Reason reason,
                                      const std::string& message, int64_t step) {
  Job& job = record.job;
  JobEvent event;
  event.sequence = ++job.sequence;
  event.wall_micros = clock_->WallMicros();
  event.type = type;
  event.from_state = from;
  event.state = job.state;
  event.reason = reason;
  event.message = message;
  event.attempt = job.attempt.number;
  event.step = step;
  command_undo_.dirty.insert(job.id);
  LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.AddEvent(job.id, event); }));
  effects_.push_back(EventEffect{job, std::move(event)});
  return absl::OkStatus();
}

absl::Status DispatcherCore::SetState(JobRecord& record, JobState to, Reason reason, const std::string& detail) {
  Job& job = record.job;
  const JobState from = job.state;
  LH_CHECK(TransitionLegal(from, to), std::string(Name(from)) + " -> " + Name(to));
  const double seconds = static_cast<double>(clock_->BootNanos() - record.state_since_boot_nanos) / 1e9;
  record.state_since_boot_nanos = clock_->BootNanos();
  job.state = to;
  job.reason = reason;
  job.reason_detail = detail;
  if (to != JobState::kPausing && to != JobState::kPaused && to != JobState::kRecovering) {
    job.pause_cause = PauseCause::kNone;
  }
  schedule_wanted_ = true;
  if (from == JobState::kQueued && to == JobState::kStarting) {
    OnCommit([this, seconds] { stats_.queue_wait_seconds.Add(seconds); });
  }
  if (from == JobState::kStarting && to == JobState::kRunning) {
    if (job.start_wall_micros == 0) job.start_wall_micros = clock_->WallMicros();
    OnCommit([this, seconds] { stats_.start_latency_seconds.Add(seconds); });
  }
  if (to == JobState::kRecovering) {
    OnCommit([this, id = job.id, reason] {
      recovering_.insert(id);
      ++stats_.recoveries_total[reason];
    });
  }
  if (IsTerminal(to)) {
    LH_RETURN_IF_ERROR(FlushMetrics(record));
    LH_RETURN_IF_ERROR(
        Write([&](StoreTransaction& tx) { return tx.ThinMetrics(job.id, limits::kMaxMetricsPointsTerminal); }));
    job.end_wall_micros = clock_->WallMicros();
    job.not_before_wall_micros = 0;
    const double run_seconds = static_cast<double>(job.end_wall_micros - job.create_wall_micros) / 1e6;
    OnCommit([this, project = job.project, to, reason, run_seconds] {
      const auto active = project_jobs_.find(project);
      if (--active->second == 0) project_jobs_.erase(active);
      ++stats_.finished_total[{to, reason}];
      stats_.run_seconds.Add(run_seconds);
    });
  }
  return AddEvent(record, EventType::kState, from, reason, detail, 0);
}

absl::Status DispatcherCore::FailJob(JobRecord& record, Failure failure) {
  record.job.failure = failure;
  return SetState(record, JobState::kFailed, failure.reason, failure.message);
}

absl::Status DispatcherCore::FlushMetrics(JobRecord& record) {
  if (record.pending_metrics.empty()) return absl::OkStatus();
  LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutMetrics(record.job.id, record.pending_metrics); }));
  record.pending_metrics.clear();
  command_undo_.dirty.insert(record.job.id);  // its progress
  return absl::OkStatus();
}

void DispatcherCore::DropIfDone(const std::string& id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || !IsTerminal(found->second.job.state)) return;
  const Attempt& attempt = found->second.job.attempt;
  const auto worker = workers_.find(attempt.worker_id);
  if (worker != workers_.end()) {
    const auto hold = worker->second.holds.find({id, attempt.number});
    if (hold != worker->second.holds.end() && !hold->second.fenced) return;
  }
  metric_jobs_.erase(id);
  recovering_.erase(id);
  changed_jobs_.insert(id);
  jobs_.erase(found);
}

absl::StatusOr<Job> DispatcherCore::Cancel(const std::string& id) {
  return Command([&]() -> absl::StatusOr<Job> {
    LH_ASSIGN_OR_RETURN(const Job seen, FindJob(id));
    const RequestRule rule = CancelRule(seen.state);
    if (rule.kind == RequestRule::Kind::kInForce) return seen;
    if (rule.kind != RequestRule::Kind::kMove) return RefusedRequest("cancel", seen.state);
    JobRecord& record = TouchJob(id);
    // The terminal event is a job's last one: its attempt ends before it.
    if (IsTerminal(rule.to)) LH_RETURN_IF_ERROR(ReleaseAttempt(record, "cancelled by the user"));
    LH_RETURN_IF_ERROR(SetState(record, rule.to, Reason::kNone, "cancelled by the user"));
    if (HasOpenAttempt(record.job)) LH_RETURN_IF_ERROR(RequestStop(record, StopMode::kCancel));
    return record.job;
  });
}

absl::StatusOr<Job> DispatcherCore::Pause(const std::string& id) {
  return Command([&]() -> absl::StatusOr<Job> {
    LH_ASSIGN_OR_RETURN(const Job seen, FindJob(id));
    const RequestRule rule = PauseRule(seen.state, seen.pause_cause);
    if (rule.kind == RequestRule::Kind::kInForce) return seen;
    if (rule.kind == RequestRule::Kind::kRefused) return RefusedRequest("pause", seen.state);
    JobRecord& record = TouchJob(id);
    record.job.pause_cause = PauseCause::kUser;
    if (rule.kind == RequestRule::Kind::kSetCause) {
      record.job.reason = Reason::kPausedByUser;
      record.job.reason_detail = "paused by the user while it was being moved";
      LH_RETURN_IF_ERROR(
          AddEvent(record, EventType::kState, record.job.state, Reason::kPausedByUser, record.job.reason_detail, 0));
      return record.job;
    }
    LH_RETURN_IF_ERROR(SetState(record, rule.to, Reason::kPausedByUser, "paused by the user"));
    if (rule.to == JobState::kPausing) LH_RETURN_IF_ERROR(RequestStop(record, StopMode::kCheckpoint));
    return record.job;
  });
}

absl::StatusOr<Job> DispatcherCore::Resume(const std::string& id) {
  return Command([&]() -> absl::StatusOr<Job> {
    LH_ASSIGN_OR_RETURN(const Job seen, FindJob(id));
    const RequestRule rule = ResumeRule(seen.state, seen.pause_cause);
    if (rule.kind == RequestRule::Kind::kInForce) return seen;
    if (rule.kind == RequestRule::Kind::kRefused) return RefusedRequest("resume", seen.state);
    JobRecord& record = TouchJob(id);
    if (rule.kind == RequestRule::Kind::kSetCause) {
      record.job.pause_cause = PauseCause::kPreempt;  // a checkpoint or a recovery is under way: queued right after it
      record.job.reason = Reason::kNone;
      record.job.reason_detail = "resumed by the user before it was paused";
      LH_RETURN_IF_ERROR(
          AddEvent(record, EventType::kState, record.job.state, Reason::kNone, record.job.reason_detail, 0));
      return record.job;
    }
    LH_RETURN_IF_ERROR(VerifyCheckpoint(record));
    LH_RETURN_IF_ERROR(SetState(record, rule.to, Reason::kNone, "resumed by the user"));
    return record.job;
  });
}

absl::Status DispatcherCore::Delete(const std::string& id) {
  return Command([&]() -> absl::Status {
    LH_ASSIGN_OR_RETURN(const Job seen, FindJob(id));
    if (!IsTerminal(seen.state)) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "ILLEGAL_TRANSITION",
                       "cannot delete a job that is " + std::string(Name(seen.state)) + ": cancel it first");
    }
    if (jobs_.contains(id)) {
      JobRecord& record = TouchJob(id);
      if (Hold* hold = FindHold(record.job); hold != nullptr) hold->fenced = true;
      command_undo_.dirty.erase(id);
      jobs_.erase(id);
    }
    LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.DeleteJob(id, DroppedGraceMicros()); }));
    batch_deleted_.insert(id);
    effects_.push_back(DeletedEffect{id});
    return absl::OkStatus();
  });
}

}  // namespace longhaul::server
