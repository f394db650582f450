// An attempt of very many steps: what its log has is told once, in pieces, and never stands in memory as a whole.
#include <gtest/gtest.h>

#include <memory>

#include "base/clock.h"
#include "base/env.h"
#include "base/limits.h"
#include "base/process.h"
#include "tests/worker/agent/fake_scheduler.h"
#include "tests/worker/attempt/temp_dir.h"
#include "worker/agent/attempt_runner.h"
#include "worker/attempt/event_log.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kSteps = 60'000;
constexpr int64_t kPeakStep = 100;
constexpr int64_t kWarningStep = 200;
constexpr int64_t kShorterThanItWaitsMs = 5'000;
constexpr int64_t kLongerThanItWaitsMs = 60'000;
constexpr int64_t kPeakBytes = int64_t{7} << 30;
// Ten Syncs' worth, and one read.
constexpr size_t kMostInMemory = size_t{10} * limits::kMaxProgressPerSync + limits::kMaxEventsPerRead;

// A folder whose trainer has gone, with progress, one early warning, and its exit.
class LongLogTest : public ::testing::Test {
 protected:
  LongLogTest() {
    env_.clock = &clock_;
    env_.client = &scheduler_;
    env_.mailbox = &mailbox_;
    env_.oom_kills = [] { return int64_t{0}; };
    env_.session_id = [] { return std::string(); };
    env_.on_news = [] {};
    env_.log = [this](const std::string& line) { log_ += line + "\n"; };
    v1::AttemptSpec spec;
    spec.set_job_id("job");
    spec.set_attempt(1);
    spec.set_lease_epoch(1);
    spec.set_kind(v1::ATTEMPT_KIND_TRAIN);
    EXPECT_TRUE(dir_.Create().ok());
    EXPECT_TRUE(dir_.WriteSpec(spec).ok());
    // Ours with another start time: a process that is gone.
    EXPECT_TRUE(dir_.WritePid({SelfProcessId()->pid, 1}).ok());
    auto writer = attempt::EventLogWriter::Open(dir_.EventsPath());
    EXPECT_TRUE(writer.ok());
    v1::TrainerEvent event;
    event.mutable_started()->set_total_steps(kSteps);
    EXPECT_TRUE(writer->Append(event).ok());
    for (int64_t step = 1; step <= kSteps; ++step) {
      v1::TrainingProgress* point = event.mutable_progress();
      point->set_step(step);
      point->set_loss(1.0 / static_cast<double>(step));
      point->set_step_seconds(2.5);
      point->set_host_bytes_used(step == kPeakStep ? kPeakBytes : kPeakBytes / 2);
      EXPECT_TRUE(writer->Append(event).ok());
      if (step != kWarningStep) continue;
      event.mutable_warning()->set_message("odd data");
      EXPECT_TRUE(writer->Append(event).ok());
    }
    event.mutable_exit()->set_reason(v1::TRAINER_EXIT_FAILED);
    EXPECT_TRUE(writer->Append(event).ok());
  }

  void Recover() {
    auto runner = AttemptRunner::Recover(&env_, dir_.path());
    ASSERT_TRUE(runner.ok()) << runner.status();
    runner_ = *std::move(runner);
  }
  // To the log's end, which no single turn reaches.
  int Turns() {
    int turns = 0;
    do {
      runner_->Poll();
      EXPECT_LE(runner_->points_waiting(), kMostInMemory);
      ++turns;
    } while (runner_->NextWakeNanos() == 0 && turns < 1'000);
    return turns;
  }
  // One Sync that is answered.
  bool Tell() {
    int64_t room_bytes = limits::kMaxGrpcMessageBytes;
    ReportMark mark;
    const v1::AttemptStatus status = runner_->Status(&room_bytes, &mark);
    for (const v1::TrainingProgress& point : status.progress()) steps_.push_back(point.step());
    for (const std::string& warning : status.warnings()) warnings_.push_back(warning);
    last_ = status;
    runner_->Acknowledge(mark);
    EXPECT_LE(runner_->points_waiting(), kMostInMemory);
    return !mark.whole;
  }

  // A folder in the place of events.log: to read it fails, for whoever tries.
  void TakeLogAway() {
    EXPECT_TRUE(RenameFile(dir_.EventsPath(), temp_.At("away")).ok());
    EXPECT_TRUE(CreateDirs(dir_.EventsPath()).ok());
  }
  void GiveLogBack() {
    EXPECT_TRUE(RemoveTree(dir_.EventsPath()).ok());
    EXPECT_TRUE(RenameFile(temp_.At("away"), dir_.EventsPath()).ok());
  }

  FakeClock clock_;
  TempDir temp_;
  FakeScheduler scheduler_;
  Mailbox mailbox_;
  AttemptEnv env_;
  std::string log_;
  attempt::AttemptDir dir_{temp_.At("attempts/job.1.1")};
  std::shared_ptr<AttemptRunner> runner_;
  std::vector<int64_t> steps_;
  std::vector<std::string> warnings_;
  v1::AttemptStatus last_;
};

std::vector<int64_t> StepsFrom(int64_t first) {
  std::vector<int64_t> steps;
  for (int64_t step = first; step <= kSteps; ++step) steps.push_back(step);
  return steps;
}

TEST_F(LongLogTest, EveryPointIsToldOnceAndFewAreInMemory) {
  Recover();
  EXPECT_GT(Turns(), 5) << "others wait for as long as one turn takes";
  while (Tell()) {
    ASSERT_LT(steps_.size(), size_t{2} * kSteps);
  }
  EXPECT_EQ(steps_, StepsFrom(1));
  EXPECT_EQ(warnings_, std::vector<std::string>{"odd data"});
  EXPECT_EQ(last_.host_bytes_peak(), kPeakBytes);
  EXPECT_EQ(log_.find("cannot"), std::string::npos) << log_;
}

TEST_F(LongLogTest, ARestartedAgentGoesOnWhereTheSchedulerHasIt) {
  Recover();
  Turns();
  while (steps_.size() < kSteps * 3 / 4) ASSERT_TRUE(Tell());
  const int64_t told = steps_.back();
  // It is killed.
  Recover();
  EXPECT_LT(Turns(), 6) << "the log is not read from its beginning";
  steps_.clear();
  warnings_.clear();
  while (Tell()) {
    ASSERT_LT(steps_.size(), size_t{2} * kSteps);
  }
  ASSERT_FALSE(steps_.empty());
  EXPECT_GT(steps_.front(), kSteps / 3) << "what was acknowledged long ago is not told again";
  EXPECT_LE(steps_.front(), told + 1) << "and nothing is left out";
  EXPECT_EQ(steps_, StepsFrom(steps_.front()));
  EXPECT_EQ(last_.host_bytes_peak(), kPeakBytes) << "which was before";
  EXPECT_TRUE(warnings_.empty());
}

// A disk that fails for a moment: what it would not give is told later, in its place.
TEST_F(LongLogTest, PointsThatCannotBeReadAgainForAWhileAreToldAfterIt) {
  Recover();
  Turns();
  TakeLogAway();
  for (size_t waiting = runner_->points_waiting() + 1; waiting != runner_->points_waiting();) {
    waiting = runner_->points_waiting();
    EXPECT_TRUE(Tell()) << "its end is not told before what comes before it";
    runner_->Poll();
  }
  EXPECT_EQ(runner_->points_waiting(), 0u);
  EXPECT_LT(steps_.size(), size_t{kSteps});
  GiveLogBack();
  runner_->Poll();
  while (Tell()) {
    ASSERT_LT(steps_.size(), size_t{2} * kSteps);
  }
  EXPECT_EQ(steps_, StepsFrom(1));
}

TEST_F(LongLogTest, PointsThatCannotBeReadAgainAtAllAreGivenUpAndItIsSaid) {
  Recover();
  Turns();
  TakeLogAway();
  while (runner_->points_waiting() > 0) Tell();
  EXPECT_TRUE(Tell());
  clock_.AdvanceMillis(kLongerThanItWaitsMs);
  runner_->Poll();
  EXPECT_FALSE(Tell());
  EXPECT_NE(log_.find("a part of its progress cannot be read again and is not told: "), std::string::npos) << log_;
  EXPECT_NE(log_.find(dir_.EventsPath()), std::string::npos) << log_;
}

TEST_F(LongLogTest, AnEndThatCannotBeReadIsNoCrash) {
  Recover();
  TakeLogAway();
  runner_->Poll();
  clock_.AdvanceMillis(kShorterThanItWaitsMs);
  runner_->Poll();
  EXPECT_EQ(log_.find("the trainer has ended"), std::string::npos) << log_;
  clock_.AdvanceMillis(kLongerThanItWaitsMs);
  runner_->Poll();
  const size_t ended = log_.find("the trainer has ended, and how cannot be read: ");
  ASSERT_NE(ended, std::string::npos) << log_;
  EXPECT_NE(log_.find(dir_.EventsPath(), ended), std::string::npos) << log_;
}

// The host crashed, and the log's end was with the kernel alone.
TEST_F(LongLogTest, ALogThatIsShorterThanTheNoteSaysIsReadFromItsBeginning) {
  Recover();
  Turns();
  while (steps_.size() < kSteps * 3 / 4) ASSERT_TRUE(Tell());
  const auto head = ReadFileRange(dir_.EventsPath(), 0, 1 << 16);
  ASSERT_TRUE(head.ok());
  ASSERT_TRUE(WriteFileAtomic(dir_.EventsPath(), *head).ok());
  Recover();
  Turns();
  steps_.clear();
  Tell();
  ASSERT_FALSE(steps_.empty());
  EXPECT_EQ(steps_.front(), 1);
}

}  // namespace
}  // namespace longhaul::agent
