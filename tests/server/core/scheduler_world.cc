#include "tests/server/core/scheduler_world.h"

#include <algorithm>

#include "base/limits.h"
#include "base/units.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

constexpr size_t kTraceLines = 20;
constexpr int kClasses = 3;
const char* const kProjects[] = {"ants", "bees", "cats"};

std::string ClassName(int i) { return i == 0 ? "cpu" : "gpu-" + std::to_string(i); }

// "j3" -> 3, which is its create_number.
size_t NumberOf(const std::string& id) { return std::stoul(id.substr(1)); }

std::string Dump(const PlanResult& result) {
  std::string text;
  for (const Start& start : result.starts) {
    text += start.job_id + ">" + start.worker_id + "/" + start.device_id + ":" + Name(start.point) + "\n";
  }
  for (const Preemption& one : result.preemptions) text += one.job_id + "!" + one.for_job_id + "\n";
  for (const Reservation& kept : result.reservations) {
    text += kept.job_id + "=" + kept.worker->id + "/" + std::to_string(kept.device) + " " +
            std::to_string(kept.start_boot_micros) + "\n";
  }
  return text + std::to_string(result.waiting) + " " + std::to_string(result.look_again_boot_micros) + "\n";
}

// And what is told of those who wait.
std::string DumpAll(const PlanResult& result) {
  std::string text = Dump(result);
  for (const Wait& wait : result.waits) {
    const Verdict& verdict = result.verdicts.at(static_cast<size_t>(wait.verdict));
    text += std::to_string(wait.create_number) + "?" + Name(verdict.reason) + " " + Describe(verdict) + " @" +
            std::to_string(wait.expected_wall_micros) + " r" + std::to_string(wait.reservation) + "\n";
  }
  return text;
}

}  // namespace

SchedulerWorld::SchedulerWorld(uint64_t seed, WorldOptions options) : seed_(seed), options_(options) {
  MakeFleet();
  MakeShapes();
  MakeJobs();
  if (options_.quotas) quotas_["ants"].jobs = 2;
  table_ = std::make_unique<SchedulerTable>(quotas_);
  for (const auto& [id, worker] : workers_) Changed(id);
}

void SchedulerWorld::Note(const std::string& line) {
  trace_.push_back(std::to_string(now_.boot_micros / kMicrosPerSecond) + ": " + line);
  if (trace_.size() > kTraceLines) trace_.pop_front();
}

void SchedulerWorld::MakeFleet() {
  for (int i = 0; i < options_.workers; ++i) {
    Worker worker;
    worker.id = "w" + std::to_string(i);
    worker.host_bytes_total = (8 + static_cast<int64_t>(Draw(24))) * kGiB;
    worker.disk_bytes_total = (20 + static_cast<int64_t>(Draw(40))) * kGiB;
    worker.cpu_threads_total = 2 + static_cast<int>(Draw(8));
    // The first one could run every job, so that nobody waits for ever.
    if (i == 0) worker.cpu_threads_total += 2;
    const int device_class = i == 0 ? 1 : static_cast<int>(Draw(kClasses));
    const int devices = device_class == 0 ? 1 : 1 + static_cast<int>(Draw(3));
    for (int d = 0; d < devices; ++d) {
      DeviceEntry device;
      device.id = "d" + std::to_string(d);
      device.facts.device_class = ClassName(device_class);
      device.facts.device_bytes = device_class == 0 ? 0 : 16 * kGiB;
      worker.devices.push_back(device);
    }
    ModelEntry model;
    model.digest = "m0";
    worker.models.push_back(model);
    if (i == 0 || Chance(50)) {
      model.digest = "m1";
      worker.models.push_back(model);
    }
    workers_[worker.id] = std::make_shared<const Worker>(worker);
  }
}

// Random needs at three points, the larger ones larger in everything and a little faster.
void SchedulerWorld::MakeShapes() {
  for (int i = 0; i < options_.shapes; ++i) {
    JobDemands demands;
    const int64_t device = (1 + static_cast<int64_t>(Draw(10))) * kGiB;
    const int64_t host = (1 + static_cast<int64_t>(Draw(5))) * kGiB;
    const int threads = 1 + static_cast<int>(Draw(3));
    for (int c = 0; c < kClasses; ++c) {
      for (int point = 1; point <= 3; ++point) {
        Demand& demand = demands[ClassName(c)][static_cast<size_t>(point) - 1];
        demand.fits = Chance(85) || point == 1;
        demand.why = demand.fits ? "" : "needs more";
        demand.device_bytes = c == 0 ? 0 : device * (2 + point) / 3;
        demand.host_bytes = c == 0 ? (device + host) * (2 + point) / 3 : host;
        demand.disk_bytes = kGiB;
        demand.cpu_threads = threads;
        demand.step_seconds = (c == 0 ? 3.0 : 2.0 / c) / (point == 3 ? 1.25 : 1);
      }
    }
    shapes_.push_back(std::make_shared<const JobDemands>(std::move(demands)));
  }
}

void SchedulerWorld::MakeJobs() {
  int64_t at = now_.boot_micros;
  for (int i = 0; i < options_.jobs; ++i) {
    Job job;
    job.id = "j" + std::to_string(i + 1);
    job.create_number = static_cast<uint64_t>(i) + 1;
    job.project = options_.one_queue ? kProjects[0] : kProjects[Draw(3)];
    job.priority = options_.one_queue ? PriorityClass::kNormal : static_cast<PriorityClass>(1 + Draw(3));
    job.model_digest = Chance(80) ? "m0" : "m1";
    job.total_steps = 10 + static_cast<int64_t>(Draw(Chance(30) ? 4'000 : 300));
    job.state = !options_.one_queue && Chance(20) ? JobState::kValidating : JobState::kQueued;
    jobs_.push_back(job);
    shape_of_.push_back(static_cast<int>(Draw(shapes_.size())));
    arrivals_.push_back(at);
    if (Chance(60)) at += static_cast<int64_t>(Draw(400)) * kMicrosPerSecond;
  }
}

WaitingJob SchedulerWorld::WaitingOf(const Job& job) const {
  const auto& demands = shapes_[static_cast<size_t>(shape_of_[job.create_number - 1])];
  return {&job, job.state == JobState::kQueued ? demands : nullptr};
}

void SchedulerWorld::Put(const Job& job) {
  waiting_.insert(job.create_number);
  table_->PutWaiting(WaitingOf(job));
}

WorkerSlot SchedulerWorld::SlotOf(const std::string& id) const {
  WorkerSlot slot;
  slot.worker = workers_.at(id);
  slot.reachable = !unreachable_.contains(id);
  slot.plan_matches = true;
  if (const auto missing = missing_.find(id); missing != missing_.end()) slot.host_bytes_missing = missing->second;
  for (const auto& [job_id, running] : running_) {
    if (running.worker == id) slot.running.push_back(running.attempt);
  }
  return slot;
}

Snapshot SchedulerWorld::MakeSnapshot() const {
  Snapshot snapshot;
  for (const uint64_t number : waiting_) snapshot.waiting.push_back(WaitingOf(jobs_[number - 1]));
  std::reverse(snapshot.waiting.begin(), snapshot.waiting.end());  // any order will do
  for (const auto& [id, worker] : workers_) snapshot.workers.push_back(SlotOf(id));
  snapshot.shares = shares_;
  snapshot.quotas = quotas_;
  return snapshot;
}

void SchedulerWorld::Arrive() {
  while (arrived_ < jobs_.size() && arrivals_[arrived_] <= now_.boot_micros) {
    Put(jobs_[arrived_]);
    Note(jobs_[arrived_].id + " arrives, " + std::to_string(static_cast<int>(jobs_[arrived_].priority)) + " " +
         jobs_[arrived_].project);
    ++arrived_;
    if (!options_.one_queue) promised_.clear();  // it may be before the head
  }
}

// Back into the queue from the step it has come to.
void SchedulerWorld::Requeue(Job* job, const Running& was) {
  const double seconds = static_cast<double>(now_.boot_micros - was.begin) / 1e6;
  const int64_t before = job->last_checkpoint.has_value() ? job->last_checkpoint->step : 0;
  Checkpoint checkpoint;
  checkpoint.step =
      std::min(job->total_steps - 1, before + static_cast<int64_t>(std::max(0.0, seconds) / was.step_seconds));
  if (checkpoint.step > 0) job->last_checkpoint = checkpoint;
  Put(*job);
  promised_.clear();
}

void SchedulerWorld::EndDue() {
  std::vector<std::string> due;
  for (const auto& [id, running] : running_) {
    if (running.attempt.end_boot_micros <= now_.boot_micros) due.push_back(id);
  }
  for (const std::string& id : due) {
    const Running was = running_.at(id);
    running_.erase(id);
    Changed(was.worker);
    Job& job = jobs_[NumberOf(id) - 1];
    job.attempt.end_wall_micros = now_.wall_micros;
    job.attempt.outcome = AttemptOutcome::kStopped;
    if (was.validation) {
      job.state = JobState::kQueued;
      Put(job);
      promised_.clear();
    } else if (was.stopping) {
      Requeue(&job, was);
    } else if (options_.trouble && Chance(15)) {
      job.attempt.outcome = AttemptOutcome::kFailed;
      job.not_before_wall_micros = now_.wall_micros + static_cast<int64_t>(Draw(100)) * kMicrosPerSecond;
      Requeue(&job, was);
      Note(id + " fails on " + was.worker);
      continue;
    }
    Note(id + (was.stopping ? " has stopped" : " ends"));
  }
}

void SchedulerWorld::Trouble() {
  if (!options_.trouble || !Chance(10)) return;
  const std::string id = "w" + std::to_string(Draw(workers_.size()));
  if (Chance(30)) {
    if (missing_.erase(id) == 0) missing_[id] = static_cast<int64_t>(Draw(16)) * kGiB / 2;
    Note("of " + id + (missing_.contains(id) ? " others take memory" : " nobody takes memory"));
    Changed(id);
    promised_.clear();
    return;
  }
  if (unreachable_.erase(id) == 0) {
    unreachable_.insert(id);
    // Its attempts are lost.
    std::vector<std::string> lost;
    for (const auto& [job_id, running] : running_) {
      if (running.worker == id) lost.push_back(job_id);
    }
    for (const std::string& job_id : lost) {
      const Running was = running_.at(job_id);
      running_.erase(job_id);
      Job& job = jobs_[NumberOf(job_id) - 1];
      job.attempt.outcome = AttemptOutcome::kLost;
      if (was.validation) {
        Put(job);
      } else {
        Requeue(&job, was);
      }
    }
  }
  Note(id + (unreachable_.contains(id) ? " is lost" : " is back"));
  Changed(id);
  promised_.clear();
}

void SchedulerWorld::Apply(const PlanResult& result) {
  for (const Preemption& one : result.preemptions) {
    Running& victim = running_.at(one.job_id);
    victim.stopping = true;
    victim.attempt.end_boot_micros = now_.boot_micros + limits::kStopSeconds * kMicrosPerSecond;
    victim.attempt.preemptible_boot_micros = kNeverMicros;
    ++jobs_[NumberOf(one.job_id) - 1].preemptions;
    ++preemptions_;
    Changed(victim.worker);
    Note(one.job_id + " makes room for " + one.for_job_id);
  }
  for (const Start& start : result.starts) {
    Job& job = jobs_[NumberOf(start.job_id) - 1];
    waiting_.erase(job.create_number);
    table_->RemoveWaiting(job.create_number);
    promised_.erase(job.create_number);
    ++job.attempt.number;
    job.attempt.worker_id = start.worker_id;
    job.attempt.end_wall_micros = 0;
    job.attempt.outcome = AttemptOutcome::kNone;
    Running running;
    running.worker = start.worker_id;
    running.begin = now_.boot_micros;
    running.validation = start.kind == AttemptKind::kValidate;
    RunningAttempt& attempt = running.attempt;
    attempt.job_id = job.id;
    attempt.project = job.project;
    attempt.priority = job.priority;
    attempt.kind = start.kind;
    attempt.need = NeedOf(start.demand);
    double seconds = static_cast<double>(limits::kValidateSeconds);
    if (!running.validation) {
      const std::vector<DeviceEntry>& devices = workers_.at(start.worker_id)->devices;
      for (size_t d = 0; d < devices.size(); ++d) {
        if (devices[d].id == start.device_id) attempt.device = static_cast<int>(d);
      }
      const int64_t done = job.last_checkpoint.has_value() ? job.last_checkpoint->step : 0;
      running.step_seconds = start.demand.step_seconds;
      seconds = running.step_seconds * static_cast<double>(job.total_steps - done) +
                static_cast<double>(limits::kAttemptOverheadSeconds);
      if (job.preemptions < limits::kMaxPreemptionsPerJob) {
        attempt.preemptible_boot_micros = now_.boot_micros + limits::kPreemptMinRunMs * 1'000;
      }
    }
    attempt.end_boot_micros = now_.boot_micros + static_cast<int64_t>(seconds * 1e6);
    running_[job.id] = running;
    ++starts_;
    Changed(start.worker_id);
    Note(job.id + " starts on " + start.worker_id + ", " + Name(start.point) + ", " + std::to_string(seconds) + " s");
  }
}

void SchedulerWorld::Pass() {
  ++passes_;
  if (!options_.one_queue && Chance(30)) {
    for (const char* project : kProjects) shares_[project] = static_cast<double>(Draw(4)) / 4;
    for (const auto& [project, share] : shares_) table_->SetShare(project, share);
    promised_.clear();
  }
  // In either order: neither leaves anything behind for the other.
  const bool decide_first = Chance(50);
  std::string decided;
  if (decide_first) decided = Dump(table_->Decide(now_));
  const PlanResult result = table_->Plan(now_);
  if (!decide_first) decided = Dump(table_->Decide(now_));
  const Snapshot snapshot = MakeSnapshot();
  ASSERT_EQ(DumpAll(result), DumpAll(Plan(snapshot, now_))) << "kept and fresh tables disagree";
  ASSERT_EQ(decided, Dump(result)) << "a pass that tells decides something else";
  CheckPass(result);
  Apply(result);
  CheckNow();
  // Nothing else can happen before the next event: a pass at once starts nothing.
  const int64_t at = NextEvent(result.look_again_boot_micros);
  if (at == kNeverMicros) return;
  now_ = {now_.ToWall(at), at};
}

int64_t SchedulerWorld::NextEvent(int64_t look_again) const {
  int64_t next = look_again;
  if (arrived_ < jobs_.size()) next = std::min(next, arrivals_[arrived_]);
  for (const auto& [id, running] : running_) next = std::min(next, running.attempt.end_boot_micros);
  const bool passes = !unreachable_.empty() || !missing_.empty();
  if (next == kNeverMicros && passes) next = now_.boot_micros + 60 * kMicrosPerSecond;
  return std::max(next, now_.boot_micros);
}

void SchedulerWorld::Run(int most_passes) {
  while (!done() && passes_ < most_passes && !::testing::Test::HasFailure()) {
    Arrive();
    EndDue();
    Trouble();
    Pass();
  }
  if (!::testing::Test::HasFailure()) {
    EXPECT_TRUE(done()) << waiting_.size() << " jobs wait and " << running_.size() << " run after " << passes_;
  }
  if (!::testing::Test::HasFailure()) return;
  std::string text;
  for (const std::string& line : trace_) text += "  " + line + "\n";
  ADD_FAILURE() << "seed " << seed_ << ", pass " << passes_ << "\n" << text;
}

}  // namespace longhaul::server
