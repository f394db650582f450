// A pause on a clock that moves by hand: the device is free one step and one checkpoint after it, however long these
// take, and a checkpoint that is half written is not cut off.
#include <gtest/gtest.h>

#include "base/env.h"
#include "base/limits.h"
#include "base/process.h"
#include "tests/worker/agent/clocked_fixture.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kStepMs = 50'000;
// Longer than what a stop allows without a checkpoint that is being written.
constexpr int64_t kCheckpointMs = limits::kTrainerKillGraceMs + 3 * kStepMs + 20'000 - kStepMs;
constexpr int64_t kOwnMs = 1'000;  // the agent's looks and Syncs

// The trainer is in the middle of step 2 when it is asked to stop; the test says when the step and the checkpoint end.
class PauseTest : public ClockedAgentTest {
 protected:
  PauseTest() {
    Start(
        "started\nprogress 1 50\nwait stepped\nprogress 2 50\nwriting 2\nwait written\ncheckpoint 2\nexit 3\nreturn "
        "3\n");
    EXPECT_TRUE(Turns([&] { return !scheduler_.seen().steps["job"].empty(); }));
    trainer_ = dir().ReadPid().value_or(ProcessId());
    EXPECT_TRUE(ProcessAlive(trainer_));
    scheduler_.Stop(key_, v1::STOP_MODE_CHECKPOINT);
    asked_at_ = clock_.BootNanos();
    Turn();
  }

  void Release(const std::string& file) { ASSERT_TRUE(WriteFileAtomic(dir().path() + "/" + file, "").ok()); }
  int64_t SinceAskedMs() const { return (clock_.BootNanos() - asked_at_) / 1'000'000; }

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
  Pass(kCheckpointMs);
  EXPECT_TRUE(ProcessAlive(trainer_));
  // A killed one is gone in its own time, not the clock's.
  Pass(kStepMs + kCheckpointMs);
  EXPECT_TRUE(Meanwhile([&] { return !ProcessAlive(trainer_); }));
  ASSERT_TRUE(Turns([&] { return core_->attempts() == 0; }));
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
