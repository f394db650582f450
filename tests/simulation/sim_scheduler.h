// The scheduler's process in a simulated run: the real DispatcherLoop on a backend, turned by virtual time, with a
// mailbox that gathers what comes in one moment. It dies, is started again, and is watched as it answers: whatever it
// acknowledges is in the store by then, and whatever it publishes.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/dispatcher_loop.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/simulation/backend.h"
#include "tests/simulation/context.h"

namespace longhaul::simulation {

class SimScheduler final : private server::EventSink {
 public:
  SimScheduler(Context* context, Backend* backend);

  void Start();
  void Crash();  // and starts again later
  bool up() const { return loop_ != nullptr; }
  int64_t process() const { return generation_; }  // the one that is up, or was last
  // SIGSTOP, a machine that sleeps: nothing of it runs, and what is sent to it waits in its sockets.
  void StandStill(int64_t nanos);
  // From when to when a process of it ran, and when it stood still meanwhile.
  struct Life {
    int64_t start_nanos = 0;
    int64_t end_nanos = 0;
    std::vector<std::pair<int64_t, int64_t>> stills;  // from when to when
  };
  Life life() const { return {start_nanos_, context_->timeline.now(), stills_}; }  // of the one that is up
  Life last_life() const { return last_life_; }                                    // of the one before

  // Dropped while it is down, as a connection that is refused.
  void Post(server::Mail mail);
  // `answer` travels to whoever asked; not if the process died in this very turn.
  void Answer(std::function<void()> answer);
  server::DispatcherLoop* loop() { return loop_.get(); }
  const server::DispatcherCore* core() const { return loop_ == nullptr ? nullptr : &loop_->core(); }

  // Turns so far: the invariants are looked at after each.
  int64_t turns() const { return turns_; }
  std::set<std::string> TakeChanged() { return std::exchange(changed_, {}); }  // jobs with events since
  bool TakeStarted() { return std::exchange(started_, false); }

 private:
  void OnEvent(const server::Job& job, const server::JobEvent& event) override;
  void OnProgress(const std::string& job_id, const server::MetricPoint& point) override;
  void OnJobDeleted(const std::string& job_id) override;
  void OnLogComplete(const std::string&, int) override {}
  void Arm();
  void Turn();
  bool StandsStill() const { return !stills_.empty() && context_->timeline.now() < stills_.back().second; }

  Context* const context_;
  Backend* const backend_;
  server::FakePlanner planner_;
  std::unique_ptr<server::DispatcherLoop> loop_;
  int64_t generation_ = 0;  // of the process
  int64_t start_nanos_ = 0;
  Life last_life_;
  int64_t armed_nanos_ = 0;
  std::vector<server::Mail> mailbox_;
  std::vector<server::Mail> unread_;  // in sockets, while it stands still and for a moment after
  std::vector<std::pair<int64_t, int64_t>> stills_;
  std::vector<std::function<void()>> answers_;  // of this turn
  int64_t turns_ = 0;
  uint64_t ids_ = 0;
  bool started_ = false;
  std::set<std::string> changed_;
  std::map<std::string, int64_t> published_;  // sequence, by job, of this process
};

}  // namespace longhaul::simulation
