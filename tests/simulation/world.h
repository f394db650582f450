// One simulated run: the scheduler, three workers and clients in one process and one thread, on virtual time, through
// the steps of a trace; then peace, in which every job has to come to its end and every worker's memory back. The same
// trace gives the same run.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/simulation/backend.h"
#include "tests/simulation/context.h"
#include "tests/simulation/invariants.h"
#include "tests/simulation/sim_scheduler.h"
#include "tests/simulation/sim_worker.h"
#include "tests/simulation/trace.h"

namespace longhaul::simulation {

struct Outcome {
  std::vector<std::string> violations;
  std::string notes;  // the last things that happened
  int64_t simulated_seconds = 0;
  int64_t turns = 0;
  int jobs = 0;
  int power_cuts = 0;
  std::string digest;  // of everything that happened: equal for equal runs
};

class World {
 public:
  explicit World(const Trace& trace);
  Outcome Run();

 private:
  using Command = absl::StatusOr<server::Job> (server::DispatcherCore::*)(const std::string&);

  void Do(const Step& step);
  bool Happens();  // after every event
  SimWorker& WorkerOf(uint64_t which) { return *workers_[which % workers_.size()]; }
  std::string JobOf(uint64_t which) const;

  void UploadDataset(uint64_t shape, const std::string& request_id);
  void Create(const server::CreateInput& input, int tries);
  void Created(const server::CreateInput& input, int tries, const absl::StatusOr<server::Job>& job);
  void Ask(const char* what, Command command, const std::string& id);
  void Delete(const std::string& id);
  void Collect();
  void StaleWrite(const std::string& id);
  void LoseBlob(uint64_t which);
  void Peace();
  bool Done();
  void ExpectNothingLeft();

  const Trace trace_;
  Context context_;
  std::unique_ptr<Backend> backend_;
  SimScheduler scheduler_;
  std::vector<std::unique_ptr<SimWorker>> workers_;
  Invariants invariants_;
  std::vector<std::string> ids_;                   // of acknowledged jobs
  std::map<std::string, std::string> by_request_;  // what the first answer said
  std::set<std::string> uncertain_;                // deleted, perhaps
  int requests_ = 0;
  uint64_t digest_ = 0;
};

Outcome Simulate(const Trace& trace);

}  // namespace longhaul::simulation
