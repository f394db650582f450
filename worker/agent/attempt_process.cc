// AttemptRunner's view of the trainer: its events and its process.
#include <signal.h>

#include <algorithm>
#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/limits.h"
#include "base/units.h"
#include "worker/agent/attempt_runner.h"
#include "worker/attempt/exit_codes.h"
#include "worker/attempt/utf8.h"

namespace longhaul::agent {
namespace {

// A live process is looked at this often: its end without an Exit event wakes nobody.
constexpr int64_t kLookMs = 100;
// Who holds the folder's lock writes its pid right after it has it: this is plenty, also on a loaded machine.
constexpr int64_t kHolderPidMs = 5'000;
// A disk that fails, or a file system that is away, may come back: so long is waited for events that cannot be read and
// that nothing else tells, before the attempt ends without them.
constexpr int64_t kEventsWaitMs = 30'000;
// Of limits::kMaxEventsPerRead events each: some milliseconds.
constexpr int kReadsPerTurn = 8;
// Ten Syncs' worth, some megabytes.
constexpr size_t kMostPointsWaiting = size_t{10} * limits::kMaxProgressPerSync;

}  // namespace

// True where all that is there has been read, or nothing can be. A long log takes several turns: other attempts and the
// session, by which all of them live, do not wait for it.
bool AttemptRunner::ReadEvents() {
  for (int read = 0; read < kReadsPerTurn; ++read) {
    int64_t begin = events_.offset();
    std::vector<int64_t> ends;
    const auto events = events_.ReadNew(&ends);
    if (!events.ok() && events_error_.ok()) {
      env_->log(key_.job_id() + ": its events cannot be read: " + std::string(events.status().message()));
    }
    events_error_ = events.status();
    if (!events.ok() || events->empty()) return true;
    for (size_t i = 0; i < events->size(); ++i) {
      Apply((*events)[i], begin);
      begin = ends[i];
    }
    env_->on_news();
  }
  return false;
}

// Where the scheduler is away, or the agent comes back to a log that nobody has told of, there may be any number.
void AttemptRunner::ApplyProgress(v1::TrainingProgress point, int64_t begin) {
  host_bytes_peak_ = std::max(host_bytes_peak_, point.host_bytes_used());
  device_bytes_peak_ = std::max(device_bytes_peak_, point.device_bytes_used());
  step_seconds_ = point.step_seconds();
  if (points_from_ < 0 && progress_.size() >= kMostPointsWaiting) points_from_ = begin;
  if (points_from_ >= 0) return;
  point.set_attempt(key_.attempt());
  progress_.push_back({std::move(point), begin});
}

void AttemptRunner::ReadPointsAgain() {
  if (points_from_ < 0 || progress_.size() > kMostPointsWaiting / 2) return;
  attempt::EventLogReader again(dir_.EventsPath(), points_from_);
  while (points_from_ >= 0 && progress_.size() < kMostPointsWaiting) {
    std::vector<int64_t> ends;
    auto events = again.ReadNew(&ends);
    if (!events.ok() || events->empty()) return OnPointsUnreadable(events.status());
    points_wait_until_nanos_ = 0;
    for (size_t i = 0; i < events->size() && points_from_ < events_.offset(); ++i) {
      v1::TrainerEvent& event = (*events)[i];
      if (event.has_progress()) {
        event.mutable_progress()->set_attempt(key_.attempt());
        progress_.push_back({std::move(*event.mutable_progress()), points_from_});
      }
      points_from_ = ends[i];
    }
    if (points_from_ >= events_.offset()) points_from_ = -1;
  }
}

// They are there: each has been read once. Every Poll tries them again, for a while.
void AttemptRunner::OnPointsUnreadable(const absl::Status& why) {
  const int64_t now = env_->clock->BootNanos();
  if (points_wait_until_nanos_ == 0) points_wait_until_nanos_ = now + kEventsWaitMs * kNanosPerMs;
  if (now < points_wait_until_nanos_) return;
  env_->log(key_.job_id() + ": a part of its progress cannot be read again and is not told: " +
            (why.ok() ? dir_.EventsPath() + " ends before it" : std::string(why.message())));
  points_from_ = -1;
  points_wait_until_nanos_ = 0;
}

// Where the first event begins that a restarted agent has to read again.
int64_t AttemptRunner::FirstUntold() const {
  int64_t first = events_.offset();
  const auto needs = [&first](int64_t begin) {
    if (begin >= 0) first = std::min(first, begin);
  };
  needs(progress_.empty() ? points_from_ : progress_.front().begin);
  needs(whole_from_);
  for (const Logged<std::string>& warning : warnings_) needs(warning.begin);
  for (const Logged<v1::CheckpointWritten>& checkpoint : checkpoints_) needs(checkpoint.begin);
  return first;
}

void AttemptRunner::Apply(const v1::TrainerEvent& event, int64_t begin) {
  const bool told_whole = event.has_data_report() || event.has_artifact() || event.has_exit();
  if (told_whole && whole_from_ < 0) whole_from_ = begin;
  switch (event.event_case()) {
    case v1::TrainerEvent::kStarted:
      started_ = true;
      device_bytes_peak_ = std::max(device_bytes_peak_, event.started().device_bytes_arena());
      break;
    case v1::TrainerEvent::kProgress:
      ApplyProgress(event.progress(), begin);
      break;
    case v1::TrainerEvent::kCheckpoint:
      finalizing_ = finalizing_ || event.checkpoint().final();
      if (event.checkpoint().step() > note_.committed_step && stop_ <= v1::STOP_MODE_CHECKPOINT) {
        checkpoints_.push_back({event.checkpoint(), begin});
        DropOvertaken();
      }
      break;
    case v1::TrainerEvent::kDataReport:
      data_report_ = event.data_report();
      break;
    case v1::TrainerEvent::kWarning:
      warnings_.push_back({event.warning().message(), begin});
      break;
    case v1::TrainerEvent::kArtifact:
      finalizing_ = true;
      if (stop_ <= v1::STOP_MODE_CHECKPOINT) artifact_ = event.artifact();
      break;
    case v1::TrainerEvent::kHold:
      held_ = event.hold().held();
      // A lease that came while it ran freely may have been thought not worth writing.
      if (held_ && lease_deadline_nanos_ > lease_written_nanos_) ExtendLease(lease_deadline_nanos_ + 1);
      break;
    case v1::TrainerEvent::kExit:
      if (!adapter_refused_) exit_ = event.exit();  // else its success is none, and why is known
      // Its process should be gone in a moment; one that hangs on its way out is helped.
      if (kill_at_nanos_ == 0) kill_at_nanos_ = env_->clock->BootNanos() + limits::kTrainerKillGraceMs * kNanosPerMs;
      break;
    case v1::TrainerEvent::EVENT_NOT_SET:
      break;  // of a newer trainer
  }
}

void AttemptRunner::WatchProcess() {
  const int64_t now = env_->clock->BootNanos();
  const bool due = now >= next_look_nanos_;
  if (!due && !exit_.has_value()) return;
  next_look_nanos_ = now + kLookMs * kNanosPerMs;
  if (gone_.has_value()) return OnProcessGone(ExitState(*gone_));
  if (seek_holder_until_nanos_ != 0) return SeekLockHolder();
  const int64_t peak = ProcessRssBytes(process_->pid, true);
  const ExitState state = ReapProcess(*process_);
  if (!state.exited) {
    host_bytes_peak_ = std::max(host_bytes_peak_, peak);
    return;
  }
  if (state.exit_code != attempt::kExitFolderLocked) return OnProcessGone(state);
  env_->log(key_.job_id() + ": another trainer holds the folder; looking for it");
  seek_holder_until_nanos_ = now + kHolderPidMs * kNanosPerMs;
  SeekLockHolder();
}

// Our trainer found another in its folder: an earlier agent had spawned it and died before it saw its pid, which the
// other may be about to write.
void AttemptRunner::SeekLockHolder() {
  const auto holder = dir_.ReadPid();
  if (!holder.ok() || !ProcessAlive(*holder)) {
    if (!exit_.has_value() && env_->clock->BootNanos() < seek_holder_until_nanos_) return;
    seek_holder_until_nanos_ = 0;
    return OnProcessGone({true, attempt::kExitFolderLocked, 0});
  }
  seek_holder_until_nanos_ = 0;
  process_ = *holder;
  if (stop_ == v1::STOP_MODE_UNSPECIFIED) return;
  const v1::StopMode mode = stop_;
  stop_ = v1::STOP_MODE_UNSPECIFIED;
  Stop(mode);
}

void AttemptRunner::OnProcessGone(const ExitState& state) {
  while (!ReadEvents()) continue;  // what it wrote last
  if (stop_ == v1::STOP_MODE_FENCED) return BeGone();
  if (!exit_.has_value() && AwaitsEvents(state)) return;
  if (!exit_.has_value()) exit_ = ExitWithoutEvent(state);
  // It was through before the cancel reached it, but nothing of it has left this machine.
  if (stop_ == v1::STOP_MODE_CANCEL && exit_->reason() == v1::TRAINER_EXIT_SUCCEEDED && !note_.artifact_committed) {
    exit_->set_reason(v1::TRAINER_EXIT_CANCELLED);
  }
  if (exit_->reason() == v1::TRAINER_EXIT_SUCCEEDED && spec_.kind() == v1::ATTEMPT_KIND_TRAIN &&
      !artifact_.has_value()) {
    exit_->set_reason(v1::TRAINER_EXIT_FAILED);
    exit_->set_failure(v1::INTERNAL);
    exit_->set_message("the trainer reported success without an adapter");
  }
  // A cancelled attempt keeps nothing, and one without a lease may commit nothing.
  if (exit_->reason() == v1::TRAINER_EXIT_CANCELLED || exit_->reason() == v1::TRAINER_EXIT_LEASE_LOST) DropUploads();
  held_ = false;
  env_->log(key_.job_id() + ": the trainer has ended" + (exit_->message().empty() ? "" : ": " + exit_->message()));
  stage_ = Stage::kSettling;
  log_at_nanos_ = 0;
  env_->on_news();
}

// While the events cannot be read, which say how the trainer has ended, it may as well have succeeded.
bool AttemptRunner::AwaitsEvents(const ExitState& state) {
  if (events_error_.ok()) return false;
  const int64_t now = env_->clock->BootNanos();
  if (!gone_.has_value()) {
    gone_ = state;
    events_wait_until_nanos_ = now + kEventsWaitMs * kNanosPerMs;
    env_->log(key_.job_id() + ": the trainer is gone; waiting for what it wrote last");
  }
  return now < events_wait_until_nanos_;
}

v1::TrainerExit AttemptRunner::ExitWithoutEvent(const ExitState& state) const {
  v1::TrainerExit exit;
  if (stop_ == v1::STOP_MODE_CANCEL && (killed_ || state.signal == SIGUSR1)) {
    exit.set_reason(v1::TRAINER_EXIT_CANCELLED);
    exit.set_message("cancelled; the trainer had to be killed");
    return exit;
  }
  // Not the job's fault: it goes on from its last committed checkpoint.
  if (stop_ == v1::STOP_MODE_CHECKPOINT && (killed_ || state.signal == SIGTERM)) {
    exit.set_reason(v1::TRAINER_EXIT_CHECKPOINTED);
    exit.set_message("stopped before the trainer came to a step's end");
    return exit;
  }
  exit.set_reason(v1::TRAINER_EXIT_CRASHED);
  exit.set_signal(state.signal);
  if (state.exit_code == attempt::kExitHostOom) {
    exit.set_reason(v1::TRAINER_EXIT_FAILED);
    exit.set_failure(v1::HOST_OOM);
    exit.set_message("the trainer found no memory on this host; it used more than its plan, which is a bug");
    return exit;
  }
  // How another agent's child ended is not known; that the kernel has killed says enough.
  const bool maybe_killed = state.signal == SIGKILL || (state.signal == 0 && state.exit_code < 0);
  if (maybe_killed && !killed_ && env_->oom_kills() > oom_kills_before_) {
    exit.set_failure(v1::HOST_OOM);
    exit.set_message("the kernel killed the trainer for lack of memory: it used more than its plan, which is a bug");
    return exit;
  }
  // This machine's fault, not the trainer's: another attempt goes on from the last checkpoint.
  if (!events_error_.ok() && state.signal == 0) {
    exit.set_reason(v1::TRAINER_EXIT_FAILED);
    exit.set_failure(v1::INTERNAL);
    exit.set_message(
        attempt::ToUtf8("the trainer has ended, and how cannot be read: " + std::string(events_error_.message())));
    return exit;
  }
  exit.set_failure(v1::TRAINER_CRASHED);
  if (state.signal != 0) {
    exit.set_message("the trainer was ended by signal " + std::to_string(state.signal) + " (" +
                     ::strsignal(state.signal) + ")");
  } else if (state.exit_code >= 0) {
    exit.set_message("the trainer ended with code " + std::to_string(state.exit_code) +
                     "; the end of its log may say why");
  } else {
    exit.set_message("the trainer is gone without saying why");
  }
  return exit;
}

void AttemptRunner::EnforceDeadlines() {
  const int64_t now = env_->clock->BootNanos();
  if (stage_ != Stage::kTraining || kill_at_nanos_ == 0 || killed_ || gone_.has_value()) return;
  // A checkpoint that is half written is what the stop is for. After it, whenever that is, the trainer has time for its
  // end.
  if (now < checkpoint_until_nanos_ && !exit_.has_value() && dir_.WritesCheckpoint()) {
    const int64_t after = std::min(now + limits::kTrainerKillGraceMs * kNanosPerMs, checkpoint_until_nanos_);
    kill_at_nanos_ = std::max(kill_at_nanos_, after);
  }
  if (now < kill_at_nanos_) return;
  env_->log(key_.job_id() + ": the trainer did not stop in time; killing it");
  Signal(SIGKILL);
}

void AttemptRunner::Signal(int signal) {
  if (!process_.has_value()) return;
  killed_ = killed_ || signal == SIGKILL;
  // Only the kill is for the whole group: helpers of the trainer need not know our signals.
  const absl::Status sent = SignalProcess(*process_, signal, /*group=*/signal == SIGKILL);
  if (!sent.ok()) env_->log(key_.job_id() + ": " + std::string(sent.message()));
  next_look_nanos_ = 0;
}

}  // namespace longhaul::agent
