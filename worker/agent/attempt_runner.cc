#include "worker/agent/attempt_runner.h"

#include <algorithm>
#include <csignal>
#include <limits>
#include <utility>

#include "base/env.h"
#include "base/errno_status.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/process.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "model/memory_plan.h"
#include "worker/agent/attempt_tasks.h"
#include "worker/agent/transfers.h"
#include "worker/attempt/utf8.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
// A lease is written again once it is extended by this much: Syncs may come twenty milliseconds apart.
constexpr int64_t kLeaseWriteMs = 500;
// How far in events.log the agent's note may lag behind: some ten thousand steps are soon read again.
constexpr int64_t kNoteEventsBytes = int64_t{1} << 20;

// A disk that is slow, and what else it may have to write first.
constexpr int64_t kSlowDiskBytesPerMs = 20'000;
constexpr int64_t kCheckpointFlushMs = 60'000;

// Tag and length of an element of a request.
constexpr int64_t kFieldBytes = 8;
int64_t WireBytes(const google::protobuf::MessageLite& element) {
  return static_cast<int64_t>(element.ByteSizeLong()) + kFieldBytes;
}

// What this host has run out of is named. Of all else, another attempt may end better, elsewhere.
v1::Reason FailureOf(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  if (reason == "DISK_FULL") return v1::DISK_FULL;
  return reason == "HOST_OOM" ? v1::HOST_OOM : v1::INTERNAL;
}

// No secrecy, only spread: the same attempt waits the same times in every run.
uint64_t JitterKey(const v1::AttemptKey& key) { return Crc32c(key.job_id(), static_cast<uint32_t>(key.attempt())); }

}  // namespace

AttemptRunner::AttemptRunner(AttemptEnv* env, const std::string& dir, v1::AttemptKey key)
    : env_(env), dir_(dir), key_(std::move(key)), backoff_(JitterKey(key_)), events_(dir_.EventsPath()) {}

std::shared_ptr<AttemptRunner> AttemptRunner::Start(AttemptEnv* env, const std::string& dir,
                                                    const v1::StartAttempt& start, int64_t lease_deadline_nanos) {
  std::shared_ptr<AttemptRunner> runner(new AttemptRunner(env, dir, start.key()));
  if (const absl::Status status = runner->TakeSpec(start.spec(), lease_deadline_nanos); !status.ok()) {
    runner->Fail(FailureOf(status), std::string(status.message()), false);
    return runner;
  }
  env->mailbox->WatchDir(dir);
  runner->StartFetch();
  return runner;
}

absl::StatusOr<std::shared_ptr<AttemptRunner>> AttemptRunner::Recover(AttemptEnv* env, const std::string& dir) {
  LH_ASSIGN_OR_RETURN(v1::AttemptSpec spec, attempt::AttemptDir(dir).ReadSpec());
  v1::AttemptKey key;
  key.set_job_id(spec.job_id());
  key.set_attempt(spec.attempt());
  key.set_lease_epoch(spec.lease_epoch());
  std::shared_ptr<AttemptRunner> runner(new AttemptRunner(env, dir, std::move(key)));
  runner->spec_ = std::move(spec);
  env->mailbox->WatchDir(dir);
  runner->Recovered();
  return runner;
}

std::shared_ptr<AttemptRunner> AttemptRunner::Refuse(AttemptEnv* env, const std::string& dir, const v1::AttemptKey& key,
                                                     v1::TrainerExitReason reason, const std::string& message) {
  std::shared_ptr<AttemptRunner> runner(new AttemptRunner(env, dir, key));
  runner->exit_.emplace();
  runner->exit_->set_reason(reason);
  runner->exit_->set_message(message);
  runner->has_folder_ = false;
  runner->log_complete_ = true;
  runner->stage_ = Stage::kEnded;
  env->on_news();
  return runner;
}

// With the spec on disk a restarted agent can say of which attempt the folder is, and may start its trainer: the lease
// that this one watches is there before.
absl::Status AttemptRunner::TakeSpec(const v1::AttemptSpec& spec, int64_t lease_deadline_nanos) {
  spec_ = spec;
  spec_.set_job_id(key_.job_id());
  spec_.set_attempt(key_.attempt());
  spec_.set_lease_epoch(key_.lease_epoch());
  LH_ASSIGN_OR_RETURN(const LocalModel model, env_->model(spec_.model_digest()));
  spec_.set_model_path(model.path);
  spec_.set_model_fingerprint(model.fingerprint);
  spec_.set_cache_dir(env_->cache_dir);
  LH_RETURN_IF_ERROR(dir_.Create());
  lease_deadline_nanos_ = lease_deadline_nanos;
  LH_RETURN_IF_ERROR(WriteLease(lease_deadline_nanos));
  return dir_.WriteSpec(spec_);
}

// Finds the stage again from what is on disk.
void AttemptRunner::Recovered() {
  note_ = dir_.ReadAgentNote().value_or(attempt::AgentNote());
  // A host that crashed may have lost the end of the log; then it is read from its beginning.
  if (FileSize(dir_.EventsPath()).value_or(0) < note_.events_bytes) note_.events_bytes = 0;
  events_ = attempt::EventLogReader(dir_.EventsPath(), note_.events_bytes);
  started_ = note_.started;
  held_ = note_.held;
  finalizing_ = note_.finalizing;
  step_seconds_ = static_cast<double>(note_.step_ms) / 1'000;
  host_bytes_peak_ = note_.host_bytes_peak;
  device_bytes_peak_ = note_.device_bytes_peak;
  log_offset_known_ = false;
  const auto process = dir_.ReadPid();
  // Of another boot, or of nobody knows which: the next Sync writes a new one, however near its end is.
  if (const auto lease = dir_.ReadLease(); lease.ok()) {
    // A trainer of an older build cannot read a lease that names its boot; that it is alive says that it is this one.
    lease_names_boot_ = !lease->boot_id().empty() || !process.ok() || !ProcessAlive(*process);
    if (!lease_names_boot_ || lease->boot_id() == attempt::BootId()) {
      lease_deadline_nanos_ = lease_written_nanos_ = lease->deadline_boot_nanos();
    }
  }
  if (!process.ok()) {
    env_->log(key_.job_id() + ": found before its trainer had started; starting it");
    StartFetch();
    return;
  }
  process_ = *process;
  stage_ = Stage::kTraining;
  oom_kills_before_ = env_->oom_kills();
  env_->log(key_.job_id() + ": found its trainer, process " + std::to_string(process->pid) +
            (ProcessAlive(*process) ? ", at work" : ", which has ended"));
}

void AttemptRunner::StartFetch() {
  stage_ = Stage::kFetching;
  fetching_ = true;
  RunTask<absl::Status>(
      env_->fetches,
      [client = env_->client, dir = dir_, spec = spec_, cancelled = cancelled_] {
        return FetchInputs(client, dir, spec, cancelled);
      },
      [](AttemptRunner* self, const absl::Status& status) { self->OnFetched(status); });
}

void AttemptRunner::OnFetched(const absl::Status& status) {
  fetching_ = false;
  if (stop_ == v1::STOP_MODE_FENCED) return BeGone();
  if (stop_ != v1::STOP_MODE_UNSPECIFIED) {
    exit_.emplace();
    exit_->set_reason(stop_ == v1::STOP_MODE_CANCEL ? v1::TRAINER_EXIT_CANCELLED : v1::TRAINER_EXIT_CHECKPOINTED);
    exit_->set_message("stopped before its trainer started");
    stage_ = Stage::kSettling;
    return SettleIfDone();
  }
  if (!status.ok()) {
    const v1::Reason failure = FailureOf(status);
    if (failure == v1::DISK_FULL) return Fail(failure, std::string(status.message()), false);
    // Memory that this host has not; the scheduler's has no errno here, and it may have some again in a moment.
    const bool host_oom = failure == v1::HOST_OOM && ErrnoOf(status) != 0;
    if (host_oom || !IsRetryable(status)) {
      return Fail(failure, "fetching the inputs: " + std::string(status.message()), false);
    }
    return RetryAt(&fetch_at_nanos_);
  }
  backoff_.Reset();
  if (const absl::Status spawned = SpawnTrainer(); !spawned.ok())
    Fail(FailureOf(spawned), std::string(spawned.message()), false);
}

absl::Status AttemptRunner::SpawnTrainer() {
  SpawnOptions options;
  options.argv = {env_->trainer_path, dir_.path()};
  options.working_dir = dir_.path();
  options.stdout_path = dir_.StderrPath();
  options.stderr_path = dir_.StderrPath();
  if (const int threads = PlannedThreads(); threads > 0) options.processors = env_->free_processors(threads);
  oom_kills_before_ = env_->oom_kills();
  // A crash of the host may have left the spec alone. What has run out holds the trainer until a Sync extends it.
  if (lease_written_nanos_ == 0) LH_RETURN_IF_ERROR(WriteLease(env_->clock->BootNanos()));
  LH_ASSIGN_OR_RETURN(process_, Spawn(options));
  LH_RETURN_IF_ERROR(Failpoint("agent_trainer_spawned"));
  stage_ = Stage::kTraining;
  next_look_nanos_ = 0;
  env_->log(key_.job_id() + ": attempt " + std::to_string(key_.attempt()) + " runs as process " +
            std::to_string(process_->pid));
  return absl::OkStatus();
}

// 0: without a plan (validation), or with one that the trainer will refuse.
int AttemptRunner::PlannedThreads() const {
  if (spec_.memory_plan_json().empty()) return 0;
  const absl::StatusOr<MemoryPlan> plan = MemoryPlanFromJson(spec_.memory_plan_json());
  return plan.ok() ? plan->choices.cpu_threads : 0;
}

// What a checkpoint of the plan takes on a slow disk.
int64_t AttemptRunner::LongestCheckpointMs() const {
  int64_t bytes = 0;
  if (!spec_.memory_plan_json().empty()) {
    const absl::StatusOr<MemoryPlan> plan = MemoryPlanFromJson(spec_.memory_plan_json());
    // The masters and both moments.
    if (plan.ok()) bytes = 3 * AdapterParams(plan->shape, plan->train) * plan->element_bytes();
  }
  return kCheckpointFlushMs + bytes / kSlowDiskBytesPerMs;
}

// Asked of the kernel, so that it holds for a trainer that an earlier agent has started, too.
std::vector<int> AttemptRunner::BoundProcessors() const {
  if (stage_ != Stage::kTraining || !process_.has_value() || !ProcessAlive(*process_)) return {};
  std::vector<int> processors = ProcessorsOf(process_->pid);
  if (static_cast<int>(processors.size()) != PlannedThreads()) return {};
  return processors;
}

// Ends an attempt whose trainer never ran.
void AttemptRunner::Fail(v1::Reason reason, const std::string& message, bool user_can_fix) {
  exit_.emplace();
  exit_->set_reason(v1::TRAINER_EXIT_FAILED);
  exit_->set_failure(reason);
  exit_->set_message(attempt::ToUtf8(message));
  exit_->set_user_can_fix(user_can_fix);
  stage_ = Stage::kSettling;
  SettleIfDone();
}

void AttemptRunner::Poll() {
  if (points_wait_until_nanos_ != 0) {
    ReadPointsAgain();
    if (points_wait_until_nanos_ == 0) env_->on_news();
  }
  switch (stage_) {
    case Stage::kFetching:
      if (!fetching_ && env_->clock->BootNanos() >= fetch_at_nanos_) StartFetch();
      break;
    case Stage::kTraining:
      if (!ReadEvents()) {
        // Nothing is decided by half a log, but for the deadline that it cannot change.
        next_look_nanos_ = 0;
        EnforceDeadlines();
        return;
      }
      WatchProcess();
      if (stage_ == Stage::kGone) return;
      EnforceDeadlines();
      StartUploads();
      ShipLog();
      break;
    case Stage::kSettling:
      StartUploads();
      ShipLog();
      SettleIfDone();
      break;
    case Stage::kEnded:
    case Stage::kGone:
      break;
  }
}

int64_t AttemptRunner::NextWakeNanos() const {
  int64_t next = kNever;
  if (stage_ == Stage::kFetching && !fetching_) next = fetch_at_nanos_;
  if (stage_ == Stage::kTraining) next = next_look_nanos_;
  if (stage_ == Stage::kSettling && !env_->session_id().empty()) {
    if (!uploading_ && (!checkpoints_.empty() || ArtifactMayGo())) next = std::min(next, upload_at_nanos_);
    if (!shipping_log_ && !log_complete_) next = std::min(next, log_at_nanos_);
  }
  return next;
}

void AttemptRunner::Stop(v1::StopMode mode) {
  if (stage_ == Stage::kGone || mode == v1::STOP_MODE_UNSPECIFIED) return;
  // Fenced outranks cancel, cancel outranks checkpoint (their numbers do): a milder one later changes nothing.
  if (mode <= stop_) return;
  stop_ = mode;
  if (mode != v1::STOP_MODE_CHECKPOINT) DropUploads();
  if (mode == v1::STOP_MODE_FENCED) {
    cancelled_->store(true);
    if (stage_ == Stage::kTraining) {
      Signal(SIGKILL);
    } else if (!fetching_) {
      BeGone();
    }
    return;
  }
  if (stage_ == Stage::kFetching) {
    cancelled_->store(true);
    if (!fetching_) OnFetched(absl::OkStatus());
    return;
  }
  if (stage_ != Stage::kTraining) return;
  const double steps_ms = mode == v1::STOP_MODE_CHECKPOINT ? 3'000.0 * step_seconds_ : 0;
  kill_at_nanos_ = env_->clock->BootNanos() +
                   (limits::kTrainerKillGraceMs + static_cast<int64_t>(std::min(steps_ms, 3.6e7))) * kNanosPerMs;
  checkpoint_until_nanos_ = 0;
  if (mode == v1::STOP_MODE_CHECKPOINT) checkpoint_until_nanos_ = kill_at_nanos_ + LongestCheckpointMs() * kNanosPerMs;
  Signal(mode == v1::STOP_MODE_CANCEL ? SIGUSR1 : SIGTERM);
}

void AttemptRunner::ExtendLease(int64_t deadline_boot_nanos) {
  if (stage_ > Stage::kTraining || deadline_boot_nanos <= lease_deadline_nanos_) return;
  lease_deadline_nanos_ = deadline_boot_nanos;
  if (!held_ && lease_written_nanos_ != 0 && deadline_boot_nanos - lease_written_nanos_ < kLeaseWriteMs * kNanosPerMs)
    return;
  if (const absl::Status written = WriteLease(deadline_boot_nanos); !written.ok()) {
    env_->log(key_.job_id() + ": " + std::string(written.message()));
  }
}

absl::Status AttemptRunner::WriteLease(int64_t deadline_boot_nanos) {
  v1::LeaseFile lease;
  lease.set_lease_epoch(key_.lease_epoch());
  lease.set_deadline_boot_nanos(deadline_boot_nanos);
  if (lease_names_boot_) lease.set_boot_id(attempt::BootId());
  if (const absl::Status written = dir_.WriteLease(lease); !written.ok()) {
    return Annotate(written, "the lease is not written");
  }
  lease_written_nanos_ = deadline_boot_nanos;
  return absl::OkStatus();
}

v1::AttemptPhase AttemptRunner::LivePhase() const {
  if (held_) return v1::ATTEMPT_PHASE_HELD;
  if (finalizing_) return v1::ATTEMPT_PHASE_FINALIZING;
  return started_ ? v1::ATTEMPT_PHASE_RUNNING : v1::ATTEMPT_PHASE_STARTING;
}

v1::AttemptStatus AttemptRunner::Status(int64_t* room_bytes, ReportMark* mark) const {
  v1::AttemptStatus status;
  *status.mutable_key() = key_;
  status.set_phase(LivePhase());
  status.set_host_bytes_peak(host_bytes_peak_);
  status.set_device_bytes_peak(device_bytes_peak_);
  status.set_artifact_committed(note_.artifact_committed);
  *room_bytes -= WireBytes(status);
  const auto takes = [room_bytes](int64_t bytes) {
    if (bytes > *room_bytes) return false;
    *room_bytes -= bytes;
    return true;
  };
  const size_t most_points = std::min<size_t>(progress_.size(), limits::kMaxProgressPerSync);
  size_t points = 0;
  for (; points < most_points && takes(WireBytes(progress_[points].value)); ++points) {
    *status.add_progress() = progress_[points].value;
  }
  const size_t most_lines = std::min<size_t>(warnings_.size(), limits::kMaxWarningsPerSync);
  size_t lines = 0;
  for (; lines < most_lines && takes(static_cast<int64_t>(warnings_[lines].value.size()) + kFieldBytes); ++lines) {
    status.add_warnings(warnings_[lines].value);
  }
  mark->progress = progress_begin_ + static_cast<int64_t>(points);
  mark->warnings = warnings_begin_ + static_cast<int64_t>(lines);
  mark->whole = points == progress_.size() && points_from_ < 0 && lines == warnings_.size();
  // The rest in one piece: what the data are like decides on the end of a validation.
  v1::AttemptStatus rest;
  if (data_report_.has_value()) *rest.mutable_data_report() = *data_report_;
  if (stage_ == Stage::kEnded) {
    rest.set_phase(v1::ATTEMPT_PHASE_ENDED);
    *rest.mutable_exit() = *exit_;
    if (artifact_.has_value()) *rest.mutable_result() = artifact_->result();
    if (has_folder_) rest.set_log_tail(attempt::StderrTail(dir_, limits::kFailureLogTailBytes));
  }
  mark->whole = mark->whole && takes(WireBytes(rest));
  if (mark->whole) status.MergeFrom(rest);
  return status;
}

void AttemptRunner::Acknowledge(const ReportMark& mark) {
  const int64_t points =
      std::clamp<int64_t>(mark.progress - progress_begin_, 0, static_cast<int64_t>(progress_.size()));
  progress_.erase(progress_.begin(), progress_.begin() + points);
  progress_begin_ += points;
  const int64_t lines = std::clamp<int64_t>(mark.warnings - warnings_begin_, 0, static_cast<int64_t>(warnings_.size()));
  warnings_.erase(warnings_.begin(), warnings_.begin() + lines);
  warnings_begin_ += lines;
  ReadPointsAgain();
  if (has_folder_ && FirstUntold() - note_.events_bytes >= kNoteEventsBytes) WriteNote();
  const bool more = !mark.whole || !progress_.empty() || !warnings_.empty();  // than one Sync may carry
  if (more && points_wait_until_nanos_ == 0) env_->on_news();
}

void AttemptRunner::AcknowledgeEnd() {
  if (stage_ == Stage::kEnded) BeGone();
}

void AttemptRunner::BeGone() {
  stage_ = Stage::kGone;
  cancelled_->store(true);
  env_->on_news();  // that it is no longer listed: its memory is free
  if (!has_folder_) return;
  if (const absl::Status removed = dir_.Remove(); !removed.ok()) {
    env_->log(key_.job_id() + ": its folder stays: " + std::string(removed.message()));
  }
}

void AttemptRunner::RetryAt(int64_t* at_nanos) {
  *at_nanos = env_->clock->BootNanos() + backoff_.NextMs() * kNanosPerMs;
}

}  // namespace longhaul::agent
