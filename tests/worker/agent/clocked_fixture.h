// An agent with one attempt on a clock that moves by hand; what it does on other threads is done at once.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "tests/worker/agent/fake_scheduler.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/agent/agent_core.h"

namespace longhaul::agent {

class TasksAtOnce final : public TaskRunner {
 public:
  void Run(std::function<void()> task) override { task(); }
};

class ClockedAgentTest : public ::testing::Test {
 protected:
  ClockedAgentTest() {
    AgentOptions options;
    options.worker_id = "worker";
    options.state_dir = temp_.path();
    options.trainer_path = FAKE_TRAINER_PATH;
    options.models["digest"] = {"/models/tiny", "fingerprint", ""};
    core_ = std::make_unique<AgentCore>(options, AgentParts{&clock_, &scheduler_, &mailbox_, &tasks_, &tasks_, &tasks_,
                                                            nullptr, [](const std::string&) {}});
    EXPECT_TRUE(core_->Recover().ok());
    key_.set_job_id("job");
    key_.set_attempt(1);
    key_.set_lease_epoch(9);
  }
  ~ClockedAgentTest() override {
    if (core_->attempts() > 0) scheduler_.Stop(key_, v1::STOP_MODE_FENCED);
    EXPECT_TRUE(Turns([&] { return core_->attempts() == 0; }));
    scheduler_.CloseSessions();
    core_.reset();
  }

  // Tells the agent to start the attempt, whose trainer does what the script says (fake_trainer.cc).
  void Start(const std::string& script) { scheduler_.Command(scheduler_.StartCommand(key_, script)); }
  attempt::AttemptDir dir() const { return attempt::AttemptDir(temp_.path() + "/attempts/job.1.9"); }

  void Turn() {
    mailbox_.Drain();
    core_->Poll();
  }
  // The clock moves on each time.
  template <typename Condition>
  bool Turns(Condition condition, int64_t turn_ms = 100) {
    return UntilIsSo(condition, [&] { clock_.AdvanceMillis(turn_ms); });
  }
  // The clock stands still while the trainer, which lives by another one, comes so far.
  template <typename Condition>
  bool Meanwhile(Condition condition) {
    return UntilIsSo(condition, [] {});
  }
  void Pass(int64_t milliseconds) {
    for (int64_t passed = 0; passed < milliseconds; passed += 500) {
      clock_.AdvanceMillis(500);
      Turn();
    }
  }

  FakeClock clock_;
  TempDir temp_;
  FakeScheduler scheduler_;
  Mailbox mailbox_;
  TasksAtOnce tasks_;
  std::unique_ptr<AgentCore> core_;
  v1::AttemptKey key_;

 private:
  // False after a time that only a bug takes.
  template <typename Condition, typename Between>
  bool UntilIsSo(Condition condition, Between between) {
    const RealClock real;
    const int64_t give_up = real.BootNanos() + int64_t{120} * 1'000'000'000;
    while (real.BootNanos() < give_up) {
      Turn();
      if (condition()) return true;
      between();
      mailbox_.Wait(1);
    }
    return false;
  }
};

}  // namespace longhaul::agent
