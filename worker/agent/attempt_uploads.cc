// AttemptRunner's uploads: checkpoints, the adapter, the log.
#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "worker/agent/attempt_runner.h"
#include "worker/agent/attempt_tasks.h"
#include "worker/agent/transfers.h"
#include "worker/attempt/utf8.h"

namespace longhaul::agent {
namespace {

// A log line is with the scheduler this long after it is written, at the latest.
constexpr int64_t kLogEveryMs = 200;
constexpr std::string_view kLostLine =
    "\n[a part of this log is missing: it was rotated away before it could be sent]\n";

absl::Status UploadCheckpoint(SchedulerClient* client, const attempt::AttemptDir& dir, const v1::AttemptKey& key,
                              const std::string& session_id, const v1::CheckpointWritten& written,
                              const CancelFlag& cancelled) {
  const std::vector<std::string> names(written.files().begin(), written.files().end());
  LH_ASSIGN_OR_RETURN(const std::vector<v1::BlobFile> files,
                      UploadFiles(client, dir.CheckpointDir(written.step()), names, cancelled));
  v1::CommitCheckpointRequest commit;
  commit.set_session_id(session_id);
  *commit.mutable_key() = key;
  v1::Checkpoint* checkpoint = commit.mutable_checkpoint();
  checkpoint->set_step(written.step());
  checkpoint->set_attempt(key.attempt());
  checkpoint->set_final(written.final());
  checkpoint->set_plan_signature(written.plan_signature());
  checkpoint->set_made_with(written.made_with());
  if (written.has_eval_loss()) checkpoint->set_eval_loss(written.eval_loss());
  for (const v1::BlobFile& file : files) *checkpoint->add_files() = file;
  LH_RETURN_IF_ERROR(Failpoint("agent_before_checkpoint"));
  LH_RETURN_IF_ERROR(client->CommitCheckpoint(commit));
  return Failpoint("agent_after_checkpoint");
}

absl::Status UploadArtifact(SchedulerClient* client, const attempt::AttemptDir& dir, const v1::AttemptKey& key,
                            const std::string& session_id, const v1::ArtifactWritten& written,
                            const CancelFlag& cancelled) {
  const std::vector<std::string> names(written.files().begin(), written.files().end());
  LH_ASSIGN_OR_RETURN(const std::vector<v1::BlobFile> files, UploadFiles(client, dir.ArtifactDir(), names, cancelled));
  v1::CommitArtifactRequest commit;
  commit.set_session_id(session_id);
  *commit.mutable_key() = key;
  for (const v1::BlobFile& file : files) *commit.mutable_artifact()->add_files() = file;
  *commit.mutable_result() = written.result();
  LH_RETURN_IF_ERROR(Failpoint("agent_before_artifact"));
  LH_RETURN_IF_ERROR(client->CommitArtifact(commit));
  return Failpoint("agent_after_artifact");
}

// How many bytes of the log the scheduler has now.
absl::StatusOr<int64_t> SendLog(SchedulerClient* client, const v1::AppendLogRequest& request) {
  LH_RETURN_IF_ERROR(Failpoint("agent_before_log"));
  LH_ASSIGN_OR_RETURN(const int64_t committed_bytes, client->AppendLog(request));
  LH_RETURN_IF_ERROR(Failpoint("agent_after_log"));
  return committed_bytes;
}

}  // namespace

void AttemptRunner::StartUploads() {
  if (uploading_ || env_->session_id().empty() || env_->clock->BootNanos() < upload_at_nanos_) return;
  if (stage_ != Stage::kTraining && stage_ != Stage::kSettling) return;
  if (!checkpoints_.empty()) {
    StartCheckpointUpload();
  } else if (ArtifactMayGo()) {
    StartArtifactUpload();
  } else if (artifact_.has_value() && !note_.artifact_committed && points_wait_until_nanos_ == 0) {
    env_->on_news();  // the next Sync has the last one answered, which may have told the rest
  }
}

// The adapter's commit ends the job, and nobody hears what is told of a job that has ended: points and warnings go
// first.
bool AttemptRunner::ArtifactMayGo() const {
  return artifact_.has_value() && !note_.artifact_committed && checkpoints_.empty() && progress_.empty() &&
         points_from_ < 0 && warnings_.empty();
}

void AttemptRunner::StartCheckpointUpload() {
  // The newest is worth most, and where uploads are slower than the training it overtakes those between.
  const v1::CheckpointWritten written = checkpoints_.back().value;
  uploading_ = true;
  uploading_step_ = written.step();
  RunTask<absl::Status>(
      env_->uploads,
      [client = env_->client, dir = dir_, key = key_, session = env_->session_id(), written, cancelled = cancelled_] {
        return UploadCheckpoint(client, dir, key, session, written, cancelled);
      },
      [written](AttemptRunner* self, const absl::Status& status) { self->OnCheckpointUploaded(written, status); });
}

void AttemptRunner::StartArtifactUpload() {
  uploading_ = true;
  RunTask<absl::Status>(
      env_->uploads,
      [client = env_->client, dir = dir_, key = key_, session = env_->session_id(), written = *artifact_,
       cancelled = cancelled_] { return UploadArtifact(client, dir, key, session, written, cancelled); },
      [](AttemptRunner* self, const absl::Status& status) { self->OnArtifactUploaded(status); });
}

// True where the transfer is settled one way or the other and the caller need not care; it comes again later.
bool AttemptRunner::NoteTransferFailure(const absl::Status& status) {
  if (ErrorReason(status) == "LEASE_FENCED") {
    env_->log(key_.job_id() + ": attempt " + std::to_string(key_.attempt()) +
              " is fenced: " + std::string(status.message()));
    Stop(v1::STOP_MODE_FENCED);
    return true;
  }
  if (IsRetryable(status)) {
    if (status.code() == absl::StatusCode::kResourceExhausted)
      env_->log(key_.job_id() + ": " + std::string(status.message()));
    RetryAt(&upload_at_nanos_);
    return true;
  }
  return false;
}

void AttemptRunner::OnCheckpointUploaded(const v1::CheckpointWritten& written, const absl::Status& status) {
  uploading_ = false;
  uploading_step_ = 0;
  if (stop_ == v1::STOP_MODE_FENCED) {
    if (stage_ != Stage::kTraining) BeGone();
    return;
  }
  if (!status.ok() && NoteTransferFailure(status)) return;
  // Done with this one and, because it is newer, with those before it.
  checkpoints_.erase(
      std::remove_if(checkpoints_.begin(), checkpoints_.end(),
                     [&](const Logged<v1::CheckpointWritten>& c) { return c.value.step() <= written.step(); }),
      checkpoints_.end());
  if (status.ok()) {
    backoff_.Reset();
    note_.committed_step = std::max(note_.committed_step, written.step());
    WriteNote();
    PruneCheckpoints();
  } else {
    warnings_.push_back({attempt::ToUtf8("the checkpoint of step " + std::to_string(written.step()) +
                                         " is not stored: " + std::string(status.message()))});
  }
  env_->on_news();
  StartUploads();
  SettleIfDone();
}

void AttemptRunner::OnArtifactUploaded(const absl::Status& status) {
  uploading_ = false;
  if (stop_ == v1::STOP_MODE_FENCED) {
    if (stage_ != Stage::kTraining) BeGone();
    return;
  }
  if (!status.ok() && NoteTransferFailure(status)) return;
  if (status.ok()) {
    backoff_.Reset();
    note_.artifact_committed = true;
    WriteNote();
  } else {
    artifact_.reset();
    adapter_refused_ = true;
    exit_.emplace();
    exit_->set_reason(v1::TRAINER_EXIT_FAILED);
    exit_->set_failure(v1::INTERNAL);
    exit_->set_message(attempt::ToUtf8("the adapter is not stored: " + std::string(status.message())));
    env_->log(key_.job_id() + ": " + exit_->message());
  }
  env_->on_news();
  SettleIfDone();
}

void AttemptRunner::DropUploads() {
  checkpoints_.clear();
  if (!note_.artifact_committed) artifact_.reset();
}

// The store has this checkpoint; older local ones are of no use. Those of newer steps are still to be uploaded.
void AttemptRunner::PruneCheckpoints() {
  const auto names = ListDir(dir_.CheckpointsDir());
  if (!names.ok()) return;
  constexpr std::string_view kPrefix = "step-";
  for (const std::string& name : *names) {
    if (name.compare(0, kPrefix.size(), kPrefix) != 0) continue;
    const int64_t step = std::strtoll(name.c_str() + kPrefix.size(), nullptr, 10);
    if (dir_.CheckpointDir(step) != JoinPath(dir_.CheckpointsDir(), name) || step >= note_.committed_step) continue;
    if (const absl::Status removed = RemoveTree(dir_.CheckpointDir(step)); !removed.ok()) {
      env_->log(key_.job_id() + ": " + std::string(removed.message()));
    }
  }
}

// Where checkpoints come faster than they can be uploaded, only the one on its way and the newest keep their disk.
void AttemptRunner::DropOvertaken() {
  const int64_t newest = checkpoints_.back().value.step();
  const auto overtaken = [&](const Logged<v1::CheckpointWritten>& c) {
    return c.value.step() != newest && c.value.step() != uploading_step_;
  };
  for (const Logged<v1::CheckpointWritten>& c : checkpoints_) {
    if (overtaken(c))
      RemoveTree(dir_.CheckpointDir(c.value.step())).IgnoreError();  // tried again when a newer one is stored
  }
  checkpoints_.erase(std::remove_if(checkpoints_.begin(), checkpoints_.end(), overtaken), checkpoints_.end());
}

void AttemptRunner::ShipLog() {
  if (shipping_log_ || log_complete_ || env_->session_id().empty()) return;
  const int64_t now = env_->clock->BootNanos();
  if (now < log_at_nanos_) return;
  log_at_nanos_ = now + kLogEveryMs * kNanosPerMs;
  // Where the log's end is not known, nothing is appended at its beginning: the answer tells the size.
  const std::string data = log_offset_known_ ? NextLogBytes() : "";
  const bool complete = log_offset_known_ && data.empty() && stage_ == Stage::kSettling;
  if (log_offset_known_ && data.empty() && !complete) return;
  v1::AppendLogRequest request;
  request.set_session_id(env_->session_id());
  *request.mutable_key() = key_;
  request.set_offset(log_offset_known_ ? log_offset_ : 0);
  request.set_data(data);
  request.set_complete(complete);
  const int64_t bytes = static_cast<int64_t>(data.size());
  shipping_log_ = true;
  RunTask<absl::StatusOr<int64_t>>(
      env_->logs, [client = env_->client, request = std::move(request)] { return SendLog(client, request); },
      [bytes, complete](AttemptRunner* self, const absl::StatusOr<int64_t>& committed) {
        self->OnLogShipped(bytes, complete, committed);
      });
}

// What follows in the scheduler's log: the trainer's output, or a line in place of what was rotated away unshipped.
std::string AttemptRunner::NextLogBytes() {
  const int64_t at = log_offset_ + note_.log_missing_bytes;
  auto chunk = attempt::ReadStderr(dir_, at, limits::kLogUploadBytes);
  if (!chunk.ok()) {
    env_->log(key_.job_id() + ": its log cannot be read: " + std::string(chunk.status().message()));
    return "";
  }
  if (chunk->offset == at) return std::move(chunk->data);
  // Noted first: an agent that dies in between finds the same loss again, and says the same.
  note_.log_missing_bytes = chunk->offset - log_offset_ - static_cast<int64_t>(kLostLine.size());
  WriteNote();
  return std::string(kLostLine);
}

void AttemptRunner::WriteNote() {
  note_.events_bytes = FirstUntold();
  note_.started = started_;
  note_.held = held_;
  note_.finalizing = finalizing_;
  note_.step_ms = static_cast<int64_t>(step_seconds_ * 1'000);
  note_.host_bytes_peak = host_bytes_peak_;
  note_.device_bytes_peak = device_bytes_peak_;
  const absl::Status noted = dir_.WriteAgentNote(note_);
  if (!noted.ok()) env_->log(key_.job_id() + ": " + std::string(noted.message()));
}

void AttemptRunner::OnLogShipped(int64_t bytes, bool complete, const absl::StatusOr<int64_t>& committed) {
  shipping_log_ = false;
  if (committed.ok()) {
    if (!log_offset_known_) log_at_nanos_ = 0;
    log_offset_known_ = true;
    log_offset_ = *committed;
    log_complete_ = log_complete_ || complete;
    log_refused_nanos_ = 0;
    if (bytes == limits::kLogUploadBytes || stage_ == Stage::kSettling) log_at_nanos_ = 0;
  } else if (IsRetryable(committed.status())) {
    RetryAt(&log_at_nanos_);
    OnLogRefused(committed.status());
  } else if (ErrorReason(committed.status()) == "LOG_GAP") {
    // The scheduler has lost the end of its log, which is not synced: we have it still.
    log_offset_known_ = false;
    RetryAt(&log_at_nanos_);
  } else {
    env_->log(key_.job_id() + ": its log is not taken any more: " + std::string(committed.status().message()));
    log_complete_ = true;
  }
  ShipLog();
  SettleIfDone();
}

// A scheduler whose disk is full or broken takes no log. The attempt's end does not wait for that: until it is told,
// the attempt holds its threads and its memory. A scheduler that is away, or refuses for another reason, is waited for.
void AttemptRunner::OnLogRefused(const absl::Status& refusal) {
  const std::string reason = ErrorReason(refusal);
  const bool of_its_disk = reason == "DISK_FULL" || reason == "STORE_IO";
  if (stage_ != Stage::kSettling || !of_its_disk) {
    log_refused_nanos_ = 0;
    return;
  }
  const int64_t now = env_->clock->BootNanos();
  if (log_refused_nanos_ == 0) log_refused_nanos_ = now;
  if (now - log_refused_nanos_ < limits::kLogEndWaitMs * kNanosPerMs) return;
  env_->log(key_.job_id() + ": ends without the rest of its log: " + std::string(refusal.message()));
  log_complete_ = true;
}

void AttemptRunner::SettleIfDone() {
  if (stage_ != Stage::kSettling || uploading_ || shipping_log_ || !log_complete_) return;
  if (!checkpoints_.empty() || (artifact_.has_value() && !note_.artifact_committed)) return;
  stage_ = Stage::kEnded;
  env_->on_news();
}

}  // namespace longhaul::agent
