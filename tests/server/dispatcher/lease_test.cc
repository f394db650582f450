// Leases, epochs, failures: who may write, and where a job goes when its worker or its trainer does not come back.
#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

using LeaseTest = DispatcherCoreTest;

TEST_F(LeaseTest, ALostWorkersJobContinuesElsewhereUnderANewEpoch) {
  const std::string one = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(one, &id);
  ASSERT_TRUE(CommitCheckpoint(one, key, 20).ok());
  Advance(80'000);
  const std::string two = Open(TestWorker("w2"));
  EXPECT_EQ(State(id), JobState::kRunning);
  Advance(11'000);
  Job job = Get(id);
  EXPECT_EQ(job.state, JobState::kQueued) << "RECOVERING, then QUEUED, each by its commit";
  EXPECT_EQ(job.lease_epoch, key.lease_epoch + 1);
  EXPECT_EQ(job.attempt.outcome, AttemptOutcome::kLost);
  EXPECT_EQ(job.failed_attempts, 1);
  EXPECT_EQ(job.reason, Reason::kBackoff);
  EXPECT_EQ(StateStory(id), "VALIDATING QUEUED STARTING RUNNING RECOVERING QUEUED");
  EXPECT_TRUE(Sync(two)->starts.empty()) << "backoff";
  Advance(10'001);
  const auto reply = Sync(two);
  ASSERT_EQ(reply->starts.size(), 1u) << Get(id).reason_detail;
  EXPECT_EQ(reply->starts[0].key.lease_epoch, key.lease_epoch + 2);
  EXPECT_EQ(reply->starts[0].resume_from->step, 20);

  // The old worker wakes up. Everything it writes is refused.
  const auto stale = Do(core->Sync({one, 99, {Running(key)}, 0, 0}));
  EXPECT_EQ(ErrorReason(stale.status()), "SESSION_CLOSED");
  std::vector<AttemptKey> fenced;
  const std::string back = Open(TestWorker("w1"), {Running(key)}, &fenced);
  ASSERT_EQ(fenced.size(), 1u);
  EXPECT_EQ(fenced[0].lease_epoch, key.lease_epoch);
  for (const std::string& session : {back, one}) {
    EXPECT_FALSE(CommitCheckpoint(session, key, 40).ok());
    EXPECT_FALSE(CommitArtifact(session, key).ok());
    EXPECT_FALSE(core->CheckFence(session, key).ok());
  }
  EXPECT_EQ(ErrorReason(CommitCheckpoint(back, key, 40)), "LEASE_FENCED");
  EXPECT_EQ(CommitCheckpoint(back, key, 40).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ErrorReason(CommitArtifact(back, key)), "LEASE_FENCED");
  AttemptKey forged = key;
  forged.attempt = reply->starts[0].key.attempt;
  forged.lease_epoch = reply->starts[0].key.lease_epoch;
  EXPECT_EQ(ErrorReason(CommitCheckpoint(back, forged, 40)), "LEASE_FENCED") << "another worker's attempt";
  EXPECT_EQ(CheckpointSteps(id), std::vector<int64_t>{20});
  EXPECT_GT(core->Stats().fenced_writes_total, 0u);
  EXPECT_EQ(core->Stats().lease_expirations_total, 1u);
  EXPECT_EQ(core->Stats().recoveries_total.at(Reason::kWorkerLost), 1u);
}

TEST_F(LeaseTest, MemoryOfAnUnconfirmedDeadTrainerIsOfferedToNobody) {
  const std::string one = Open(TestWorker("w1", int64_t{8} << 30, 1));
  std::string id;
  const AttemptKey key = RunningJob(one, &id);
  Advance(91'000);
  Advance(11'000);
  EXPECT_EQ(State(id), JobState::kQueued);
  // The worker is back, its trainer still there: its one CPU thread is taken.
  const std::string back = Open(TestWorker("w1", int64_t{8} << 30, 1), {Running(key)});
  EXPECT_EQ(Get(id).reason, Reason::kWaitingForCpuThreads) << Get(id).reason_detail;
  auto reply = Sync(back, {Running(key)});
  EXPECT_EQ(StopOf(*reply, key), StopMode::kFenced);
  EXPECT_TRUE(reply->leases.empty()) << "a fenced attempt's lease is never extended";
  EXPECT_TRUE(reply->starts.empty());
  reply = Sync(back);  // gone
  EXPECT_TRUE(StartOf(*reply, id).has_value());
}

TEST_F(LeaseTest, AReturnWithinTheLeaseContinuesTheSameAttempt) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  Advance(85'000);
  const std::string back = Open(TestWorker("w1"), {Running(key, 1, 4)});
  Advance(85'000);
  EXPECT_EQ(State(id), JobState::kRunning);
  EXPECT_EQ(Get(id).attempt.number, key.attempt);
  EXPECT_EQ(Sync(back, {Running(key)})->leases.size(), 1u);
  EXPECT_EQ(ErrorReason(SyncNumbered(session, 50, {Running(key)}).status()), "SESSION_CLOSED");
}

TEST_F(LeaseTest, ASchedulersRestartKillsNothing) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  clock.AdvanceMillis(int64_t{10} * 60 * 1000);  // out for ten minutes
  Restart();
  EXPECT_EQ(State(id), JobState::kRunning);
  EXPECT_EQ(ErrorReason(Sync(session).status()), "SESSION_CLOSED");
  Advance(80'000);
  EXPECT_EQ(State(id), JobState::kRunning) << "a full lease from its own start";
  std::vector<AttemptKey> fenced;
  const std::string back = Open(TestWorker("w1"), {Report(key, AttemptPhase::kHeld)}, &fenced);
  EXPECT_TRUE(fenced.empty());
  EXPECT_EQ(Sync(back, {Running(key)})->leases.size(), 1u);
  ASSERT_TRUE(CommitArtifact(back, key).ok());
  EXPECT_EQ(State(id), JobState::kSucceeded);
  EXPECT_EQ(Get(id).attempts, 2);
}

// However short the leases: an agent that began its longest wait as the scheduler came back is heard of in time.
TEST_F(LeaseTest, ASchedulersRestartWithShortLeasesKillsNothing) {
  options.lease_ms = 3'000;
  options.worker_lost_ms = 4'000;
  options.sync_hold_ms = 1'000;
  Restart();
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  clock.AdvanceMillis(15'000);
  Restart();
  Advance(limits::kMaxBackoffMs + 10'000);
  ASSERT_EQ(State(id), JobState::kRunning);
  const std::string back = Open(TestWorker("w1"), {Report(key, AttemptPhase::kHeld)});
  EXPECT_EQ(Sync(back, {Running(key)})->leases.size(), 1u);
  // Once it has been heard of, the short times are its own again.
  Advance(4'001);
  EXPECT_EQ(State(id), JobState::kQueued);
}

TEST_F(LeaseTest, WithShortLeasesTooAWorkerThatNeverComesBackIsLost) {
  options.lease_ms = 3'000;
  options.worker_lost_ms = 4'000;
  options.sync_hold_ms = 1'000;
  Restart();
  std::string id;
  RunningJob(Open(TestWorker("w1")), &id);
  Restart();
  Advance(limits::kStartGraceMs - 1);
  EXPECT_EQ(State(id), JobState::kRunning);
  Advance(1);
  EXPECT_EQ(State(id), JobState::kQueued);
}

TEST_F(LeaseTest, AWorkerThatNeverComesBackAfterARestartIsLost) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  RunningJob(session, &id);
  Restart();
  Advance(91'000);
  EXPECT_EQ(State(id), JobState::kQueued);
  EXPECT_EQ(Get(id).failed_attempts, 1);
}

TEST_F(LeaseTest, AStartIsSentAgainUntilItIsHeardOf) {
  const std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  EXPECT_TRUE(core->Urgent("w1"));
  auto reply = SyncNumbered(session, 1);
  const AttemptKey key = reply->starts.at(0).key;
  EXPECT_FALSE(core->Urgent("w1"));
  // The answer was lost: the same number again gets the same command, at once.
  ASSERT_TRUE(Do(core->Sync({session, 1, {}, 0, 0})).ok());
  EXPECT_TRUE(core->Urgent("w1"));
  reply = core->MakeReply("w1", 1);
  EXPECT_EQ(reply->starts.at(0).key.lease_epoch, key.lease_epoch);
  // With another number it is in every answer, without hurry.
  reply = SyncNumbered(session, 2);
  EXPECT_EQ(reply->starts.size(), 1u);
  reply = SyncNumbered(session, 3, {Report(key, AttemptPhase::kStarting)});
  EXPECT_TRUE(reply->starts.empty());
  EXPECT_EQ(Get(id).attempts, 1);
}

TEST_F(LeaseTest, AnAgentRestartedBeforeTheStartGetsTheSameAttempt) {
  std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  auto reply = Validate(session, id);
  const StartCommand first = reply->starts.at(0);
  session = Open(TestWorker("w1"));  // nothing on its disk
  reply = Sync(session);
  ASSERT_EQ(reply->starts.size(), 1u);
  EXPECT_EQ(reply->starts[0].key.attempt, first.key.attempt);
  EXPECT_EQ(reply->starts[0].key.lease_epoch, first.key.lease_epoch);
  EXPECT_EQ(reply->starts[0].memory_plan_json, first.memory_plan_json);
  // Also over a restart of the scheduler, which makes the same plan again.
  Restart();
  session = Open(TestWorker("w1"));
  reply = Sync(session);
  ASSERT_EQ(reply->starts.size(), 1u);
  EXPECT_EQ(reply->starts[0].key.attempt, first.key.attempt);
  EXPECT_EQ(reply->starts[0].memory_plan_json, first.memory_plan_json);
  // On a device that has changed, the plan cannot be repeated: placed anew, not counted.
  Restart();
  session = Open(TestWorker("w1", int64_t{4} << 30, 2));
  EXPECT_EQ(Get(id).failed_attempts, 0);
  reply = Sync(session);
  ASSERT_EQ(reply->starts.size(), 1u) << Get(id).reason_detail;
  EXPECT_EQ(reply->starts[0].key.attempt, first.key.attempt + 1);
  EXPECT_GT(reply->starts[0].key.lease_epoch, first.key.lease_epoch);
}

TEST_F(LeaseTest, AnAgentThatLostARunningAttemptLosesIt) {
  std::string session = Open(TestWorker("w1"));
  std::string id;
  RunningJob(session, &id);
  session = Open(TestWorker("w1"));
  EXPECT_EQ(State(id), JobState::kQueued);
  EXPECT_EQ(Get(id).attempt.outcome, AttemptOutcome::kLost);
  EXPECT_TRUE(core->workers().at("w1").holds.empty());
}

TEST_F(LeaseTest, UnknownAttemptsAreFenced) {
  const AttemptKey strange{"ftjob-stranger", 3, 7};
  std::vector<AttemptKey> fenced;
  const std::string session = Open(TestWorker("w1"), {Running(strange)}, &fenced);
  EXPECT_EQ(fenced.size(), 1u);
  EXPECT_EQ(StopOf(*Sync(session, {Running(strange)}), strange), StopMode::kFenced);
  EXPECT_TRUE(Sync(session)->stops.empty());
  EXPECT_EQ(Sync(session, {Report(strange, AttemptPhase::kEnded, ExitReason::kFailed)})->acknowledged.size(), 1u);
}

TEST_F(LeaseTest, SyncsOutOfOrderChangeNothingBack) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(SyncNumbered(session, 100, {Report(key, AttemptPhase::kFinalizing)}).ok());
  ASSERT_TRUE(SyncNumbered(session, 99, {Running(key)}).ok());
  EXPECT_EQ(State(id), JobState::kFinalizing);
  ASSERT_TRUE(SyncNumbered(session, 98, {Report(key, AttemptPhase::kStarting)}).ok());
  EXPECT_EQ(State(id), JobState::kFinalizing);
}

TEST_F(LeaseTest, FailuresThatRetryAndFailuresThatDoNot) {
  const std::string session = Open(TestWorker("w1", int64_t{64} << 30, 64));
  for (const Reason reason : {Reason::kNonFiniteLoss, Reason::kHostOom, Reason::kDeviceOom, Reason::kInvalidModel}) {
    std::string id;
    const AttemptKey key = RunningJob(session, &id);
    ASSERT_TRUE(Sync(session, {Failed(key, reason)}).ok());
    const Job job = Get(id);
    EXPECT_EQ(job.state, JobState::kFailed) << Name(reason);
    EXPECT_EQ(job.failure.reason, reason);
    EXPECT_EQ(job.failure.log_tail, "tail");
  }
  for (const Reason reason : {Reason::kInternal, Reason::kDiskFull}) {
    std::string id;
    const AttemptKey key = RunningJob(session, &id);
    ASSERT_TRUE(Sync(session, {Failed(key, reason)}).ok());
    EXPECT_EQ(State(id), JobState::kQueued) << Name(reason);
    EXPECT_EQ(Get(id).attempt.reason, reason);
  }
}

TEST_F(LeaseTest, CrashesBackOffDoublingAndEndAtTheLimit) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  AttemptKey key = RunningJob(session, &id);
  for (int failure = 1; failure <= 4; ++failure) {
    const int64_t at = clock.WallMicros();
    ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCrashed)}).ok());
    Job job = Get(id);
    EXPECT_EQ(job.failed_attempts, failure);
    if (failure == 4) {
      EXPECT_EQ(job.state, JobState::kFailed);
      EXPECT_EQ(job.reason, Reason::kRetryLimitExceeded);
      EXPECT_NE(job.failure.message.find("TRAINER_CRASHED"), std::string::npos) << job.failure.message;
      break;
    }
    const int64_t wait_ms = 10'000 << (failure - 1);
    EXPECT_EQ(job.not_before_wall_micros, at + wait_ms * 1000);
    // Syncs on the way keep the worker alive.
    for (int64_t left = wait_ms; left > 0; left -= 10'000) {
      ASSERT_TRUE(Sync(session)->starts.empty());
      Advance(10'000);
    }
    const auto reply = Sync(session);
    ASSERT_TRUE(StartOf(*reply, id).has_value()) << failure << " " << Get(id).reason_detail;
    key = *StartOf(*reply, id);
    ASSERT_TRUE(Sync(session, {Running(key)}).ok());
  }
}

TEST_F(LeaseTest, AnEndWithoutArtifactRecoversFromTheFinalCheckpoint) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitCheckpoint(session, key, 60).ok());
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded)}).ok());
  EXPECT_EQ(State(id), JobState::kQueued);
  EXPECT_EQ(StateStory(id), "VALIDATING QUEUED STARTING RUNNING FINALIZING RECOVERING QUEUED");
  EXPECT_EQ(Get(id).last_checkpoint->step, 60);
}

TEST_F(LeaseTest, ACheckpointWhoseBytesAreGoneGivesWayToTheEarlierOne) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitCheckpoint(session, key, 10).ok());
  ASSERT_TRUE(CommitCheckpoint(session, key, 20).ok());
  blobs.Lose(Get(id).last_checkpoint->files[0].blob);
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCrashed)}).ok());
  EXPECT_EQ(Get(id).last_checkpoint->step, 10);
  EXPECT_EQ(CheckpointSteps(id), std::vector<int64_t>{10}) << "of the other nothing is kept";
  EXPECT_NE(Get(id).pinned_device_class, "");
  // Without any the job begins again, wherever it likes.
  blobs.Lose(Get(id).last_checkpoint->files[0].blob);
  Advance(11'000);
  const AttemptKey next{id, Get(id).attempt.number, Get(id).lease_epoch};
  ASSERT_TRUE(Sync(session, {Report(next, AttemptPhase::kEnded, ExitReason::kCrashed)}).ok());
  EXPECT_FALSE(Get(id).last_checkpoint.has_value());
  EXPECT_TRUE(CheckpointSteps(id).empty());
  EXPECT_EQ(Get(id).pinned_device_class, "");
}

// A repetition of an earlier commit comes late, over another connection: what was committed since stays the last.
TEST_F(LeaseTest, AnEarlierCheckpointThatComesLateChangesNothing) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitCheckpoint(session, key, 10).ok());
  ASSERT_TRUE(CommitCheckpoint(session, key, 20).ok());
  const int64_t sequence = Get(id).sequence;
  EXPECT_TRUE(CommitCheckpoint(session, key, 10).ok());
  EXPECT_EQ(Get(id).last_checkpoint->step, 20);
  EXPECT_EQ(Get(id).sequence, sequence);
}

TEST_F(LeaseTest, AValidationIsRetriedAndPlacedAgain) {
  const std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  auto reply = Sync(session);
  ASSERT_TRUE(Sync(session, {Report(reply->starts.at(0).key, AttemptPhase::kEnded, ExitReason::kCrashed)}).ok());
  EXPECT_EQ(State(id), JobState::kValidating);
  EXPECT_EQ(Get(id).reason, Reason::kBackoff);
  Advance(10'001);
  reply = Sync(session);
  ASSERT_EQ(reply->starts.size(), 1u);
  EXPECT_EQ(reply->starts[0].key.attempt, 2);
  Advance(91'000);  // lost in the middle
  EXPECT_EQ(State(id), JobState::kValidating);
  EXPECT_EQ(Get(id).lease_epoch, 3);
}

// An OpenSession that its agent has given up, and that is taken after a later one, would end the live session and say
// that the worker holds nothing.
TEST_F(LeaseTest, AnOpeningThatWasOvertakenIsRefused) {
  const auto open = [&](std::optional<std::string> last_opening, std::vector<AttemptReport> attempts = {}) {
    SessionInput input{TestWorker("w1"), 1, std::move(attempts)};
    input.last_opening = std::move(last_opening);
    return Do(core->OpenSession(input));
  };
  const absl::StatusOr<SessionReply> taken = open("");
  ASSERT_TRUE(taken.ok()) << taken.status();
  std::string id;
  const AttemptKey key = RunningJob(taken->session_id, &id);
  const auto refused = [&](const std::string& last_opening, const std::string& now) {
    const absl::Status late = open(last_opening).status();
    EXPECT_EQ(late.code(), absl::StatusCode::kAborted);
    EXPECT_EQ(ErrorReason(late), "OPENED_SINCE");
    EXPECT_EQ(ErrorMetadata(late, "opening"), now);
  };
  refused("", taken->opening);
  EXPECT_TRUE(core->SessionOpen(taken->session_id));
  EXPECT_TRUE(Sync(taken->session_id, {Running(key)}).ok());
  EXPECT_EQ(State(id), JobState::kRunning);
  // The next agent of the worker is told of it, and asks again. What was sent before is late for good.
  const absl::StatusOr<SessionReply> next = open(taken->opening, {Running(key)});
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_NE(next->opening, taken->opening);
  EXPECT_FALSE(core->SessionOpen(taken->session_id));
  refused("", next->opening);
  refused(taken->opening, next->opening);
  EXPECT_EQ(Get(id).lease_epoch, key.lease_epoch);
  // A commit that fails has opened nothing.
  store.FailCommits(1);
  EXPECT_FALSE(open(next->opening).ok());
  const absl::StatusOr<SessionReply> again = open(next->opening, {Running(key)});
  ASSERT_TRUE(again.ok()) << again.status();
  // A scheduler that has taken no opening of the worker has none to be late for: no call outlives its process.
  Restart();
  EXPECT_TRUE(open(again->opening, {Running(key)}).ok());
  EXPECT_EQ(State(id), JobState::kRunning);
  EXPECT_TRUE(open(std::nullopt, {Running(key)}).ok()) << "an agent of before says nothing of it";
}

TEST_F(LeaseTest, OldAndNewProtocolsAreRefused) {
  const absl::Status old = Do(core->OpenSession({TestWorker("w1"), 0, {}})).status();
  EXPECT_EQ(ErrorReason(old), "WORKER_TOO_OLD");
  EXPECT_EQ(ErrorReason(Do(core->OpenSession({TestWorker("w1"), 2, {}})).status()), "WORKER_TOO_NEW");
  EXPECT_FALSE(Do(core->OpenSession({TestWorker(""), 1, {}})).ok());
  EXPECT_FALSE(Do(core->OpenSession({TestWorker("a b"), 1, {}})).ok());
  Worker twice = TestWorker("w1");
  twice.devices.push_back(twice.devices[0]);
  EXPECT_FALSE(Do(core->OpenSession({twice, 1, {}})).ok());
  EXPECT_TRUE(core->workers().empty());
}

TEST_F(LeaseTest, AWorkerOfAnotherPlanVersionGetsNothingNew) {
  Worker worker = TestWorker("w1");
  worker.plan_version = kPlanVersion + 1;
  const std::string session = Open(worker);
  const std::string id = Create();
  EXPECT_TRUE(Sync(session)->starts.empty());
  EXPECT_EQ(Get(id).reason, Reason::kNoWorker);
}

TEST_F(LeaseTest, ASuspectWorkerGetsNothingNew) {
  const std::string session = Open(TestWorker("w1"));
  Advance(30'000);
  const std::string id = Create();
  EXPECT_EQ(Get(id).reason, Reason::kNoWorker);
  EXPECT_TRUE(core->Workers().at(0).suspect);
  EXPECT_EQ(Sync(session)->starts.size(), 1u) << "heard of again: placed at once";
}

// A Sync names every attempt that the worker has. One that it has named and names no more is gone, whatever became of
// it: its job goes on elsewhere, its memory is offered again.
TEST_F(LeaseTest, AnAttemptThatItsWorkerNamesNoMoreIsLost) {
  const std::string session = Open(TestWorker("w1", int64_t{8} << 30, 1));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitCheckpoint(session, key, 20).ok());
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Sync(session).ok());
    EXPECT_EQ(State(id), JobState::kRunning) << "an answer may have crossed it";
  }
  ASSERT_TRUE(Sync(session, {Running(key)}).ok()) << "named again";
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(State(id), JobState::kRunning);
    ASSERT_TRUE(Sync(session).ok());
  }
  EXPECT_EQ(State(id), JobState::kQueued);
  EXPECT_EQ(Get(id).attempt.outcome, AttemptOutcome::kLost);
  EXPECT_GT(Get(id).lease_epoch, key.lease_epoch) << "fenced";
  EXPECT_EQ(Get(id).failed_attempts, 1);
  EXPECT_TRUE(core->workers().at("w1").holds.empty());
  Advance(10'001);
  const auto again = StartOf(*Sync(session), id);
  ASSERT_TRUE(again.has_value()) << Get(id).reason_detail;
}

// A trainer without a lease ends after an hour: until then its memory is counted, however long its worker is away.
TEST_F(LeaseTest, WhatALostWorkerRanIsForgottenOnceItHasEndedByItself) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  Advance(91'000);
  Advance(limits::kOrphanMs);
  EXPECT_EQ(core->workers().at("w1").holds.size(), 1u);
  Advance(limits::kOrphanEndMs + 60'000);
  EXPECT_TRUE(core->workers().at("w1").holds.empty());
  // Back after all, with a trainer that stood still: it counts again, and is stopped.
  std::vector<AttemptKey> fenced;
  Open(TestWorker("w1"), {Running(key)}, &fenced);
  EXPECT_EQ(fenced.size(), 1u);
  EXPECT_TRUE(core->workers().at("w1").holds.at({key.job_id, key.attempt}).fenced);
}

// Many workers come once: neither memory nor the store keeps them for ever.
TEST_F(LeaseTest, AWorkerNotHeardOfForMonthsIsForgotten) {
  constexpr int64_t kDayMs = int64_t{24} * 3'600'000;
  const std::string two = Open(TestWorker("w2"));
  std::string id;
  RunningJob(two, &id);
  Open(TestWorker("w1"));
  Advance(91'000);
  Advance((limits::kForgetWorkerDays - 1) * kDayMs);
  EXPECT_EQ(store.ListWorkers()->size(), 2u);
  Advance(kDayMs);
  EXPECT_TRUE(core->workers().empty()) << "what w2 ran has long ended by itself";
  EXPECT_TRUE(store.ListWorkers()->empty());
  Open(TestWorker("w1"));  // a new one of that name
  EXPECT_EQ(store.ListWorkers()->size(), 1u);
  // The days before a restart count.
  Advance(91'000);
  Advance((limits::kForgetWorkerDays - 1) * kDayMs);
  Restart();
  EXPECT_TRUE(core->workers().contains("w1"));
  Advance(kDayMs);
  EXPECT_FALSE(core->workers().contains("w1"));
  // One that goes on calling stays.
  const std::string session = Open(TestWorker("w3"));
  for (int day = 0; day < 2 * limits::kForgetWorkerDays; ++day) {
    Advance(kDayMs);
    Sync(session).IgnoreError();
    Open(TestWorker("w3"));
  }
  EXPECT_TRUE(core->workers().contains("w3"));
}

}  // namespace
}  // namespace longhaul::server
