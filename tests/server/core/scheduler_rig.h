// A snapshot made by hand for tests of the scheduler: workers, jobs, running attempts; and what a pass says as a line.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/scheduler.h"
#include "tests/fakes/fake_server_parts.h"

namespace longhaul::server {

inline constexpr int64_t kSecond = 1'000'000;
inline constexpr PlanTime kNow{1'700'000'000 * kSecond, 1'000 * kSecond};

class SchedulerRig : public ::testing::Test {
 protected:
  Worker& AddWorker(const std::string& id, int64_t host_bytes = 8 * kGiB, int threads = 4) {
    workers_.push_back(TestWorker(id, host_bytes, threads));
    return workers_.back();
  }
  // `gpus` devices of `device_bytes` each.
  Worker& AddGpuWorker(const std::string& id, int64_t device_bytes, int gpus = 1, int64_t host_bytes = 64 * kGiB,
                       int threads = 64) {
    Worker& worker = AddWorker(id, host_bytes, threads);
    DeviceFacts facts = worker.devices[0].facts;
    facts.kind = DeviceKind::kCuda;
    facts.device_class = "gpu";
    facts.device_bytes = device_bytes;
    worker.devices.clear();
    for (int i = 0; i < gpus; ++i) worker.devices.push_back({"gpu-" + std::to_string(i), facts});
    return worker;
  }

  // A job of `gib` at the minimum point, twice that balanced, four times whole; `seconds` long (0 = nobody knows).
  Job& AddJob(const std::string& id, int64_t gib, int threads = 1, int64_t seconds = 0) {
    Job job;
    job.id = id;
    job.project = "default";
    job.model = kTestModel;
    job.model_digest = kTestDigest;
    job.state = JobState::kQueued;
    job.create_number = jobs_.size() + 1;
    job.train_shape.sequence_length = gib * (1 << 20);
    job.train_shape.cpu_threads = threads;
    job.total_steps = seconds;  // FakePlanner: a second each
    jobs_.push_back(job);
    return jobs_.back();
  }
  // One that takes the minimum point only.
  Job& AddFitJob(const std::string& id, int64_t gib, int threads = 1, int64_t seconds = 0) {
    Job& job = AddJob(id, gib, threads, seconds);
    job.device_share = DeviceShare::kFit;
    return job;
  }

  // On a CPU worker `need_gib` of host RAM, on a GPU of the device.
  RunningAttempt& Run(const std::string& worker, const std::string& job, int64_t need_gib, int threads,
                      int64_t seconds_left, int device = 0) {
    RunningAttempt running;
    running.job_id = job;
    running.project = "default";
    running.device = device;
    running.need.cpu_threads = threads;
    running.need.attempts = 1;
    for (const Worker& candidate : workers_) {
      if (candidate.id != worker) continue;
      const bool cpu = candidate.devices.at(static_cast<size_t>(device)).facts.kind == DeviceKind::kCpu;
      (cpu ? running.need.host_bytes : running.need.device_bytes) = need_gib * kGiB;
    }
    running.end_boot_micros = kNow.boot_micros + seconds_left * kSecond;
    running_[worker].push_back(running);
    return running_[worker].back();
  }

  Snapshot MakeSnapshot() {
    Snapshot snapshot;
    for (const Job& job : jobs_) {
      if (job.state != JobState::kQueued) {
        snapshot.waiting.push_back({&job, nullptr});
        continue;
      }
      const std::string key =
          std::to_string(job.train_shape.longest()) + "/" + std::to_string(job.train_shape.cpu_threads) + "/" +
          std::to_string(static_cast<int>(job.device_share)) + "/" + std::to_string(job.total_steps);
      std::shared_ptr<const JobDemands>& shared = demands_[key];
      if (shared == nullptr) {
        JobDemands demands;
        for (const auto& [device_class, facts] : LargestOfEachClass()) {
          ClassDemands& points = demands[device_class];
          points = DemandsOn(FakePlanner(), PlanRequestOf(job), facts);
          const auto slow = step_seconds_.find(device_class);
          if (slow == step_seconds_.end()) continue;
          for (Demand& demand : points) demand.step_seconds = slow->second;
        }
        shared = std::make_shared<const JobDemands>(std::move(demands));
      }
      snapshot.waiting.push_back({&job, shared});
    }
    for (const Worker& worker : workers_) {
      WorkerSlot slot;
      slot.worker = std::make_shared<const Worker>(worker);
      slot.reachable = !unreachable_.contains(worker.id);
      slot.plan_matches = worker.plan_version == kPlanVersion;
      slot.running = running_[worker.id];
      slot.rests = rests_[worker.id];
      snapshot.workers.push_back(std::move(slot));
    }
    snapshot.shares = shares_;
    snapshot.quotas = quotas_;
    demands_.clear();
    return snapshot;
  }

  PlanResult Pass() { return Plan(MakeSnapshot(), kNow); }

  // "a>w1:whole x!b b?WAITING_FOR_HOST_RAM@1": a starts, x makes room for b, b waits.
  static std::string Text(const PlanResult& result, const std::deque<Job>& jobs) {
    std::vector<std::string> words;
    for (const Start& start : result.starts) {
      words.push_back(start.job_id + ">" + start.worker_id + ":" +
                      (start.kind == AttemptKind::kValidate ? "validate" : Name(start.point)));
    }
    for (const Preemption& one : result.preemptions) words.push_back(one.job_id + "!" + one.for_job_id);
    for (size_t i = 0; i < result.waits.size(); ++i) {
      const Job& job = jobs.at(result.waits[i].create_number - 1);
      words.push_back(job.id + "?" + Name(result.verdicts.at(static_cast<size_t>(result.waits[i].verdict)).reason) +
                      "@" + std::to_string(i + 1));
    }
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
    return text;
  }
  std::string PassText() { return Text(Pass(), jobs_); }
  std::string DetailOf(const PlanResult& result, size_t wait) {
    return Describe(result.verdicts.at(static_cast<size_t>(result.waits.at(wait).verdict)));
  }
  // Seconds from now until the expected start; -1 = unknown.
  int64_t ExpectedIn(const PlanResult& result, size_t wait) {
    const int64_t at = result.waits.at(wait).expected_wall_micros;
    return at == 0 ? -1 : (at - kNow.wall_micros) / kSecond;
  }

  std::deque<Worker> workers_;
  std::deque<Job> jobs_;
  std::map<std::string, std::vector<RunningAttempt>> running_;
  std::map<std::string, std::vector<DeviceRest>> rests_;
  std::map<std::string, double> shares_;
  std::map<std::string, double> step_seconds_;  // of device classes, instead of the planner's
  Quotas quotas_;
  std::set<std::string> unreachable_;

 private:
  std::map<std::string, DeviceFacts> LargestOfEachClass() const {
    std::map<std::string, DeviceFacts> classes;
    for (const Worker& worker : workers_) {
      for (const DeviceEntry& device : worker.devices) {
        const auto [at, added] = classes.emplace(device.facts.device_class, device.facts);
        if (!added && device.facts.host_bytes > at->second.host_bytes) at->second = device.facts;
      }
    }
    return classes;
  }

  std::map<std::string, std::shared_ptr<const JobDemands>> demands_;
};

}  // namespace longhaul::server
