// The scheduler behind the dispatcher: preemption, shares, shutting workers, what waiting jobs are told.
#include "base/limits.h"
#include "base/units.h"
#include "tests/server/dispatcher/scheduling_fixture.h"

namespace longhaul::server {
namespace {

TEST_F(SchedulingTest, AHigherClassTakesTheDeviceThroughACheckpoint) {
  const std::string session = Open(OneThread("w1"));
  const std::string low = CreateAs(PriorityClass::kLow);
  AttemptKey key;
  Start(session, low, &key);
  const std::string high = CreateAs(PriorityClass::kHigh);
  ValidateInTurn(session, key, {high});
  EXPECT_EQ(State(high), JobState::kQueued);
  EXPECT_EQ(State(low), JobState::kRunning) << "it has only begun";
  EXPECT_LE(core->NextTimerBootNanos() - clock.BootNanos(), limits::kPreemptMinRunMs * 1'000'000);
  Pass(session, {Running(key)}, 590);
  EXPECT_EQ(State(low), JobState::kRunning);
  Pass(session, {Running(key)}, 20);
  Job job = Get(low);
  ASSERT_EQ(job.state, JobState::kPausing) << "ten minutes are over: no event had to come";
  EXPECT_EQ(job.pause_cause, PauseCause::kPreempt);
  EXPECT_NE(job.reason_detail.find(high), std::string::npos) << job.reason_detail;
  EXPECT_EQ(job.preemptions, 1);
  EXPECT_EQ(core->Stats().preemptions_total, 1u);
  absl::StatusOr<SyncReply> reply = Sync(session, {Running(key, 1, 7)});
  EXPECT_EQ(StopOf(*reply, key), StopMode::kCheckpoint);
  EXPECT_EQ(State(high), JobState::kQueued) << "not before the device is given back";
  ASSERT_TRUE(CommitCheckpoint(session, key, 7).ok());
  reply = Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)});
  const std::optional<AttemptKey> urgent = StartOf(*reply, high);
  ASSERT_TRUE(urgent.has_value()) << Get(high).reason_detail;
  EXPECT_EQ(State(low), JobState::kQueued);
  EXPECT_EQ(Get(low).failed_attempts, 0) << "not a failure";
  ASSERT_TRUE(Sync(session, {Running(*urgent)}).ok());
  ASSERT_TRUE(CommitArtifact(session, *urgent).ok());
  reply = Sync(session, {Report(*urgent, AttemptPhase::kEnded, ExitReason::kSucceeded)});
  ASSERT_EQ(reply->starts.size(), 1u);
  EXPECT_EQ(reply->starts[0].key.job_id, low);
  EXPECT_EQ(reply->starts[0].resume_from->step, 7);
  EXPECT_EQ(StateStory(low), "VALIDATING QUEUED STARTING RUNNING PAUSING QUEUED STARTING");
}

TEST_F(SchedulingTest, AJobIsPreemptedTwiceAtMost) {
  options.preempt_min_run_ms = 1'000;
  Restart();
  const std::string session = Open(OneThread("w1"));
  const std::string low = CreateAs(PriorityClass::kLow);
  AttemptKey key;
  Start(session, low, &key);
  for (int round = 1; round <= 3; ++round) {
    const std::string high = CreateAs(PriorityClass::kHigh);
    absl::StatusOr<SyncReply> reply = Sync(session, {Running(key)});
    ASSERT_TRUE(Sync(session, {Running(key), Validated(*StartOf(*reply, high))}).ok());
    Pass(session, {Running(key)}, 20);
    if (round == 3) {
      EXPECT_EQ(State(low), JobState::kRunning) << "twice is enough";
      EXPECT_EQ(Get(low).preemptions, 2);
      EXPECT_EQ(State(high), JobState::kQueued);
      break;
    }
    ASSERT_EQ(State(low), JobState::kPausing) << round;
    reply = Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)});
    const AttemptKey urgent = *StartOf(*reply, high);
    ASSERT_TRUE(Sync(session, {Running(urgent)}).ok());
    ASSERT_TRUE(CommitArtifact(session, urgent).ok());
    reply = Sync(session, {Report(urgent, AttemptPhase::kEnded, ExitReason::kSucceeded)});
    key = *StartOf(*reply, low);
    ASSERT_TRUE(Sync(session, {Running(key)}).ok());
  }
  Restart();
  EXPECT_EQ(Get(low).preemptions, 2) << "it is durable";
}

TEST_F(SchedulingTest, AUsersPauseOutranksAPreemptionAndAResumeGivesItBack) {
  options.preempt_min_run_ms = 1'000;
  Restart();
  const std::string session = Open(OneThread("w1"));
  const std::string low = CreateAs(PriorityClass::kLow);
  AttemptKey key;
  Start(session, low, &key);
  const std::string high = CreateAs(PriorityClass::kHigh);
  ValidateInTurn(session, key, {high});
  Pass(session, {Running(key)}, 10);
  ASSERT_EQ(Get(low).pause_cause, PauseCause::kPreempt);
  EXPECT_EQ(Do(core->Resume(low))->pause_cause, PauseCause::kPreempt) << "it will go on by itself: OK";
  EXPECT_EQ(Do(core->Pause(low))->pause_cause, PauseCause::kUser);
  Restart();
  EXPECT_EQ(Get(low).pause_cause, PauseCause::kUser);
  const std::string again = Open(OneThread("w1"), {Running(key)});
  EXPECT_EQ(StopOf(*Sync(again, {Running(key)}), key), StopMode::kCheckpoint) << "asked again after a restart";
  ASSERT_TRUE(Sync(again, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)}).ok());
  EXPECT_EQ(State(low), JobState::kPaused);
}

TEST_F(SchedulingTest, APauseWhileRecoveringHoldsAndAResumeVerifiesTheCheckpoint) {
  const std::string session = Open(OneThread("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitCheckpoint(session, key, 10).ok());
  ASSERT_TRUE(CommitCheckpoint(session, key, 20).ok());
  ASSERT_TRUE(
      core->Sync({session, ++sync_number, {Report(key, AttemptPhase::kEnded, ExitReason::kCrashed)}, 0, 0}).ok());
  EXPECT_EQ(Do(core->Pause(id))->state, JobState::kPaused) << "within the batch it was RECOVERING";
  blobs.Lose(Get(id).last_checkpoint->files[0].blob);
  ASSERT_TRUE(Do(core->Resume(id)).ok());
  EXPECT_EQ(Get(id).last_checkpoint->step, 10);
  EXPECT_EQ(StateStory(id), "VALIDATING QUEUED STARTING RUNNING RECOVERING PAUSED QUEUED");
}

TEST_F(SchedulingTest, AWorkerThatShutsDownIsGivenNothingAndLosesNothing) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  SyncInput leaving{session, ++sync_number, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)}, 0, 0};
  leaving.leaving = true;
  ASSERT_TRUE(Do(core->Sync(leaving)).ok());
  EXPECT_EQ(State(id), JobState::kQueued) << "handed back, and not placed there again";
  EXPECT_EQ(Get(id).reason, Reason::kNoWorker);
  EXPECT_NE(Get(id).reason_detail.find("shutting down"), std::string::npos) << Get(id).reason_detail;
  EXPECT_EQ(Get(id).failed_attempts, 0);
  EXPECT_TRUE(core->Workers().at(0).leaving);
  EXPECT_TRUE(core->Urgent("w1")) << "an agent that goes is not kept waiting";
  core->MakeReply("w1", sync_number);
  EXPECT_FALSE(core->Urgent("w1"));
  EXPECT_EQ(StateStory(id), "VALIDATING QUEUED STARTING RUNNING PAUSING QUEUED");
  const std::string back = Open(TestWorker("w1"));
  EXPECT_TRUE(StartOf(*Sync(back), id).has_value()) << "its next agent takes work again";
}

TEST_F(SchedulingTest, AfterACrashAnotherWorkerGoesFirst) {
  const std::string one = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(one, &id);
  const std::string two = Open(TestWorker("w2"));
  ASSERT_TRUE(SyncNumbered(one, 9, {Report(key, AttemptPhase::kEnded, ExitReason::kCrashed)}).ok());
  Advance(10'001);
  ASSERT_TRUE(SyncNumbered(one, 10).ok());
  EXPECT_TRUE(StartOf(*SyncNumbered(two, 10), id).has_value()) << Get(id).reason_detail;
  EXPECT_EQ(Get(id).attempt.worker_id, "w2");
}

TEST_F(SchedulingTest, AStepThatLastsForEverDoesNotEndInThePast) {
  const std::string session = Open(OneThread("w1"));
  std::string running;
  AttemptKey key = RunningJob(session, &running);
  const std::string next = Create();
  ValidateInTurn(session, key, {next});
  AttemptReport report = Running(key, 1, 1);
  report.progress[0].step_seconds = 1e300;
  ASSERT_TRUE(Sync(session, {report}).ok());
  const std::optional<WaitInfo> wait = WaitOf(Get(next));
  ASSERT_TRUE(wait.has_value());
  constexpr int64_t kTenYearsMicros = int64_t{10} * 365 * 86'400 * 1'000'000;
  EXPECT_GT(wait->expected_wall_micros - clock.WallMicros(), kTenYearsMicros);
}

TEST_F(SchedulingTest, WaitingJobsAreToldPlaceAndTimeAndNothingIsWrittenForIt) {
  const std::string session = Open(OneThread("w1"));
  std::string running;
  AttemptKey key = RunningJob(session, &running);  // 60 steps of a second
  const std::string next = Create();
  const std::string last = Create();
  ValidateInTurn(session, key, {next, last});
  const int64_t left_seconds = 60 + limits::kAttemptOverheadSeconds;
  std::optional<WaitInfo> first = WaitOf(Get(next));
  std::optional<WaitInfo> second = WaitOf(Get(last));
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_EQ(first->position, 1);
  EXPECT_EQ(second->position, 2);
  EXPECT_EQ(first->expected_wall_micros - clock.WallMicros(), left_seconds * 1'000'000);
  EXPECT_EQ(second->expected_wall_micros - clock.WallMicros(), 2 * left_seconds * 1'000'000);
  EXPECT_EQ(first->detail, "needs 1 CPU threads; worker w1 has 0 free of 1");
  EXPECT_FALSE(WaitOf(Get(running)).has_value());
  // Progress moves the times, and costs no commit of its own.
  const int commits = store.commits();
  AttemptReport report = Running(key, 1, 30);
  for (MetricPoint& point : report.progress) point.step_seconds = 2;
  ASSERT_TRUE(Sync(session, {report}).ok());
  for (int i = 0; i < 4; ++i) {
    Advance(10'000);
    ASSERT_TRUE(Sync(session, {report}).ok());
  }
  first = WaitOf(Get(next));
  EXPECT_GE(first->expected_wall_micros - clock.WallMicros(), 60'000'000);
  EXPECT_LE(first->expected_wall_micros - clock.WallMicros(), (60 + limits::kAttemptOverheadSeconds) * 1'000'000);
  EXPECT_LE(store.commits(), commits + 1) << "the metrics alone";
}

TEST_F(SchedulingTest, ExplainSaysWhyWhatWhereAndWhen) {
  const std::string session = Open(OneThread("w1"));
  std::string running;
  const AttemptKey key = RunningJob(session, &running);
  Worker other = TestWorker("w2", int64_t{8} << 30, 2);
  other.draining = false;
  other.models[0].digest = "another";
  Open(other);
  ASSERT_TRUE(Do(core->SetDraining("w2", true)).ok());
  const std::string id = Create();
  absl::StatusOr<SyncReply> reply = SyncNumbered(session, 100, {Running(key)});
  ASSERT_TRUE(SyncNumbered(session, 101, {Running(key), Validated(*StartOf(*reply, id))}).ok());
  const absl::StatusOr<std::optional<Explanation>> answer = core->ExplainWait(id);
  ASSERT_TRUE(answer.ok() && answer->has_value());
  const Explanation& explanation = **answer;
  EXPECT_EQ(explanation.wait.reason, Reason::kWaitingForCpuThreads);
  EXPECT_EQ(explanation.wait.position, 1);
  EXPECT_TRUE(explanation.reserved);
  EXPECT_EQ(explanation.reserved_worker_id, "w1");
  EXPECT_EQ(explanation.after_job_ids, std::vector<std::string>{running});
  ASSERT_EQ(explanation.unblocks.size(), 1u);
  EXPECT_NE(explanation.unblocks[0].find("the end of job " + running), std::string::npos) << explanation.unblocks[0];
  EXPECT_EQ(explanation.project_jobs, 1);
  ASSERT_EQ(explanation.places.size(), 1u) << "w2 has another model";
  EXPECT_TRUE(explanation.places[0].possible);
  EXPECT_EQ(explanation.places[0].why, "needs 1 CPU threads; worker w1 has 0 free of 1");
  EXPECT_GT(explanation.places[0].expected_wall_micros, clock.WallMicros());
  EXPECT_FALSE((*core->ExplainWait(running)).has_value()) << "it does not wait";
  EXPECT_EQ(ErrorReason(core->ExplainWait("ftjob-none").status()), "JOB_NOT_FOUND");
}

TEST_F(SchedulingTest, AForecastCountsTheQueueAndChangesNothing) {
  const std::string session = Open(OneThread("w1"));
  Job asked = TestJob(blobs.Add("dataset"));
  asked.total_steps = 100;
  StartForecast forecast = *core->ForecastStart(asked);
  EXPECT_EQ(forecast.wait.position, 0) << "at once";
  EXPECT_EQ(forecast.wait.expected_wall_micros, clock.WallMicros());
  EXPECT_EQ(forecast.expected_end_wall_micros, clock.WallMicros() + 100'000'000);
  std::string running;
  RunningJob(session, &running);
  forecast = *core->ForecastStart(asked);
  EXPECT_EQ(forecast.wait.position, 1);
  EXPECT_EQ(forecast.wait.reason, Reason::kWaitingForCpuThreads);
  EXPECT_EQ(forecast.wait.expected_wall_micros - clock.WallMicros(),
            (60 + limits::kAttemptOverheadSeconds) * 1'000'000);
  EXPECT_EQ(forecast.device_class, "cpu-avx2-1t");
  asked.priority = PriorityClass::kHigh;
  asked.model_digest = "unseen";
  forecast = *core->ForecastStart(asked);
  EXPECT_EQ(forecast.wait.reason, Reason::kModelNotOnAnyWorker);
  EXPECT_EQ(forecast.wait.expected_wall_micros, 0) << "nobody can tell";
  EXPECT_TRUE(Settle().ok());
  EXPECT_EQ(core->jobs().size(), 1u);
  EXPECT_TRUE(core->TellWaits()->result().waits.empty());
}

TEST_F(SchedulingTest, TheProjectThatHasUsedLessGoesFirstAlsoAfterARestart) {
  std::string session = Open(OneThread("w1"));
  const std::string ants = CreateAs(PriorityClass::kNormal, "ants");
  AttemptKey key;
  Start(session, ants, &key);
  Pass(session, {Running(key)}, 1'800);
  End(session, key);
  const std::string blocker = CreateAs(PriorityClass::kNormal, "cats");
  Start(session, blocker, &key);
  const std::string ants2 = CreateAs(PriorityClass::kNormal, "ants");
  const std::string bees = CreateAs(PriorityClass::kNormal, "bees");
  ValidateInTurn(session, key, {ants2, bees});
  EXPECT_EQ(Position(bees), 1) << "younger, but its project has used nothing";
  EXPECT_EQ(Position(ants2), 2);
  Restart();
  session = Open(OneThread("w1"), {Running(key)});
  EXPECT_EQ(Position(bees), 1);
  EXPECT_EQ(Position(ants2), 2);
}

TEST_F(SchedulingTest, OnlyFailuresAreReasonsToFailAndAFaultyDeviceIsRetried) {
  const std::string session = Open(TestWorker("w1", int64_t{64} << 30, 64));
  std::string id;
  AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(Sync(session, {Failed(key, Reason::kDeviceFault)}).ok());
  EXPECT_EQ(State(id), JobState::kQueued);
  EXPECT_EQ(Get(id).attempt.reason, Reason::kDeviceFault);
  key = RunningJob(session, &id);
  ASSERT_TRUE(Sync(session, {Failed(key, Reason::kWaitingForVram)}).ok());
  EXPECT_EQ(Get(id).attempt.reason, Reason::kInternal);
  EXPECT_EQ(State(id), JobState::kQueued);
}

// It counts what runs, however long ago its job was made.
TEST_F(SchedulingTest, ALongRunCountsAfterARestart) {
  std::string session = Open(OneThread("w1"));
  const std::string runs = CreateAs(PriorityClass::kNormal, "ants");
  AttemptKey key;
  Start(session, runs, &key);
  Pass(session, {Running(key)}, 10 * 3600);
  const std::string ants2 = CreateAs(PriorityClass::kNormal, "ants");
  const std::string bees = CreateAs(PriorityClass::kNormal, "bees");
  ValidateInTurn(session, key, {ants2, bees});
  Restart();
  session = Open(OneThread("w1"), {Running(key)});
  EXPECT_EQ(Position(bees), 1) << "younger, but its project has used nothing";
  EXPECT_GT(core->ExplainWait(ants2).value()->project_share, 0.9);
}

// Any caller of all projects may make up any number of names.
TEST_F(SchedulingTest, NamesOfProjectsThatAreGoneAreForgotten) {
  const std::string session = Open(OneThread("w1"));
  std::string running;
  const AttemptKey key = RunningJob(session, &running);
  const std::string waits = CreateAs(PriorityClass::kNormal);
  ValidateInTurn(session, key, {waits});
  Job asked = TestJob(blobs.Add("dataset"));
  asked.total_steps = 100;
  const StartForecast before = *core->ForecastStart(asked);
  size_t most = 0;
  for (int i = 0; i < 2 * limits::kMaxSpareTableNames + 100; ++i) {
    asked.project = "p" + std::to_string(i);
    ASSERT_TRUE(core->ForecastStart(asked).ok());
    most = std::max(most, core->table_names());
  }
  EXPECT_LE(most, static_cast<size_t>(limits::kMaxSpareTableNames) + 20);
  asked.project = "default";
  const StartForecast after = *core->ForecastStart(asked);
  EXPECT_EQ(after.wait.position, before.wait.position);
  EXPECT_EQ(after.wait.expected_wall_micros, before.wait.expected_wall_micros);
  EXPECT_EQ(after.device_class, before.device_class);
  EXPECT_EQ(Position(waits), 1);
}

TEST_F(SchedulingTest, ADeadlineEndsAPausedJobAndOneInBackoff) {
  const std::string session = Open(TestWorker("w1"));
  CreateInput input{TestJob(blobs.Add("dataset")), "body"};
  input.job.deadline_wall_micros = clock.WallMicros() + 60'000'000;
  input.job.backoff_seconds = 3'000;
  const std::string paused = Do(core->Create(input))->id;
  const std::string waiting = Do(core->Create(input))->id;
  absl::StatusOr<SyncReply> reply = Sync(session);
  reply = Sync(session, {Validated(*StartOf(*reply, paused)), Validated(*StartOf(*reply, waiting))});
  const AttemptKey one = *StartOf(*reply, paused);
  const AttemptKey two = *StartOf(*reply, waiting);
  ASSERT_TRUE(Sync(session, {Running(one), Running(two)}).ok());
  ASSERT_TRUE(Do(core->Pause(paused)).ok());
  ASSERT_TRUE(Sync(session, {Report(one, AttemptPhase::kEnded, ExitReason::kCheckpointed),
                             Report(two, AttemptPhase::kEnded, ExitReason::kCrashed)})
                  .ok());
  EXPECT_EQ(State(paused), JobState::kPaused);
  EXPECT_EQ(Get(waiting).reason, Reason::kBackoff);
  Advance(59'000);
  EXPECT_EQ(State(paused), JobState::kPaused);
  Advance(1'001);
  for (const std::string& id : {paused, waiting}) {
    EXPECT_EQ(Get(id).failure.reason, Reason::kDeadlineExceeded) << id;
  }
}

TEST_F(SchedulingTest, AFailedCommitTakesAPreemptionBack) {
  options.preempt_min_run_ms = 1'000;
  Restart();
  const std::string session = Open(OneThread("w1"));
  const std::string low = CreateAs(PriorityClass::kLow);
  AttemptKey key;
  Start(session, low, &key);
  const std::string high = CreateAs(PriorityClass::kHigh);
  ValidateInTurn(session, key, {high});
  clock.AdvanceMillis(2'000);
  store.FailCommits(1);
  EXPECT_FALSE(Settle().ok());
  EXPECT_EQ(core->jobs().at(low).job.state, JobState::kRunning);
  EXPECT_EQ(core->jobs().at(low).job.preemptions, 0);
  EXPECT_EQ(core->Stats().preemptions_total, 0u);
  Advance(1'001);
  EXPECT_EQ(State(low), JobState::kPausing);
  EXPECT_EQ(Get(low).preemptions, 1);
}

}  // namespace
}  // namespace longhaul::server
