// Undo, batches, loading. The other parts of DispatcherCore are in
// dispatcher_{jobs,attempts,commits,session,report,schedule,table,view}.
#include "server/dispatcher_core.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "server/dispatcher_command.h"

namespace longhaul::server {

DispatcherCore::DispatcherCore(Dispatcher::Options options, Store* store, BlobIndex* blobs, const Clock* clock,
                               const Planner* planner)
    : options_(options),
      store_(&store->Writer()),
      blobs_(blobs),
      clock_(clock),
      planner_(planner == nullptr ? MemoryPlanner() : *planner),
      table_(options_.quotas) {}

// What the open attempt has warned of: its agent may repeat it.
absl::StatusOr<std::set<std::string>> DispatcherCore::WarningsOf(const Job& job) const {
  std::set<std::string> warnings;
  for (int64_t after = 0; after < job.sequence;) {
    LH_ASSIGN_OR_RETURN(const std::vector<JobEvent> events, store_->ListEvents(job.id, after, limits::kMaxEventsRead));
    if (events.empty()) break;
    for (const JobEvent& event : events) {
      if (event.type == EventType::kWarning && event.attempt == job.attempt.number) warnings.insert(event.message);
    }
    after = events.back().sequence;
  }
  return warnings;
}

std::string DispatcherCore::MakeId() { return options_.make_id ? options_.make_id() : batch_ids_.Next(); }

absl::Status DispatcherCore::Load() {
  const int64_t now = clock_->BootNanos();
  grace_boot_nanos_ = now + limits::kStartGraceMs * kNanosPerMs;
  away_until_boot_nanos_ = now;
  LH_ASSIGN_OR_RETURN(const uint64_t max_number, store_->MaxCreateNumber());
  next_create_number_ = max_number + 1;
  LH_ASSIGN_OR_RETURN(std::vector<Worker> workers, store_->ListWorkers());
  for (Worker& worker : workers) {
    WorkerRecord record;
    record.last_sync_boot_nanos = now;
    record.registered = next_registration_++;
    const std::string id = worker.id;
    record.worker = std::make_shared<const Worker>(std::move(worker));
    workers_[id] = std::move(record);
  }
  LH_ASSIGN_OR_RETURN(std::vector<Job> jobs, store_->LoadLiveJobs());
  for (Job& job : jobs) {
    JobRecord record;
    record.state_since_boot_nanos = now;
    if (job.last_checkpoint.has_value()) {
      LH_ASSIGN_OR_RETURN(const std::vector<Checkpoint> checkpoints, store_->ListCheckpoints(job.id));
      for (const Checkpoint& checkpoint : checkpoints) {
        record.checkpoints.emplace_back(checkpoint.step, checkpoint.eval_loss);
      }
    }
    ++project_jobs_[job.project];
    if (job.state == JobState::kRecovering) recovering_.insert(job.id);
    // Only a backup raises a job's epoch above its open attempt's (storage/backup.h).
    if (HasOpenAttempt(job) && job.attempt.lease_epoch != job.lease_epoch) restored_.insert(job.id);
    if (HasOpenAttempt(job)) {
      const Attempt& attempt = job.attempt;
      Hold hold;
      hold.key = {job.id, attempt.number, attempt.lease_epoch};
      hold.kind = attempt.kind;
      hold.device_id = attempt.device_id;
      hold.device_bytes = attempt.device_bytes_planned;
      hold.host_bytes = attempt.host_bytes_planned;
      hold.disk_bytes = attempt.disk_bytes_planned;
      hold.cpu_threads = attempt.cpu_threads_planned;
      hold.offered = true;  // the answer that carried it may have left before the restart
      hold.last_step = std::max(attempt.last_step, attempt.resumed_from_step);
      hold.checkpoint_step = job.last_checkpoint.has_value() ? job.last_checkpoint->step : 0;
      hold.checkpoint_boot_nanos = now;
      hold.warnings.reset();
      if (job.state == JobState::kCancelling) hold.stop = StopMode::kCancel;
      if (job.state == JobState::kPausing) hold.stop = StopMode::kCheckpoint;
      WorkerRecord& worker = workers_[attempt.worker_id];
      if (worker.worker == nullptr) {
        Worker unknown;
        unknown.id = attempt.worker_id;
        worker.worker = std::make_shared<const Worker>(std::move(unknown));
        worker.last_sync_boot_nanos = now;
      }
      worker.holds[{job.id, attempt.number}] = std::move(hold);
    }
    const std::string id = job.id;
    record.job = std::move(job);
    jobs_[id] = std::move(record);
    changed_jobs_.insert(id);
  }
  for (const auto& [id, record] : workers_) changed_workers_.insert(id);
  RefreshFleet();
  return RestoreUsage();
}

void DispatcherCore::BeginCommand() {
  LH_CHECK(!in_command_, "commands do not nest");
  in_command_ = true;
  ++stats_.commands_total;
  command_written_ = false;
  command_undo_ = Undo();
  command_undo_.effects = effects_.size();
  command_undo_.on_commit = on_commit_.size();
  command_undo_.keys = batch_keys_.size();
}

void DispatcherCore::EndCommand(bool keep) {
  LH_CHECK(in_command_);
  if (keep && !broken_.ok()) keep = false;
  if (command_written_ && broken_.ok()) {
    const absl::Status status = transaction_->EndCommand(keep);
    if (!status.ok()) {
      broken_ = status;
      keep = false;
    }
  }
  in_command_ = false;
  if (!keep) {
    Restore(&command_undo_);
    return;
  }
  // insert() keeps what the batch had before this command.
  batch_undo_.jobs.merge(command_undo_.jobs);
  batch_undo_.workers.merge(command_undo_.workers);
  batch_undo_.sessions.merge(command_undo_.sessions);
  batch_undo_.dirty.merge(command_undo_.dirty);
}

void DispatcherCore::Restore(Undo* undo) {
  for (auto& [id, record] : undo->jobs) {
    changed_jobs_.insert(id);
    if (record.has_value()) {
      jobs_[id] = *std::move(record);
    } else {
      jobs_.erase(id);
    }
  }
  for (auto& [id, record] : undo->workers) {
    changed_workers_.insert(id);
    stirred_workers_.insert(id);
    if (record.has_value()) {
      // That it was heard of stays true, whatever became of what it said: however long the store fails, no worker that
      // goes on calling is lost.
      WorkerRecord& now = workers_[id];
      const int64_t boot_nanos = std::max(now.last_sync_boot_nanos, record->last_sync_boot_nanos);
      const int64_t wall_micros = now.last_sync_wall_micros;
      now = *std::move(record);
      if (boot_nanos > now.last_sync_boot_nanos) now.last_sync_wall_micros = wall_micros;
      now.last_sync_boot_nanos = boot_nanos;
    } else {
      workers_.erase(id);
    }
  }
  for (auto& [session, worker] : undo->sessions) {
    if (worker.has_value()) {
      sessions_[session] = *std::move(worker);
    } else {
      sessions_.erase(session);
    }
  }
  effects_.resize(undo->effects);
  on_commit_.resize(undo->on_commit);
  batch_keys_.resize(undo->keys);
}

JobRecord& DispatcherCore::TouchJob(const std::string& id) {
  LH_CHECK(in_command_);
  const auto found = jobs_.find(id);
  if (!command_undo_.jobs.contains(id)) {
    command_undo_.jobs.emplace(id, found == jobs_.end() ? std::optional<JobRecord>() : found->second);
    changed_jobs_.insert(id);
  }
  return found == jobs_.end() ? jobs_[id] : found->second;
}

WorkerRecord& DispatcherCore::TouchWorker(const std::string& id) {
  LH_CHECK(in_command_);
  const auto found = workers_.find(id);
  if (!command_undo_.workers.contains(id)) {
    command_undo_.workers.emplace(id, found == workers_.end() ? std::optional<WorkerRecord>() : found->second);
    changed_workers_.insert(id);
    stirred_workers_.insert(id);
  }
  return found == workers_.end() ? workers_[id] : found->second;
}

void DispatcherCore::SetSession(const std::string& session_id, std::optional<std::string> worker_id) {
  LH_CHECK(in_command_);
  const auto found = sessions_.find(session_id);
  command_undo_.sessions.emplace(session_id, found == sessions_.end() ? std::optional<std::string>() : found->second);
  if (worker_id.has_value()) {
    sessions_[session_id] = *std::move(worker_id);
  } else {
    sessions_.erase(session_id);
  }
}

absl::Status DispatcherCore::Write(const std::function<absl::Status(StoreTransaction&)>& write) {
  LH_CHECK(in_command_);
  if (broken_.ok() && transaction_ == nullptr) {
    absl::StatusOr<std::unique_ptr<StoreTransaction>> transaction = store_->Begin();
    if (transaction.ok()) {
      transaction_ = *std::move(transaction);
    } else {
      broken_ = transaction.status();
    }
  }
  if (broken_.ok() && !command_written_) {
    broken_ = transaction_->BeginCommand();
    command_written_ = true;
  }
  if (broken_.ok()) broken_ = write(*transaction_);
  return broken_;
}

absl::Status DispatcherCore::CommitBatch() {
  LH_CHECK(!in_command_);
  const int64_t begin = clock_->BootNanos();
  // One row a job and batch, whatever number of commands changed it.
  for (const std::string& id : batch_undo_.dirty) {
    const auto found = jobs_.find(id);
    if (found == jobs_.end() || !broken_.ok()) continue;
    Command([&] { return Write([&](StoreTransaction& tx) { return tx.PutJob(found->second.job); }); }).IgnoreError();
  }
  absl::Status status = broken_;
  if (transaction_ != nullptr) {
    if (status.ok()) status = Failpoint("dispatcher_before_commit");
    if (status.ok()) status = transaction_->Commit();
    transaction_.reset();
    if (status.ok()) {
      ++stats_.commits_total;
      stats_.commit_seconds.Add(static_cast<double>(clock_->BootNanos() - begin) / 1e9);
      Failpoint("dispatcher_after_commit").IgnoreError();  // armed to crash or to sleep
    }
  }
  if (!status.ok()) {
    ++stats_.failed_commits_total;
    away_until_boot_nanos_ = clock_->BootNanos();  // who called got no lease
    batch_undo_.effects = 0;
    batch_undo_.on_commit = 0;
    batch_undo_.keys = 0;
    Restore(&batch_undo_);
    retry_boot_nanos_ = clock_->BootNanos() + limits::kStoreRetryMs * 1'000'000;
    schedule_wanted_ = true;
    EndBatch();
    RefreshFleet();
    for (const auto& [id, record] : jobs_) {
      if (record.job.state == JobState::kRecovering) recovering_.insert(id);
      if (record.pending_metrics.empty()) continue;
      metric_jobs_.insert(id);
      metrics_due_boot_nanos_ = 0;  // looked at again
    }
    return MakeError(absl::StatusCode::kUnavailable, "STORE_UNAVAILABLE",
                     "nothing was changed: " + std::string(status.message()));
  }
  retry_boot_nanos_ = 0;
  // Actions may not add others: they run after the batch.
  for (const std::function<void()>& action : on_commit_) action();
  for (Effect& effect : effects_) committed_effects_.push_back(std::move(effect));
  std::map<std::string, std::optional<JobRecord>> touched;
  touched.swap(batch_undo_.jobs);
  EndBatch();
  for (const auto& [id, record] : touched) DropIfDone(id);
  return absl::OkStatus();
}

void DispatcherCore::EndBatch() {
  batch_undo_ = Undo();
  effects_.clear();
  on_commit_.clear();
  batch_keys_.clear();
  batch_deleted_.clear();
  batch_dropped_.clear();
  batch_ids_.End();
  broken_ = absl::OkStatus();
}

void DispatcherCore::InternalError(const absl::Status& status) {
  ++stats_.internal_errors_total;
  stats_.last_internal_error = std::string(status.message());
}

}  // namespace longhaul::server
