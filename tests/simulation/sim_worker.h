// A worker's machine in a simulated run: an agent that keeps a session as worker/agent does (one Sync parked, another
// for news, a failed number sent again), and trainers that live on without it, watch their lease by their own clock,
// and commit checkpoints and artifacts. It can be cut off, stand still, lose its processes or its disk.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "server/dispatcher.h"
#include "tests/simulation/context.h"
#include "tests/simulation/sim_scheduler.h"

namespace longhaul::simulation {

// A trainer as it really is, whatever the scheduler believes.
struct Trainer {
  server::StartCommand start;
  uint64_t incarnation = 0;
  int64_t step = 0;
  int64_t told_step = 0;  // of progress
  bool ended = false;
  server::ExitReason exit = server::ExitReason::kNone;
  server::Reason failure = server::Reason::kNone;
  bool finalizing = false;
  bool checkpoint_asked = false;
  int64_t committing_step = 0;  // the checkpoint that is being committed, tried until it is answered
  bool in_flight = false;
  int64_t lease_until_nanos = 0;
  int64_t held_since_nanos = 0;

  bool Running(int64_t now) const { return !ended && now < lease_until_nanos; }
};

class SimWorker {
 public:
  using Trainers = std::map<std::pair<std::string, int>, Trainer>;

  SimWorker(Context* context, SimScheduler* scheduler, Backend* backend, server::Worker worker);

  void StartAgent();
  void AgentDies();
  void MachineDies();  // comes back by StartAgent, which finds the folders
  void DiskLost();
  void Partition(int64_t nanos) { cut_until_nanos_ = context_->timeline.now() + nanos; }
  void Stall(int64_t nanos) { stalled_until_nanos_ = context_->timeline.now() + nanos; }
  void Heal();
  void TrainerDies(uint64_t which);

  const std::string& id() const { return worker_.id; }
  const server::Worker& inventory() const { return worker_; }
  const Trainers& trainers() const { return trainers_; }
  const std::string& session() const { return session_; }
  // When the scheduler last took something from us.
  int64_t last_heard_nanos() const { return last_heard_nanos_; }

 private:
  bool Stalled() const { return context_->timeline.now() < stalled_until_nanos_; }
  bool Cut() const { return context_->timeline.now() < cut_until_nanos_; }
  void ToScheduler(std::function<void()> deliver);
  // `arrive` runs on this machine, if the agent that asked still lives.
  void FromScheduler(std::function<void()> arrive);
  void AnswerWith(std::function<void()> arrive);

  void Poll();
  void Open();
  void Opened(const absl::StatusOr<server::SessionReply>& reply);
  void SendSync(int64_t number);
  void Synced(int64_t number, int64_t sent_nanos, const absl::StatusOr<server::SyncReply>& reply);
  void Obey(const server::SyncReply& reply, int64_t lease_until_nanos);
  void News();
  std::vector<server::AttemptReport> Reports();
  server::AttemptReport ReportOf(Trainer* trainer);

  void Launch(const server::StartCommand& start, int64_t lease_until_nanos);
  void Watch(const server::AttemptKey& key, uint64_t incarnation);
  void Act(const server::AttemptKey& key, Trainer* trainer);
  void End(Trainer* trainer, server::ExitReason exit, server::Reason failure = server::Reason::kNone);
  void Commit(const server::AttemptKey& key, Trainer* trainer);
  void CheckFenced(const server::DispatcherCore& core, const server::AttemptKey& key);
  void CheckAccepted(const server::AttemptKey& key, int64_t step);
  void Committed(const server::AttemptKey& key, uint64_t incarnation, int64_t step, const absl::Status& status);
  Trainer* Find(const server::AttemptKey& key);
  void PutAway(const server::AttemptKey& key);

  Context* const context_;
  SimScheduler* const scheduler_;
  Backend* const backend_;
  const server::Worker worker_;

  bool agent_up_ = false;
  uint64_t agent_ = 0;  // incarnation
  uint64_t trainer_incarnations_ = 0;
  int64_t cut_until_nanos_ = 0;
  int64_t stalled_until_nanos_ = 0;
  int64_t last_heard_nanos_ = 0;

  std::string session_;
  int64_t opening_ = 0;  // the number of the OpenSession that is awaited; 0 = none
  int64_t openings_ = 0;
  std::string last_opening_;  // of this worker that the agent knows of
  bool news_ = false;
  int64_t next_number_ = 1;
  std::map<int64_t, int64_t> in_flight_;  // number -> sent
  std::set<int64_t> to_repeat_;
  Trainers trainers_;
  std::set<std::pair<std::string, int>> put_away_;  // of this agent: a late answer does not start them again
};

}  // namespace longhaul::simulation
