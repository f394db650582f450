// What the clock asks for, and placing.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "server/core/codec.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

constexpr int64_t kKeySweepNanos = int64_t{60} * 1'000'000'000;  // kMaxKeysSweptPerCommit each
constexpr int64_t kDayMicros = int64_t{24} * 3600 * 1'000'000;

}  // namespace

void DispatcherCore::RunCommand(const std::function<absl::Status()>& body) {
  const absl::Status status = Command(body);
  if (!status.ok() && broken_.ok()) InternalError(status);
}

void DispatcherCore::Tick() {
  if (retry_boot_nanos_ > clock_->BootNanos()) return;
  TickWorkers();
  TickRestored();
  TickRecoveries();
  RefreshJobs();
  TickDeadlines();
  TickMetrics();
  TickKeys();
  if (clock_->BootNanos() >= look_again_boot_nanos_) schedule_wanted_ = true;
  if (schedule_wanted_) Schedule();
}

// What nobody could hear is not a worker's silence. Later than it could be is always safe for a worker to be lost:
// until then nobody else has its jobs.
void DispatcherCore::NoteDeaf(int64_t nanos) {
  const int64_t now = clock_->BootNanos();
  for (auto& [id, record] : workers_) {
    record.last_sync_boot_nanos = std::min(now, record.last_sync_boot_nanos + nanos);
  }
  deaf_until_boot_nanos_ = now;
  away_until_boot_nanos_ = now;
  grace_boot_nanos_ = now + limits::kStartGraceMs * kNanosPerMs;
  schedule_wanted_ = true;  // nobody is suspect for it, either
}

// Lost: no Sync for worker_lost_ms, which is longer than any lease that an answer gave. What such a worker held is
// fenced.
void DispatcherCore::TickWorkers() {
  const int64_t now = clock_->BootNanos();
  if (now < next_lost_boot_nanos_) return;
  // Whoever is heard of from now on is lost later than that.
  next_lost_boot_nanos_ = now + options_.worker_lost_ms * kNanosPerMs;
  std::vector<std::string> lost;
  for (const auto& [id, record] : workers_) {
    const bool leases =
        std::any_of(record.holds.begin(), record.holds.end(), [](const auto& entry) { return !entry.second.fenced; });
    if (!record.online && !leases) continue;
    int64_t due = record.last_sync_boot_nanos + options_.worker_lost_ms * kNanosPerMs;
    // It may not have noticed yet that we are back.
    const bool unheard = record.session_id.empty() || record.last_sync_boot_nanos <= deaf_until_boot_nanos_;
    if (unheard) due = std::max(due, grace_boot_nanos_);
    if (due <= now) {
      lost.push_back(id);
      next_lost_boot_nanos_ = now;  // again, should the commit fail
    } else {
      next_lost_boot_nanos_ = std::min(next_lost_boot_nanos_, due);
    }
  }
  for (const std::string& id : lost) {
    RunCommand([&]() -> absl::Status {
      WorkerRecord& record = TouchWorker(id);
      record.online = false;
      record.host_bytes_available = 0;
      record.disk_bytes_available = 0;
      LH_RETURN_IF_ERROR(NoteSeen(&record));
      if (!record.session_id.empty()) SetSession(record.session_id, std::nullopt);
      record.session_id.clear();
      std::vector<std::string> jobs;
      for (auto& [key, hold] : record.holds) {
        if (hold.fenced) continue;
        hold.fenced = true;
        jobs.push_back(hold.key.job_id);
      }
      for (const std::string& job_id : jobs) {
        JobRecord& job = TouchJob(job_id);
        OnCommit([this] { ++stats_.lease_expirations_total; });
        if (!HasOpenAttempt(job.job) || job.job.attempt.worker_id != id) continue;
        LH_RETURN_IF_ERROR(LoseAttempt(
            job, "worker " + id + " has not been heard of for " + std::to_string(options_.worker_lost_ms / 1000) + " s",
            true));
      }
      schedule_wanted_ = true;
      return absl::OkStatus();
    });
  }
}

// What ran when the backup was taken has gone on without us, perhaps to its end: fenced, not counted as a failure.
void DispatcherCore::TickRestored() {
  const std::set<std::string> due = restored_;
  for (const std::string& id : due) {
    RunCommand([&]() -> absl::Status {
      JobRecord& record = TouchJob(id);
      OnCommit([this, id] { restored_.erase(id); });
      if (!HasOpenAttempt(record.job) || record.job.attempt.lease_epoch == record.job.lease_epoch) {
        return absl::OkStatus();
      }
      return LoseAttempt(record, "the scheduler's state was restored from a backup", false);
    });
  }
}

void DispatcherCore::TickRecoveries() {
  if (clock_->BootNanos() < recovery_retry_boot_nanos_) return;
  const std::set<std::string> due = std::exchange(recovering_, {});
  for (const std::string& id : due) {
    if (!jobs_.contains(id)) continue;
    RunCommand([&] { return FinishRecovery(TouchJob(id)); });
    // Something could not be read: tried again in a moment.
    if (jobs_.at(id).job.state == JobState::kRecovering) {
      recovering_.insert(id);
      recovery_retry_boot_nanos_ = clock_->BootNanos() + limits::kStoreRetryMs * kNanosPerMs;
    }
  }
}

void DispatcherCore::TickDeadlines() {
  const int64_t now = clock_->WallMicros();
  std::vector<std::string> due;
  for (const auto& [deadline_wall_micros, id] : deadlines_) {
    if (deadline_wall_micros > now) break;
    due.push_back(id);
  }
  for (const std::string& id : due) {
    RunCommand([&]() -> absl::Status {
      JobRecord& record = TouchJob(id);
      Failure failure;
      failure.reason = Reason::kDeadlineExceeded;
      failure.user_can_fix = true;
      failure.message = "its deadline passed while it was " + std::string(Name(record.job.state));
      LH_RETURN_IF_ERROR(ReleaseAttempt(record, "the job's deadline passed"));
      return FailJob(record, std::move(failure));
    });
  }
}

// All that wait go with the oldest: hundreds of jobs whose points come one by one share a commit.
void DispatcherCore::TickMetrics() {
  if (clock_->BootNanos() < metrics_due_boot_nanos_) return;
  std::vector<std::pair<int64_t, std::string>> waiting;  // since when
  for (auto it = metric_jobs_.begin(); it != metric_jobs_.end();) {
    const auto found = jobs_.find(*it);
    if (found == jobs_.end() || found->second.pending_metrics.empty()) {
      it = metric_jobs_.erase(it);
      continue;
    }
    waiting.emplace_back(found->second.pending_since_boot_nanos, *it);
    ++it;
  }
  std::sort(waiting.begin(), waiting.end());
  const size_t count = std::min<size_t>(waiting.size(), limits::kMaxMetricsFlushedPerCommit);
  metrics_due_boot_nanos_ = count == waiting.size() ? std::numeric_limits<int64_t>::max()
                                                    : waiting[count].first + limits::kMetricsFlushMs * kNanosPerMs;
  for (size_t i = 0; i < count; ++i) {
    RunCommand([&] { return FlushMetrics(TouchJob(waiting[i].second)); });
  }
}

void DispatcherCore::TickKeys() {
  if (clock_->BootNanos() < next_key_sweep_boot_nanos_) return;
  next_key_sweep_boot_nanos_ = clock_->BootNanos() + kKeySweepNanos;
  const int64_t oldest = clock_->WallMicros() - limits::kRequestIdTtlDays * kDayMicros;
  RunCommand([&] {
    return Write([&](StoreTransaction& tx) -> absl::Status {
      LH_ASSIGN_OR_RETURN(const int swept, tx.DeleteRequestKeysBefore(oldest, limits::kMaxKeysSweptPerCommit));
      // As many as have come since: jobs may be made faster than one sweep a minute forgets their keys.
      if (swept == limits::kMaxKeysSweptPerCommit) {
        next_key_sweep_boot_nanos_ = clock_->BootNanos() + limits::kKeySweepAgainMs * kNanosPerMs;
      }
      return absl::OkStatus();
    });
  });
  // A day later than the store would allow, because the two look at the clock at different times.
  const int64_t oldest_audit = clock_->WallMicros() - (limits::kAuditKeepDays + 1) * kDayMicros;
  RunCommand([&] { return Write([&](StoreTransaction& tx) { return tx.DeleteAuditBefore(oldest_audit); }); });
  ForgetOrphans();
  ForgetWorkers();
}

// What a worker that is away may still run has nobody who extends its lease: its trainer ends by itself. Should the
// worker come back after all, it names what it has, and gets nothing before.
void DispatcherCore::ForgetOrphans() {
  const int64_t longest_ms = options_.lease_ms + limits::kOrphanMs + limits::kOrphanEndMs;
  const int64_t oldest = clock_->BootNanos() - longest_ms * kNanosPerMs;
  std::vector<std::pair<std::string, Hold>> due;
  for (const auto& [id, record] : workers_) {
    if (record.online || record.last_sync_boot_nanos > oldest) continue;
    for (const auto& [key, hold] : record.holds) {
      if (hold.fenced) due.emplace_back(id, hold);
    }
  }
  for (const auto& [id, hold] : due) {
    RunCommand([&, id = id, hold = hold] {
      EraseHold(hold, id);
      return absl::OkStatus();
    });
  }
}

// For ForgetWorkers, also after restarts.
absl::Status DispatcherCore::NoteSeen(WorkerRecord* record) {
  if (record->last_sync_wall_micros <= record->worker->seen_wall_micros) return absl::OkStatus();
  Worker worker = *record->worker;
  worker.seen_wall_micros = record->last_sync_wall_micros;
  record->worker = std::make_shared<const Worker>(std::move(worker));
  return Write([&](StoreTransaction& tx) { return tx.PutWorker(*record->worker); });
}

// Hosts come and go for ever; their names, models and device classes do not stay for ever. Whoever comes back under the
// name is a new worker.
void DispatcherCore::ForgetWorkers() {
  const int64_t oldest = clock_->WallMicros() - limits::kForgetWorkerDays * kDayMicros;
  std::vector<std::string> due;
  for (const auto& [id, record] : workers_) {
    const int64_t seen = std::max(record.last_sync_wall_micros, record.worker->seen_wall_micros);
    if (record.online || !record.holds.empty() || seen >= oldest) continue;
    if (static_cast<int>(due.size()) < limits::kMaxWorkersForgottenPerSweep) due.push_back(id);
  }
  for (const std::string& id : due) {
    RunCommand([&]() -> absl::Status {
      // Of a database from before it was written down: from now on it counts.
      if (TouchWorker(id).worker->seen_wall_micros == 0) {
        TouchWorker(id).last_sync_wall_micros = clock_->WallMicros();
        return NoteSeen(&TouchWorker(id));
      }
      return ForgetWorker(id);
    });
  }
}

// REQUIRES: offline, without holds.
absl::Status DispatcherCore::ForgetWorker(const std::string& id) {
  TouchWorker(id);
  LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.DeleteWorker(id); }));
  workers_.erase(id);
  schedule_wanted_ = true;
  RefreshFleet();
  ++next_registration_;  // what is published of the fleet changes
  return absl::OkStatus();
}

int64_t DispatcherCore::NextTimerBootNanos() const {
  const int64_t now = clock_->BootNanos();
  int64_t next = next_key_sweep_boot_nanos_;
  const auto at_most = [&next](int64_t boot_nanos) { next = std::min(next, boot_nanos); };
  if (!workers_.empty()) at_most(next_lost_boot_nanos_);
  at_most(metrics_due_boot_nanos_);
  if (!deadlines_.empty()) at_most(now + (deadlines_.begin()->first - clock_->WallMicros()) * 1000);
  at_most(look_again_boot_nanos_);
  if (!recovering_.empty()) at_most(recovery_retry_boot_nanos_);
  if (schedule_wanted_) next = now;
  return std::max(next, retry_boot_nanos_);
}

void DispatcherCore::RefreshFleet() {
  std::map<std::string, DeviceFacts> classes;
  const auto size = [](const DeviceFacts& facts) {
    return facts.kind == DeviceKind::kCpu ? facts.host_bytes : facts.device_bytes;
  };
  for (const auto& [id, record] : workers_) {
    for (const DeviceEntry& device : record.worker->devices) {
      const auto [at, added] = classes.emplace(device.facts.device_class, device.facts);
      if (!added && size(device.facts) > size(at->second)) at->second = device.facts;
    }
  }
  const bool same =
      std::equal(classes.begin(), classes.end(), classes_.begin(), classes_.end(), [](const auto& a, const auto& b) {
        return a.first == b.first && EncodeFacts(a.second) == EncodeFacts(b.second);
      });
  if (same) return;
  classes_ = std::move(classes);
  demands_by_shape_.clear();
  ++fleet_;
}

PlanTime DispatcherCore::Now() const { return {clock_->WallMicros(), clock_->BootNanos() / 1000}; }

void DispatcherCore::Schedule() {
  const int64_t begin = clock_->BootNanos();
  schedule_wanted_ = false;
  RefreshTable();
  RefreshShares();
  const PlanTime now = Now();
  const PlanResult result = table_.Decide(now);
  stats_.scheduler_cycle_seconds.Add(static_cast<double>(clock_->BootNanos() - begin) / 1e9);
  for (const Start& start : result.starts) {
    RunCommand([&] { return StartAttempt(start); });
  }
  for (const Preemption& preemption : result.preemptions) {
    RunCommand([&] { return PreemptAttempt(preemption); });
  }
  look_again_boot_nanos_ = result.look_again_boot_micros == kNeverMicros ? std::numeric_limits<int64_t>::max()
                                                                         : result.look_again_boot_micros * 1000;
  look_again_boot_nanos_ = std::min(look_again_boot_nanos_, rest_over_boot_nanos_);
  if (result.waiting > 0) {
    // Predictions age: what runs may be slower than it was thought.
    const int64_t refresh = begin + limits::kScheduleRefreshMs * kNanosPerMs;
    look_again_boot_nanos_ = std::min(look_again_boot_nanos_, refresh);
  }
  // What it started and stopped raises schedule_wanted_ through SetState, yet this pass has seen everything.
  if (broken_.ok()) schedule_wanted_ = false;
}

}  // namespace longhaul::server
