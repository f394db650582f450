// What an attempt commits under its fence, checkpoints and the artifact, and which checkpoint a job goes on from.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

absl::Status Fenced(const AttemptKey& key, const std::string& why) {
  return MakeError(absl::StatusCode::kAborted, "LEASE_FENCED",
                   "attempt " + std::to_string(key.attempt) + " of " + key.job_id + " under epoch " +
                       std::to_string(key.lease_epoch) + " " + why);
}

bool SameFiles(const std::vector<NamedBlob>& a, const std::vector<NamedBlob>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const NamedBlob& x, const NamedBlob& y) {
    return x.path == y.path && x.blob.sha256 == y.blob.sha256 && x.blob.size_bytes == y.blob.size_bytes;
  });
}

}  // namespace

absl::Status DispatcherCore::VerifyCheckpoint(JobRecord& record) {
  Job& job = record.job;
  if (!job.last_checkpoint.has_value()) return absl::OkStatus();
  // The store does not list yet what this batch has committed: the last one may be of it.
  LH_ASSIGN_OR_RETURN(const bool last_is_whole, FilesStay(job.last_checkpoint->files));
  if (last_is_whole) return absl::OkStatus();
  LH_ASSIGN_OR_RETURN(const std::vector<Checkpoint> checkpoints, store_->ListCheckpoints(job.id));
  std::vector<int64_t> broken = {job.last_checkpoint->step};
  std::optional<Checkpoint> whole;
  for (auto it = checkpoints.rbegin(); it != checkpoints.rend() && !whole.has_value(); ++it) {
    if (it->step >= job.last_checkpoint->step) continue;
    LH_ASSIGN_OR_RETURN(const bool stay, FilesStay(it->files));
    if (stay) {
      whole = *it;
    } else {
      broken.push_back(it->step);
    }
  }
  LH_RETURN_IF_ERROR(AddEvent(
      record, EventType::kWarning, job.state, Reason::kInternal,
      "checkpoint of step " + std::to_string(job.last_checkpoint->step) + " is not whole in the blob store any more",
      job.last_checkpoint->step));
  // What is left of their files is nobody's any more, and what is kept is counted without them.
  for (const int64_t step : broken) {
    LH_RETURN_IF_ERROR(
        Write([&](StoreTransaction& tx) { return tx.DeleteCheckpoint(job.id, step, DroppedGraceMicros()); }));
    std::erase_if(record.checkpoints, [step](const auto& kept) { return kept.first == step; });
  }
  job.last_checkpoint = std::move(whole);
  return PinAsCheckpoint(&job);
}

// The class and the point of the attempt that made the last checkpoint; without one the job is free again.
absl::Status DispatcherCore::PinAsCheckpoint(Job* job) {
  job->pinned_device_class.clear();
  job->pinned_point = PlanPoint::kNone;
  if (!job->last_checkpoint.has_value()) return absl::OkStatus();
  LH_ASSIGN_OR_RETURN(const std::vector<Attempt> attempts, store_->ListAttempts(job->id));
  for (const Attempt& attempt : attempts) {
    if (attempt.number != job->last_checkpoint->attempt) continue;
    job->pinned_device_class = attempt.device_class;
    job->pinned_point = attempt.plan_point;
  }
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
