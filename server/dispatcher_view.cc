// Copies of committed memory, for people and metrics; draining; blobs.
#include <algorithm>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

constexpr int64_t kHourMicros = int64_t{3600} * 1'000'000;

// Of the attempts that were measured at all.
struct Measured {
  int64_t bytes_peak = 0;
  int64_t bytes_planned = 0;
  void Add(int64_t peak, int64_t planned) {
    if (peak <= 0 || planned <= 0) return;
    bytes_peak += peak;
    bytes_planned += planned;
  }
};

}  // namespace

absl::Status DispatcherCore::SetDraining(const std::string& worker_id, bool draining) {
  return Command([&]() -> absl::Status {
    if (!workers_.contains(worker_id)) {
      return MakeError(absl::StatusCode::kNotFound, "WORKER_NOT_FOUND", "there is no worker " + worker_id);
    }
    WorkerRecord& record = TouchWorker(worker_id);
    auto worker = std::make_shared<Worker>(*record.worker);
    worker->draining = draining;
    record.worker = worker;
    if (!draining) record.faults.clear();  // somebody has looked after it
    LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutWorker(*worker); }));
    schedule_wanted_ = true;
    std::vector<std::string> jobs;
    for (const auto& [key, hold] : record.holds) {
      if (draining && !hold.fenced && hold.kind == AttemptKind::kTrain) jobs.push_back(hold.key.job_id);
    }
    for (const std::string& id : jobs) {
      JobRecord& job = TouchJob(id);
      if (job.job.state != JobState::kStarting && job.job.state != JobState::kRunning) continue;
      job.job.pause_cause = PauseCause::kDrain;
      LH_RETURN_IF_ERROR(SetState(job, JobState::kPausing, Reason::kNone, "worker " + worker_id + " is draining"));
      LH_RETURN_IF_ERROR(RequestStop(job, StopMode::kCheckpoint));
    }
    return absl::OkStatus();
  });
}

absl::Status DispatcherCore::RecordBlobs(const std::vector<BlobRef>& blobs, const std::string& project) {
  return Command([&]() -> absl::Status {
    const int64_t now = clock_->WallMicros();
    for (const BlobRef& blob : blobs) {
      // On this thread, which also deletes collected blobs: a row never outlives its file.
      LH_ASSIGN_OR_RETURN(const bool present, BlobStays(blob));
      if (!present) {
        return MakeError(absl::StatusCode::kUnavailable, "BLOB_GONE",
                         "blob " + blob.sha256 + " was collected in this moment: upload it again");
      }
      LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutBlob(blob, now); }));
      if (project.empty()) continue;
      LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutBlobProject(blob, project); }));
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<bool> DispatcherCore::BlobStays(const BlobRef& blob) const {
  if (batch_dropped_.contains(blob.sha256)) return false;
  return blobs_->Present(blob);
}

absl::StatusOr<bool> DispatcherCore::FilesStay(const std::vector<NamedBlob>& files) const {
  for (const NamedBlob& file : files) {
    LH_ASSIGN_OR_RETURN(const bool stays, BlobStays(file.blob));
    if (!stays) return false;
  }
  return true;
}

absl::Status DispatcherCore::AddAudit(const AuditRecord& record) {
  return Command([&] { return Write([&](StoreTransaction& tx) { return tx.AddAudit(record); }); });
}

int64_t DispatcherCore::DroppedGraceMicros() const {
  return clock_->WallMicros() - limits::kBlobGraceHours * kHourMicros + limits::kDroppedBlobGraceMs * 1'000;
}

absl::StatusOr<std::vector<BlobRef>> UnknownBlobs(BlobIndex* blobs, Store* store, int folder) {
  constexpr char kHex[] = "0123456789abcdef";
  LH_ASSIGN_OR_RETURN(const std::vector<BlobRef> there, blobs->List({kHex[folder / 16], kHex[folder % 16]}));
  std::vector<BlobRef> unknown;
  for (const BlobRef& blob : there) {
    LH_ASSIGN_OR_RETURN(const bool known, store->HasBlob(blob));
    if (!known) unknown.push_back(blob);
  }
  return unknown;
}

absl::StatusOr<int> DispatcherCore::CollectBlobs(const std::vector<BlobRef>& unknown) {
  return Command([&]() -> absl::StatusOr<int> {
    const int64_t now = clock_->WallMicros();
    for (const BlobRef& blob : unknown) {
      // Again, on the thread that deletes: it may have gone since, and a row never outlives its file.
      LH_ASSIGN_OR_RETURN(const bool present, BlobStays(blob));
      if (present) LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutBlob(blob, now); }));
    }
    std::vector<BlobRef> dropped;
    LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) -> absl::Status {
      LH_ASSIGN_OR_RETURN(dropped, tx.DropUnreferencedBlobs(now - limits::kBlobGraceHours * kHourMicros,
                                                            limits::kMaxBlobsCollectedPerCommit));
      return absl::OkStatus();
    }));
    const int count = static_cast<int>(dropped.size());
    for (const BlobRef& blob : dropped) batch_dropped_.insert(blob.sha256);
    // A file that cannot be deleted now is found again by its folder's next turn.
    OnCommit([this, gone = std::move(dropped)] {
      for (const BlobRef& blob : gone) {
        const absl::Status removed = blobs_->Remove(blob);
        if (!removed.ok()) InternalError(removed);
      }
    });
    return count;
  });
}

absl::Status DispatcherCore::ForgetDeletedJobs(const std::vector<std::string>& ids) {
  return Command([&]() -> absl::Status {
    for (const std::string& id : ids) {
      LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.ForgetDeletedJob(id); }));
    }
    return absl::OkStatus();
  });
}

std::vector<WorkerView> DispatcherCore::Workers(const std::string& only) const {
  std::vector<WorkerView> views;
  for (const auto& [id, record] : workers_) {
    if (!only.empty() && id != only) continue;
    WorkerView view;
    view.worker = record.worker;
    view.online = record.online;
    view.last_sync_wall_micros = record.last_sync_wall_micros;
    view.suspect = record.online && Suspect(record);
    view.leaving = record.leaving;
    for (const auto& [device_id, faults] : record.faults) {
      const int64_t left_nanos = faults.rest_until_boot_nanos - clock_->BootNanos();
      if (left_nanos <= 0) continue;
      view.rests.push_back(
          {device_id, static_cast<int>(faults.counted.size()), clock_->WallMicros() + left_nanos / 1000});
    }
    for (const auto& [key, hold] : record.holds) {
      const auto job = jobs_.find(hold.key.job_id);
      view.attempts.push_back({hold.key, job == jobs_.end() ? "" : job->second.job.project, hold.host_bytes,
                               hold.device_bytes, hold.cpu_threads});
      view.host_bytes_reserved += hold.host_bytes;
      view.device_bytes_reserved += hold.device_bytes;
      view.cpu_threads_reserved += hold.cpu_threads;
    }
    views.push_back(std::move(view));
  }
  return views;
}

FleetView DispatcherCore::Fleet() const {
  FleetView fleet;
  for (const auto& [device_class, facts] : classes_) {
    FleetView::Class entry;
    entry.facts = facts;
    for (const auto& [id, record] : workers_) {
      const auto& devices = record.worker->devices;
      entry.workers += std::any_of(devices.begin(), devices.end(), [&](const DeviceEntry& device) {
        return device.facts.device_class == device_class;
      });
    }
    fleet.classes.push_back(std::move(entry));
  }
  std::map<std::string, std::pair<uint64_t, const ModelEntry*>> models;
  for (const auto& [id, record] : workers_) {
    for (const ModelEntry& model : record.worker->models) {
      auto& newest = models[model.name];
      if (newest.second == nullptr || record.registered > newest.first) newest = {record.registered, &model};
    }
  }
  for (const auto& [name, entry] : models) fleet.models.push_back(*entry.second);
  return fleet;
}

std::optional<double> ErrorRatio(int64_t bytes_peak, int64_t bytes_planned) {
  if (bytes_peak <= 0 || bytes_planned <= 0) return std::nullopt;
  return static_cast<double>(bytes_peak) / static_cast<double>(bytes_planned) - 1;
}

DispatcherStats DispatcherCore::Stats() const {
  DispatcherStats stats = stats_;
  stats.jobs_by_state.fill(0);
  for (const auto& [id, record] : jobs_) {
    if (IsTerminal(record.job.state)) continue;
    ++stats.jobs_by_state[static_cast<size_t>(record.job.state)];
  }
  if (waits_ != nullptr) {
    const PlanResult& result = waits_->result();
    for (const Wait& wait : result.waits) {
      ++stats.waiting_by_reason[result.verdicts[static_cast<size_t>(wait.verdict)].reason];
    }
  }
  for (const auto& [end, count] : stats.finished_total) {
    stats.jobs_by_state[static_cast<size_t>(end.first)] += static_cast<int64_t>(count);
  }
  for (const auto& [id, record] : workers_) {
    const Worker& worker = *record.worker;
    WorkerStats entry;
    entry.worker_id = id;
    entry.online = record.online;
    entry.draining = worker.draining || record.leaving;
    entry.heartbeat_age_seconds = static_cast<double>(clock_->BootNanos() - record.last_sync_boot_nanos) / 1e9;
    entry.attempts = static_cast<int>(record.holds.size());
    entry.host_bytes_total = worker.host_bytes_total;
    entry.cpu_threads_total = worker.cpu_threads_total;
    for (const DeviceEntry& device : worker.devices) {
      entry.devices.push_back({device.id, device.facts.device_class, device.facts.device_bytes, 0, 0});
    }
    Measured host;
    Measured device_memory;
    for (const auto& [key, hold] : record.holds) {
      entry.host_bytes_reserved += hold.host_bytes;
      entry.host_bytes_used += hold.host_bytes_peak;
      entry.cpu_threads_reserved += hold.cpu_threads;
      if (hold.kind == AttemptKind::kTrain) {
        host.Add(hold.host_bytes_peak, hold.host_bytes);
        device_memory.Add(hold.device_bytes_peak, hold.device_bytes);
      }
      for (WorkerStats::Device& device : entry.devices) {
        if (device.device_id != hold.device_id) continue;
        device.bytes_reserved += hold.device_bytes;
        device.bytes_used += hold.device_bytes_peak;
      }
    }
    entry.host_estimate_error_ratio = ErrorRatio(host.bytes_peak, host.bytes_planned);
    entry.device_estimate_error_ratio = ErrorRatio(device_memory.bytes_peak, device_memory.bytes_planned);
    stats.workers.push_back(std::move(entry));
  }
  return stats;
}

}  // namespace longhaul::server
