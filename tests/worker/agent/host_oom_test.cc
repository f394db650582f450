// How an attempt ends where its host runs out of memory: named as what it is, which no other attempt is made for.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <string>
#include <string_view>
#include <utility>

#include "base/disk_seam.h"
#include "base/error.h"
#include "tests/worker/agent/agent_fixture.h"
#include "worker/attempt/exit_codes.h"

namespace longhaul::agent {
namespace {

// This host's system has no memory to change paths that contain `part`.
class NoMemoryFor final : public DiskSeam {
 public:
  explicit NoMemoryFor(std::string part) : part_(std::move(part)) { InstallDiskSeam(this); }
  ~NoMemoryFor() override { InstallDiskSeam(nullptr); }
  int Before(const DiskChange& change) override {
    return change.path.find(part_) != std::string_view::npos ? ENOMEM : 0;
  }

 private:
  const std::string part_;
};

class HostOomTest : public AgentTest {
 protected:
  HostOomTest() {
    change_options_ = [this](AgentOptions* options) { options->oom_kills = [this] { return kills_.load(); }; };
    StartAgent();
  }

  std::atomic<int64_t> kills_ = 3;  // of earlier trainers
};

TEST_F(HostOomTest, ATrainerThatTheKernelKillsIsOutOfMemory) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait go\ncrash\n");
  ASSERT_TRUE(UntilStep("job", 1));
  Trainer(key);
  kills_ = 4;
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_CRASHED);
  EXPECT_EQ(Last("job").exit().failure(), v1::HOST_OOM);
  EXPECT_EQ(Last("job").exit().signal(), SIGKILL);
  EXPECT_FALSE(Last("job").exit().user_can_fix());
}

TEST_F(HostOomTest, AKillOfAnEarlierTrainerIsNone) {
  Start("job", "started\nprogress 1\ncrash\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().failure(), v1::TRAINER_CRASHED);
}

// The kernel kills with nothing but SIGKILL: a trainer that ends by itself has not been killed, another one has.
TEST_F(HostOomTest, ATrainerThatEndsByItselfIsNotTheOneThatWasKilled) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait go\nreturn 17\n");
  ASSERT_TRUE(UntilStep("job", 1));
  Trainer(key);
  kills_ = 4;
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().failure(), v1::TRAINER_CRASHED);
}

// How it ended is known to its parent alone, and that agent is gone.
TEST_F(HostOomTest, AnotherAgentsTrainerThatTheKernelKillsIsOutOfMemory) {
  Start("job", "started\nprogress 1\ndeaf\n");
  ASSERT_TRUE(UntilStep("job", 1));
  const ProcessId trainer = Trainer(Key("job"));
  StopAgent();
  StartAgent();  // finds it at work
  kills_ = 4;
  ASSERT_TRUE(SignalProcess(trainer, SIGKILL).ok());
  while (!ReapProcess(trainer).exited) ::usleep(1'000);  // as init does, and tells nobody
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().failure(), v1::HOST_OOM);
}

TEST_F(HostOomTest, TheTrainersCodeTellsWhatNoEventTells) {
  Start("job", "started\nreturn " + std::to_string(attempt::kExitHostOom) + "\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(Last("job").exit().failure(), v1::HOST_OOM);
  EXPECT_FALSE(Last("job").exit().user_can_fix());
}

TEST_F(HostOomTest, AHostThatCannotTakeAnAttemptIsOutOfMemory) {
  NoMemoryFor seam("/attempts/job");
  Start("job", "started\n");
  ASSERT_TRUE(Until([&] { return Last("job").has_exit(); }));
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(Last("job").exit().failure(), v1::HOST_OOM);
}

TEST_F(HostOomTest, AHostThatCannotTakeTheInputsIsOutOfMemory) {
  NoMemoryFor seam("/inputs/dataset");
  Start("job", "started\n");
  ASSERT_TRUE(Until([&] { return Last("job").has_exit(); }));
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(Last("job").exit().failure(), v1::HOST_OOM);
  EXPECT_EQ(Last("job").exit().message().find("fetching the inputs: "), 0u) << Last("job").exit().message();
}

// The scheduler may have some again in a moment, and it is no fault of the attempt's.
TEST_F(HostOomTest, ASchedulerOutOfMemoryIsWaitedFor) {
  scheduler_.ResetNext(2, MakeError(absl::StatusCode::kResourceExhausted, "HOST_OOM", "the scheduler's state folder"));
  Start("job", "started\nfinal 1\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
}

}  // namespace
}  // namespace longhaul::agent
