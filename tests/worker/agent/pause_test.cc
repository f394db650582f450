// A pause on a clock that moves by hand: the device is free one step and one checkpoint after it, however long these
// take, and a checkpoint that is half written is not cut off.
#include <gtest/gtest.h>

#include <memory>

#include "base/env.h"
#include "base/limits.h"
#include "base/process.h"
#include "tests/worker/agent/fake_scheduler.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/agent/agent_core.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kStepMs = 50'000;
// Longer than what a stop allows without a checkpoint that is being written.
constexpr int64_t kCheckpointMs = limits::kTrainerKillGraceMs + 3 * kStepMs + 20'000 - kStepMs;
constexpr int64_t kOwnMs = 1'000;  // the agent's looks and Syncs

class TasksAtOnce final : public TaskRunner {
 public:
  void Run(std::function<void()> task) override { task(); }
};

// The trainer is in the middle of step 2 when it is asked to stop; the test says when the step and the checkpoint end.
class PauseTest : public ::testing::Test {
 protected:
  PauseTest() {
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
    key_.set_lease_epoch(1);
    v1::WorkerCommand command;
    *command.mutable_start()->mutable_key() = key_;
    v1::AttemptSpec* spec = command.mutable_start()->mutable_spec();
    spec->set_kind(v1::ATTEMPT_KIND_TRAIN);
    spec->set_model_digest("digest");
    const v1::BlobName blob = scheduler_.AddBlob(
        "started\nprogress 1 50\nwait stepped\nprogress 2 50\nwriting 2\nwait written\ncheckpoint 2\nexit 3\nreturn "
        "3\n");
    spec->mutable_spec()->mutable_dataset()->set_sha256(blob.sha256());
    spec->mutable_spec()->mutable_dataset()->set_size_bytes(blob.size_bytes());
    scheduler_.Command(command);
    EXPECT_TRUE(Turns([&] { return !scheduler_.seen().steps["job"].empty(); }));
    trainer_ = dir().ReadPid().value_or(ProcessId());
    EXPECT_TRUE(ProcessAlive(trainer_));
    scheduler_.Stop(key_, v1::STOP_MODE_CHECKPOINT);
    asked_at_ = clock_.BootNanos();
    Turn();
  }
  ~PauseTest() override {
    if (core_->attempts() > 0) scheduler_.Stop(key_, v1::STOP_MODE_FENCED);
    EXPECT_TRUE(Turns([&] { return core_->attempts() == 0; }));
    scheduler_.CloseSessions();
    core_.reset();
  }

  attempt::AttemptDir dir() const { return attempt::AttemptDir(temp_.path() + "/attempts/job.1.1"); }
  void Turn() {
    mailbox_.Drain();
    core_->Poll();
  }
  // The clock moves on each time.
  template <typename Condition>
  bool Turns(Condition condition, int64_t turn_ms = 100) {
    for (int i = 0; i < 30'000; ++i) {
      Turn();
      if (condition()) return true;
      clock_.AdvanceMillis(turn_ms);
      mailbox_.Wait(1);
    }
    return false;
  }
  // The clock stands still while the trainer, which lives by another one, comes so far.
  template <typename Condition>
  bool Meanwhile(Condition condition) {
    for (int i = 0; i < 30'000; ++i) {
      Turn();
      if (condition()) return true;
      mailbox_.Wait(1);
    }
    return false;
  }
  void Pass(int64_t milliseconds) {
    for (int64_t passed = 0; passed < milliseconds; passed += 500) {
      clock_.AdvanceMillis(500);
      Turn();
    }
  }
  void Release(const std::string& file) { ASSERT_TRUE(WriteFileAtomic(dir().path() + "/" + file, "").ok()); }
  int64_t SinceAskedMs() const { return (clock_.BootNanos() - asked_at_) / 1'000'000; }

  FakeClock clock_;
  TempDir temp_;
  FakeScheduler scheduler_;
  Mailbox mailbox_;
  TasksAtOnce tasks_;
  std::unique_ptr<AgentCore> core_;
  v1::AttemptKey key_;
  ProcessId trainer_;
  int64_t asked_at_ = 0;
};

TEST_F(PauseTest, EndsWithinOneStepAndItsCheckpoint) {
  Pass(kStepMs);
  Release("stepped");
  ASSERT_TRUE(Meanwhile([&] { return dir().WritesCheckpoint(); }));
  Pass(kCheckpointMs);
  ASSERT_TRUE(ProcessAlive(trainer_)) << "killed in the middle of its checkpoint";
  Release("written");
  ASSERT_TRUE(Meanwhile([&] { return !ProcessAlive(trainer_); }));
  ASSERT_TRUE(Turns([&] { return core_->attempts() == 0; }, limits::kMinSyncIntervalMs));
  EXPECT_LE(SinceAskedMs(), kStepMs + kCheckpointMs + kOwnMs);
  const auto seen = scheduler_.seen();
  EXPECT_EQ(seen.last.at("job").exit().reason(), v1::TRAINER_EXIT_CHECKPOINTED);
  ASSERT_EQ(seen.checkpoints.size(), 1u) << "of the step after which it was asked";
  EXPECT_EQ(seen.checkpoints[0].checkpoint().step(), 2);
}

TEST_F(PauseTest, ACheckpointThatNeverEndsIsNotWaitedForForEver) {
  Pass(kStepMs);
  Release("stepped");
  ASSERT_TRUE(Meanwhile([&] { return dir().WritesCheckpoint(); }));
  ASSERT_TRUE(Turns([&] { return core_->attempts() == 0; }));
  EXPECT_FALSE(ProcessAlive(trainer_));
  EXPECT_GT(SinceAskedMs(), kStepMs + kCheckpointMs);
  EXPECT_LT(SinceAskedMs(), 2 * (kStepMs + kCheckpointMs));
  EXPECT_EQ(scheduler_.seen().last.at("job").exit().reason(), v1::TRAINER_EXIT_CHECKPOINTED) << "of an earlier step";
  EXPECT_TRUE(scheduler_.seen().checkpoints.empty());
}

TEST_F(PauseTest, AStepThatNeverEndsIsNotWaitedForEither) {
  Pass(limits::kTrainerKillGraceMs + 3 * kStepMs - kOwnMs);
  EXPECT_TRUE(ProcessAlive(trainer_));
  Pass(2 * kOwnMs);
  EXPECT_TRUE(Meanwhile([&] { return !ProcessAlive(trainer_); }));
}

}  // namespace
}  // namespace longhaul::agent
