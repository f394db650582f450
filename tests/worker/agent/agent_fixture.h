// An agent on a temporary state folder with a fake scheduler, real files, real child processes and real threads.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/process.h"
#include "tests/worker/agent/fake_scheduler.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/agent/agent_core.h"
#include "worker/agent/task_pool.h"

namespace longhaul::agent {

class AgentTest : public ::testing::Test {
 protected:
  AgentTest() { StartAgent(); }

  // A new agent over the same folders; the old one is gone as after a kill: nothing is told to trainers or scheduler.
  void StartAgent() {
    MakeAgent();
    ASSERT_TRUE(core_->Recover().ok());
  }
  // The same, before it has looked at the folders.
  void MakeAgent() {
    StopAgent();
    mailbox_ = std::make_unique<Mailbox>();
    fetches_ = std::make_unique<TaskPool>(2);
    uploads_ = std::make_unique<TaskPool>(2);
    logs_ = std::make_unique<TaskPool>(1);
    looks_ = std::make_unique<TaskPool>(1);
    AgentOptions options;
    options.worker_id = "worker";
    options.state_dir = temp_.path();
    options.trainer_path = FAKE_TRAINER_PATH;
    options.models["digest"] = {"/models/tiny", "fingerprint", ""};
    if (change_options_) change_options_(&options);
    core_ = std::make_unique<AgentCore>(
        options, AgentParts{&clock_, &scheduler_, mailbox_.get(), fetches_.get(), uploads_.get(), logs_.get(),
                            looks_.get(), [this](const std::string& line) { log_ += line + "\n"; }});
  }
  void StopAgent() {
    scheduler_.CloseSessions();     // no answer comes any more
    scheduler_.set_stalled(false);  // or its reads never end
    fetches_.reset();
    uploads_.reset();
    logs_.reset();
    looks_.reset();
    if (mailbox_ != nullptr) mailbox_->Drain();
    core_.reset();
    mailbox_.reset();
  }
  ~AgentTest() override {
    StopAgent();
    KillTrainers();
  }
  // Those of every attempt below our folder, whatever the test did with them: no test leaves a process behind.
  void KillTrainers() {
    const auto processes = ListDir("/proc");
    ASSERT_TRUE(processes.ok()) << processes.status();
    for (const std::string& name : *processes) {
      const pid_t pid = std::atoi(name.c_str());
      if (pid <= 0) continue;
      std::ifstream file("/proc/" + name + "/cmdline");
      std::string arguments;
      std::getline(file, arguments);  // nothing of one that has ended meanwhile: an iterator would throw
      if (arguments.find(temp_.At("attempts/")) == std::string::npos) continue;
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
  }

  v1::AttemptKey Key(const std::string& job, int attempt = 1, int64_t epoch = 1) {
    v1::AttemptKey key;
    key.set_job_id(job);
    key.set_attempt(attempt);
    key.set_lease_epoch(epoch);
    return key;
  }

  v1::WorkerCommand StartCommand(const std::string& job, const std::string& script, int attempt = 1) {
    return scheduler_.StartCommand(Key(job, attempt), script);
  }
  v1::AttemptKey Start(const std::string& job, const std::string& script) {
    scheduler_.Command(StartCommand(job, script));
    return Key(job);
  }

  attempt::AttemptDir Dir(const v1::AttemptKey& key) const {
    return attempt::AttemptDir(temp_.path() + "/attempts/" + key.job_id() + "." + std::to_string(key.attempt()) + "." +
                               std::to_string(key.lease_epoch()));
  }

  // Turns the loop until it holds; fails the test after a time that only a bug takes.
  template <typename Condition>
  bool Until(Condition condition) {
    const int64_t give_up = clock_.BootNanos() + int64_t{120} * 1'000'000'000;
    while (true) {
      mailbox_->Drain();
      core_->Poll();
      begun_ = begun_ || core_->attempts() > 0;
      if (condition()) return true;
      if (clock_.BootNanos() > give_up) break;
      const int64_t next_ms = (core_->NextWakeNanos() - clock_.BootNanos()) / 1'000'000 + 1;
      mailbox_->Wait(std::clamp<int64_t>(next_ms, 0, 50));
    }
    ADD_FAILURE() << "did not come about; the agent said:\n" << log_;
    return false;
  }
  bool UntilPhase(const std::string& job, v1::AttemptPhase phase) {
    return Until([&] { return Last(job).phase() == phase; });
  }
  bool UntilStep(const std::string& job, int64_t step) {
    return Until([&] {
      const auto steps = scheduler_.seen().steps[job];
      return !steps.empty() && steps.back() >= step;
    });
  }
  // Until every attempt that was started has come and gone.
  bool UntilForgotten() {
    return Until([&] { return begun_ && core_->attempts() == 0; });
  }
  v1::AttemptStatus Last(const std::string& job) { return scheduler_.seen().last[job]; }

  // The trainer's process, once it has written its pid; killed when the test ends.
  ProcessId Trainer(const v1::AttemptKey& key) {
    Until([&] { return Dir(key).ReadPid().ok(); });
    return Dir(key).ReadPid().value_or(ProcessId());
  }
  // Lets the script's `wait FILE` go on.
  void Release(const v1::AttemptKey& key, const std::string& file) {
    ASSERT_TRUE(WriteFileAtomic(Dir(key).path() + "/" + file, "").ok());
  }

  std::function<void(AgentOptions*)> change_options_;  // of agents that are made from now on
  RealClock clock_;
  TempDir temp_;
  FakeScheduler scheduler_;
  std::string log_;  // the core thread's
  std::unique_ptr<Mailbox> mailbox_;
  std::unique_ptr<TaskPool> fetches_;
  std::unique_ptr<TaskPool> uploads_;
  std::unique_ptr<TaskPool> logs_;
  std::unique_ptr<TaskPool> looks_;
  std::unique_ptr<AgentCore> core_;
  bool begun_ = false;  // there has been an attempt
};

}  // namespace longhaul::agent
