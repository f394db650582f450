// What the dispatcher leans on, in memory: a blob index, a planner whose figures the test sets, a sink that records.
#pragma once

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "model/memory_plan.h"
#include "server/core/demands.h"
#include "server/dispatcher.h"

namespace longhaul::server {

// Thread-safe.
class FakeBlobs final : public BlobIndex {
 public:
  BlobRef Add(const std::string& content) {
    const BlobRef blob{Sha256Hex(content), static_cast<int64_t>(content.size())};
    std::lock_guard lock(mutex_);
    there_.insert(blob.sha256);
    sizes_[blob.sha256] = blob.size_bytes;
    return blob;
  }
  void Lose(const BlobRef& blob) {
    std::lock_guard lock(mutex_);
    there_.erase(blob.sha256);
  }
  int64_t SizeOf(const std::string& sha256) {
    std::lock_guard lock(mutex_);
    return sizes_[sha256];
  }
  absl::StatusOr<bool> Present(const BlobRef& blob) override {
    std::lock_guard lock(mutex_);
    return there_.contains(blob.sha256);
  }
  absl::Status Remove(const BlobRef& blob) override {
    Lose(blob);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<BlobRef>> List(const std::string& prefix) override {
    std::lock_guard lock(mutex_);
    std::vector<BlobRef> blobs;
    for (const std::string& sha256 : there_) {
      if (sha256.compare(0, prefix.size(), prefix) == 0) blobs.push_back({sha256, sizes_[sha256]});
    }
    return blobs;
  }

 private:
  std::mutex mutex_;  // guards there_, sizes_
  std::set<std::string> there_;
  std::map<std::string, int64_t> sizes_;
};

// Minimum takes train.sequence_length KiB of host RAM, balanced twice, whole four times that; on a GPU the same of its
// memory, and a tenth of it of host RAM. All CPU threads asked for, or the device's.
class FakePlanner final : public Planner {
 public:
  Demand Evaluate(const PlanRequest& request, const DeviceFacts& facts, PlanPoint point, bool explain) const override {
    const int64_t factor = point == PlanPoint::kMinimum ? 1 : point == PlanPoint::kBalanced ? 2 : 4;
    const int64_t bytes = request.train.longest() * 1024 * factor;
    const bool cpu = facts.kind == DeviceKind::kCpu;
    int64_t there = cpu ? facts.host_bytes : facts.device_bytes;
    if (request.share == DeviceShare::kBytes) there = std::min(there, request.share_bytes);
    Demand demand;
    demand.fits = bytes <= there;
    if (!demand.fits) {
      demand.why = "needs " + std::to_string(bytes) + " bytes, " + std::to_string(there) + " are there";
      if (explain) demand.longest_sequence_length = there / 1024 / factor;
      return demand;
    }
    demand.device_bytes = cpu ? 0 : bytes;
    demand.host_bytes = cpu ? bytes : bytes / 10;
    demand.disk_bytes = 1024;
    demand.cpu_threads = request.train.cpu_threads > 0 ? request.train.cpu_threads : facts.cpu_threads;
    demand.step_seconds = 1;
    demand.total_seconds = static_cast<double>(request.total_steps);
    return demand;
  }
  absl::StatusOr<std::string> PlanJson(const PlanRequest& request, const DeviceFacts& facts,
                                       PlanPoint point) const override {
    const Demand demand = Evaluate(request, facts, point, false);
    if (!demand.fits) return MakeError(absl::StatusCode::kResourceExhausted, "PLAN_DOES_NOT_FIT", demand.why);
    return std::string("{\"point\":\"") + Name(point) + "\",\"host_bytes\":" + std::to_string(demand.host_bytes) + "}";
  }
};

// Thread-safe.
class RecordingSink final : public EventSink {
 public:
  void OnEvent(const Job& job, const JobEvent& event) override {
    std::lock_guard lock(mutex_);
    events_[job.id].push_back(event);
  }
  void OnProgress(const std::string& job_id, const MetricPoint& point) override {
    std::lock_guard lock(mutex_);
    progress_[job_id].push_back(point);
  }
  void OnJobDeleted(const std::string& job_id) override {
    std::lock_guard lock(mutex_);
    deleted_.push_back(job_id);
  }
  void OnLogComplete(const std::string& job_id, int attempt) override {
    std::lock_guard lock(mutex_);
    logs_.emplace_back(job_id, attempt);
  }
  std::vector<JobEvent> events(const std::string& job_id) {
    std::lock_guard lock(mutex_);
    return events_[job_id];
  }
  size_t progress_count(const std::string& job_id) {
    std::lock_guard lock(mutex_);
    return progress_[job_id].size();
  }

 private:
  std::mutex mutex_;  // guards the rest
  std::map<std::string, std::vector<JobEvent>> events_;
  std::map<std::string, std::vector<MetricPoint>> progress_;
  std::vector<std::string> deleted_;
  std::vector<std::pair<std::string, int>> logs_;
};

inline constexpr char kTestModel[] = "tiny";
inline constexpr char kTestDigest[] = "d1";

// A CPU worker with one device and the test model.
inline Worker TestWorker(const std::string& id, int64_t host_bytes = int64_t{8} << 30, int cpu_threads = 4) {
  Worker worker;
  worker.id = id;
  worker.host_name = id + ".test";
  worker.plan_version = kPlanVersion;
  worker.host_bytes_total = host_bytes;
  worker.disk_bytes_total = int64_t{100} << 30;
  worker.cpu_threads_total = cpu_threads;
  DeviceEntry device;
  device.id = "cpu-0";
  device.facts.device_class = "cpu-avx2-" + std::to_string(cpu_threads) + "t";
  device.facts.host_bytes = host_bytes;
  device.facts.disk_bytes = worker.disk_bytes_total;
  device.facts.cpu_threads = cpu_threads;
  worker.devices.push_back(device);
  ModelEntry model;
  model.name = kTestModel;
  model.digest = kTestDigest;
  worker.models.push_back(model);
  return worker;
}

inline Job TestJob(const BlobRef& dataset, int cpu_threads = 1) {
  Job job;
  job.project = "default";
  job.model = kTestModel;
  job.model_digest = kTestDigest;
  job.inputs = {dataset};
  job.train_shape.sequence_length = 1024;
  job.train_shape.cpu_threads = cpu_threads;
  return job;
}

}  // namespace longhaul::server
