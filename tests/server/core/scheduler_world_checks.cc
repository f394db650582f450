// What must hold after every pass, worked out independently of the scheduler's own arrays.
#include <algorithm>
#include <tuple>

#include "base/limits.h"
#include "gtest/gtest.h"
#include "tests/server/core/scheduler_world.h"

namespace longhaul::server {
namespace {

struct Sum {
  std::map<int, int64_t> device_bytes;
  int64_t host_bytes = 0;
  int64_t disk_bytes = 0;
  int cpu_threads = 0;
  void Add(int device, const Need& need) {
    if (device >= 0) device_bytes[device] += need.device_bytes;
    host_bytes += need.host_bytes;
    disk_bytes += need.disk_bytes;
    cpu_threads += need.cpu_threads;
  }
  bool Within(const Worker& worker) const {
    for (const auto& [device, bytes] : device_bytes) {
      if (bytes > worker.devices.at(static_cast<size_t>(device)).facts.device_bytes) return false;
    }
    return host_bytes <= worker.host_bytes_total && disk_bytes <= worker.disk_bytes_total &&
           cpu_threads <= worker.cpu_threads_total;
  }
};

int DeviceIndex(const Worker& worker, const std::string& id) {
  for (size_t d = 0; d < worker.devices.size(); ++d) {
    if (worker.devices[d].id == id) return static_cast<int>(d);
  }
  return -1;
}

bool HasModel(const Worker& worker, const std::string& digest) {
  return std::any_of(worker.models.begin(), worker.models.end(),
                     [&](const ModelEntry& model) { return model.digest == digest; });
}

}  // namespace

void SchedulerWorld::CheckPass(const PlanResult& result) {
  CheckEveryJobIsThere(result);
  CheckOrder(result);
  CheckFuture(result);
  CheckHead(result);
  CheckRefusals(result);
  CheckPreemptions(result);
}

// Started or waiting, once, and who waits has a reason and a sentence.
void SchedulerWorld::CheckEveryJobIsThere(const PlanResult& result) {
  std::set<uint64_t> seen;
  for (const Start& start : result.starts) EXPECT_TRUE(seen.insert(std::stoul(start.job_id.substr(1))).second);
  for (const Wait& wait : result.waits) {
    EXPECT_TRUE(seen.insert(wait.create_number).second);
    const Verdict& verdict = result.verdicts.at(static_cast<size_t>(wait.verdict));
    EXPECT_NE(verdict.reason, Reason::kNone) << wait.create_number;
    EXPECT_NE(Describe(verdict), "") << wait.create_number;
    EXPECT_TRUE(wait.expected_wall_micros == 0 || wait.expected_wall_micros >= now_.wall_micros);
    if (wait.reservation >= 0) {
      EXPECT_EQ(result.reservations.at(static_cast<size_t>(wait.reservation)).create_number, wait.create_number);
    }
  }
  EXPECT_EQ(seen, waiting_);
  EXPECT_LE(result.reservations.size(), static_cast<size_t>(limits::kMaxReservations));
}

void SchedulerWorld::CheckOrder(const PlanResult& result) {
  const auto key = [&](const Wait& wait) {
    const Job& job = jobs_[wait.create_number - 1];
    const auto share = shares_.find(job.project);
    return std::tuple(-static_cast<int>(job.priority), share == shares_.end() ? 0.0 : share->second, job.create_number);
  };
  for (size_t i = 1; i < result.waits.size(); ++i) EXPECT_LT(key(result.waits[i - 1]), key(result.waits[i]));
}

// With what runs, what this pass starts and what it reserves, nothing is overcommitted at any reserved start: so no
// start delays a reservation, and no reservation another.
void SchedulerWorld::CheckFuture(const PlanResult& result) {
  const auto ends = [&](const std::string& id, int64_t end) {
    for (const Preemption& one : result.preemptions) {
      if (one.job_id == id) return std::min(end, now_.boot_micros + limits::kStopSeconds * 1'000'000);
    }
    return end;
  };
  for (const Reservation& at : result.reservations) {
    const Worker& worker = *at.worker;
    Sum sum;
    for (const auto& [id, running] : running_) {
      if (running.worker != worker.id || ends(id, running.attempt.end_boot_micros) <= at.start_boot_micros) continue;
      sum.Add(running.attempt.device, running.attempt.need);
    }
    for (const Start& start : result.starts) {
      if (start.worker_id != worker.id) continue;
      const Job& job = jobs_[std::stoul(start.job_id.substr(1)) - 1];
      const int64_t done = job.last_checkpoint.has_value() ? job.last_checkpoint->step : 0;
      const double seconds = start.kind == AttemptKind::kValidate
                                 ? static_cast<double>(limits::kValidateSeconds)
                                 : start.demand.step_seconds * static_cast<double>(job.total_steps - done) +
                                       static_cast<double>(limits::kAttemptOverheadSeconds);
      if (now_.boot_micros + static_cast<int64_t>(seconds * 1e6) <= at.start_boot_micros) continue;
      sum.Add(DeviceIndex(worker, start.device_id), NeedOf(start.demand));
    }
    for (const Reservation& other : result.reservations) {
      if (other.worker->id != worker.id || other.start_boot_micros > at.start_boot_micros ||
          other.end_boot_micros <= at.start_boot_micros) {
        continue;
      }
      sum.Add(other.device, other.need);
    }
    EXPECT_TRUE(sum.Within(worker)) << "at the start that is reserved for " << at.job_id << " on " << worker.id;
  }
}

// Who is first in the queue is told a start; while nothing comes before it, it starts by then.
void SchedulerWorld::CheckHead(const PlanResult& result) {
  const uint64_t head = result.waits.empty() ? 0 : result.waits.front().create_number;
  for (const Start& start : result.starts) {
    const uint64_t number = std::stoul(start.job_id.substr(1));
    if (head != 0 && number > head && options_.one_queue) ++backfills_;
  }
  for (const auto& [number, promised] : promised_) {
    if (!waiting_.contains(number)) continue;
    const bool started = std::any_of(result.starts.begin(), result.starts.end(), [&, n = number](const Start& start) {
      return std::stoul(start.job_id.substr(1)) == n;
    });
    if (started) {
      EXPECT_LE(now_.boot_micros, promised) << "j" << number << " starts later than it was told";
      continue;
    }
    for (const Reservation& kept : result.reservations) {
      EXPECT_TRUE(kept.create_number != number || kept.start_boot_micros <= promised) << "j" << number << " is put off";
    }
    EXPECT_LT(now_.boot_micros, promised) << "j" << number << " was told to have started";
  }
  promised_.clear();
  if (head == 0 || result.waits.front().reservation < 0) return;
  promised_[head] = result.reservations.at(static_cast<size_t>(result.waits.front().reservation)).start_boot_micros;
}

// Where the pass says that something is short, nothing that the job may use has room after the starts of the pass.
void SchedulerWorld::CheckRefusals(const PlanResult& result) {
  for (const Wait& wait : result.waits) {
    const Reason reason = result.verdicts.at(static_cast<size_t>(wait.verdict)).reason;
    const bool is_short = reason == Reason::kWaitingForVram || reason == Reason::kWaitingForHostRam ||
                          reason == Reason::kWaitingForDisk || reason == Reason::kWaitingForCpuThreads;
    const Job& job = jobs_[wait.create_number - 1];
    if (!is_short || job.state != JobState::kQueued) continue;
    const JobDemands& demands = *WaitingOf(job).demands;
    for (const auto& [id, worker] : workers_) {
      const bool failed =
          job.attempt.outcome == AttemptOutcome::kFailed || job.attempt.outcome == AttemptOutcome::kLost;
      if (unreachable_.contains(id) || !HasModel(*worker, job.model_digest)) continue;
      if (failed && job.attempt.worker_id == id) continue;
      Sum base;
      if (const auto missing = missing_.find(id); missing != missing_.end()) base.host_bytes = missing->second;
      for (const auto& [job_id, running] : running_) {
        if (running.worker == id) base.Add(running.attempt.device, running.attempt.need);
      }
      for (const Start& start : result.starts) {
        if (start.worker_id == id) base.Add(DeviceIndex(*worker, start.device_id), NeedOf(start.demand));
      }
      for (size_t d = 0; d < worker->devices.size(); ++d) {
        const std::string& device_class = worker->devices[d].facts.device_class;
        Sum with = base;
        with.Add(static_cast<int>(d), NeedOf(At(demands.at(device_class), PlanPoint::kMinimum)));
        EXPECT_FALSE(with.Within(*worker)) << job.id << " would fit on " << id << "/" << d << " but is told "
                                           << Describe(result.verdicts.at(static_cast<size_t>(wait.verdict)));
      }
    }
  }
}

void SchedulerWorld::CheckPreemptions(const PlanResult& result) {
  std::set<std::string> once;
  for (const Preemption& one : result.preemptions) {
    EXPECT_TRUE(once.insert(one.job_id).second) << one.job_id << " twice in a pass";
    const auto victim = running_.find(one.job_id);
    ASSERT_NE(victim, running_.end());
    const Job& job = jobs_[std::stoul(one.job_id.substr(1)) - 1];
    const Job& winner = jobs_[std::stoul(one.for_job_id.substr(1)) - 1];
    EXPECT_LT(job.priority, winner.priority);
    EXPECT_LT(job.preemptions, limits::kMaxPreemptionsPerJob);
    EXPECT_GE(now_.boot_micros - victim->second.begin, limits::kPreemptMinRunMs * 1'000) << one.job_id;
    EXPECT_FALSE(victim->second.stopping);
    EXPECT_TRUE(waiting_.contains(winner.create_number));
  }
}

// Nothing is overcommitted now, and no quota is exceeded.
void SchedulerWorld::CheckNow() {
  std::map<std::string, Sum> sums;
  std::map<std::string, int> by_project;
  std::map<std::string, int> validations;
  for (const auto& [id, running] : running_) {
    sums[running.worker].Add(running.attempt.device, running.attempt.need);
    if (running.validation) {
      ++validations[running.worker];
    } else {
      ++by_project[running.attempt.project];
    }
  }
  for (const auto& [id, sum] : sums) EXPECT_TRUE(sum.Within(*workers_.at(id))) << id << " is overcommitted";
  for (const auto& [id, count] : validations) EXPECT_LE(count, workers_.at(id)->cpu_threads_total);
  for (const auto& [project, count] : by_project) {
    const int most = QuotaOf(quotas_, project).jobs;
    EXPECT_TRUE(most == 0 || count <= most) << project << " runs " << count;
  }
}

}  // namespace longhaul::server
