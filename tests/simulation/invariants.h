// What holds after every event of a simulated run, whatever fails:
//   every acknowledged job is there until its deletion was asked for, and no answer of a request names another one
//   events are dense, begin with VALIDATING, follow the table of states, and the last one is the terminal one
//   a terminal job never changes again; a cancelled one never runs again
//   epochs only grow, and checkpoints within an epoch; a job has at most one live lease, an open attempt exactly while
//   a lease is due no two trainers of a job run within their leases, by the clock that they watch themselves a worker's
//   RAM, device memory and threads are never promised twice memory says what the store says a worker is lost only if
//   nothing of it was heard for worker_lost_ms of the scheduler's own life, in which it did not stand still, and never
//   right after it did blobs that anything refers to are whole
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "server/core/job.h"
#include "tests/simulation/backend.h"
#include "tests/simulation/context.h"
#include "tests/simulation/sim_scheduler.h"
#include "tests/simulation/sim_worker.h"

namespace longhaul::simulation {

class Invariants {
 public:
  Invariants(Context* context, Backend* backend, SimScheduler* scheduler,
             const std::vector<std::unique_ptr<SimWorker>>* workers)
      : context_(context), backend_(backend), scheduler_(scheduler), workers_(workers) {}

  // Acknowledged to a client.
  void JobCreated(const std::string& id) { acknowledged_.insert(id); }
  void JobCancelled(const std::string& id, int64_t sequence) { cancelled_.emplace(id, sequence); }
  void DeleteAsked(const std::string& id) { delete_asked_.insert(id); }
  void BlobLost(const std::string& sha256) { rotten_.insert(sha256); }

  // After every event; what only a turn of the scheduler can change is looked at after turns.
  void Check();
  // Everything, jobs that did not change included; and the bytes of the blobs.
  void CheckAll();

 private:
  void CheckTrainers();
  void CheckWorkers();
  void CheckJob(const std::string& id);
  void CheckEvents(const server::Job& job);
  void CheckTerminal(const server::Job& job);
  void CheckLost(const server::Job& job, const server::JobEvent& event);
  bool Noticed(int64_t begin_nanos, int64_t end_nanos) const;
  void CheckMemory(const server::Job& job);
  void CheckBlobs(const server::Job& job);
  void Fail(const std::string& what) { context_->Violation(what); }

  Context* const context_;
  Backend* const backend_;
  SimScheduler* const scheduler_;
  const std::vector<std::unique_ptr<SimWorker>>* const workers_;

  struct Seen {
    int64_t sequence = 0;  // events checked so far
    server::JobState state = server::JobState::kValidating;
    int64_t lease_epoch = 0;
    int64_t checkpoint_step = 0;  // the last, of this epoch
    std::string terminal;         // what may not change any more
  };
  int64_t turns_seen_ = -1;
  SimScheduler::Life writer_;  // of the process that wrote what is being checked
  std::map<std::string, Seen> seen_;
  std::map<std::string, int> leases_;  // live ones, by job, as of the last turn
  std::set<std::string> acknowledged_;
  std::map<std::string, int64_t> cancelled_;  // by which event
  std::set<std::string> delete_asked_;
  std::set<std::string> rotten_;
};

}  // namespace longhaul::simulation
