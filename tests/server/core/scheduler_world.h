// A fleet and its jobs over virtual time, with predictions that come true: what the property tests drive. Every pass
// runs twice, over a table that is kept and over a snapshot made afresh, and both must say the same.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "server/core/scheduler.h"
#include "server/core/scheduler_table.h"

namespace longhaul::server {

struct WorldOptions {
  int workers = 5;
  int jobs = 60;
  int shapes = 10;
  bool one_queue = false;  // one class, one project: then only backfill could delay the head
  bool trouble = false;    // workers drain and come back, attempts fail
  bool quotas = false;
};

class SchedulerWorld {
 public:
  SchedulerWorld(uint64_t seed, WorldOptions options);

  // Until every job has ended, or `most_passes` are over. Failures go to gtest, with the seed and the last events.
  void Run(int most_passes);
  int passes() const { return passes_; }
  int preemptions() const { return preemptions_; }
  int backfills() const { return backfills_; }
  int starts() const { return starts_; }
  bool done() const { return waiting_.empty() && arrived_ == jobs_.size() && running_.empty(); }

 private:
  struct Running {
    std::string worker;
    RunningAttempt attempt;
    int64_t begin = 0;
    double step_seconds = 0;
    bool validation = false;
    bool stopping = false;
  };

  uint64_t Draw(uint64_t n) { return CounterBits(seed_, ++draws_) % n; }
  bool Chance(uint64_t percent) { return Draw(100) < percent; }
  void Note(const std::string& line);
  void MakeFleet();
  void MakeShapes();
  void MakeJobs();

  void Arrive();
  void EndDue();
  void Trouble();
  void Pass();
  void Apply(const PlanResult& result);
  void Requeue(Job* job, const Running& was);
  int64_t NextEvent(int64_t look_again) const;

  Snapshot MakeSnapshot() const;
  WorkerSlot SlotOf(const std::string& id) const;
  WaitingJob WaitingOf(const Job& job) const;
  void Put(const Job& job);
  void Changed(const std::string& worker) { table_->PutWorker(SlotOf(worker)); }

  void CheckPass(const PlanResult& result);
  void CheckEveryJobIsThere(const PlanResult& result);
  void CheckOrder(const PlanResult& result);
  void CheckFuture(const PlanResult& result);
  void CheckHead(const PlanResult& result);
  void CheckRefusals(const PlanResult& result);
  void CheckPreemptions(const PlanResult& result);
  void CheckNow();

  const uint64_t seed_;
  const WorldOptions options_;
  uint64_t draws_ = 0;
  PlanTime now_{1'700'000'000'000'000, 1'000'000'000};
  std::map<std::string, std::shared_ptr<const Worker>> workers_;
  std::set<std::string> unreachable_;
  std::map<std::string, int64_t> missing_;  // of workers' host memory, taken by others
  std::vector<std::shared_ptr<const JobDemands>> shapes_;
  std::deque<Job> jobs_;
  std::vector<int64_t> arrivals_;
  std::vector<int> shape_of_;
  size_t arrived_ = 0;
  std::set<uint64_t> waiting_;  // create_number
  std::map<std::string, Running> running_;
  std::map<std::string, double> shares_;
  Quotas quotas_;
  std::unique_ptr<SchedulerTable> table_;
  std::map<uint64_t, int64_t> promised_;  // of the head: the start it was told
  int passes_ = 0;
  int preemptions_ = 0;
  int backfills_ = 0;
  int starts_ = 0;
  std::deque<std::string> trace_;
};

}  // namespace longhaul::server
