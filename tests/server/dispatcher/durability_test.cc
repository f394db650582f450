// Persist, then act, then reply: a commit that fails has changed nothing, and a restart anywhere finds a whole state.
#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

using DurabilityTest = DispatcherCoreTest;

TEST_F(DurabilityTest, AFailedCommitChangesNothing) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  const Job before = core->jobs().at(id).job;
  const size_t told = effects.size();
  store.FailCommits(1);
  const absl::StatusOr<Job> cancelled = core->Cancel(id);
  EXPECT_TRUE(cancelled.ok()) << "within the batch it succeeds";
  const absl::StatusOr<Job> created = core->Create({TestJob(blobs.Add("dataset")), "b"});
  EXPECT_TRUE(created.ok());
  const absl::Status opened = core->OpenSession({TestWorker("w2"), 1, {}}).status();
  EXPECT_TRUE(opened.ok());
  const absl::Status status = core->CommitBatch();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(status), "STORE_UNAVAILABLE");
  EXPECT_NE(std::string(status.message()).find("disk is full"), std::string::npos);
  EXPECT_TRUE(core->TakeEffects().empty());
  EXPECT_EQ(effects.size(), told);
  EXPECT_EQ(core->jobs().size(), 1u);
  EXPECT_EQ(core->jobs().at(id).job.state, before.state);
  EXPECT_EQ(core->jobs().at(id).job.sequence, before.sequence);
  EXPECT_FALSE(core->workers().at("w1").holds.at({id, key.attempt}).stop.has_value());
  EXPECT_FALSE(core->workers().contains("w2"));
  EXPECT_EQ(core->Fleet().models.size(), 1u);
  EXPECT_EQ(core->Stats().failed_commits_total, 1u);
  EXPECT_EQ(core->Stats().created_total, 1u);
  // It rests, then goes on by itself; the client tries again and wins.
  EXPECT_GT(core->NextTimerBootNanos(), clock.BootNanos());
  Advance(1'001);
  EXPECT_EQ(Do(core->Cancel(id))->state, JobState::kCancelling);
}

TEST_F(DurabilityTest, AFailedWriteSpoilsItsWholeBatch) {
  const std::string id = Create();
  store.FailWrites(1);
  const absl::StatusOr<Job> first = core->Create({TestJob(blobs.Add("dataset")), "b"});
  EXPECT_FALSE(first.ok());
  core->Cancel(id).status().IgnoreError();
  EXPECT_EQ(core->CommitBatch().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(core->jobs().at(id).job.state, JobState::kValidating);
  EXPECT_EQ(core->jobs().size(), 1u);
}

TEST_F(DurabilityTest, ARefusedCommandIsUndoneAlone) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  Checkpoint bad = MakeCheckpoint(10);
  bad.files.push_back({"gone", {std::string(64, 'e'), 1}});
  const absl::Status refused = core->CommitCheckpoint(session, key, bad);
  const absl::Status good = core->CommitCheckpoint(session, key, MakeCheckpoint(20));
  ASSERT_TRUE(Settle().ok());
  EXPECT_FALSE(refused.ok());
  EXPECT_TRUE(good.ok());
  EXPECT_EQ(CheckpointSteps(id), std::vector<int64_t>{20});
}

TEST_F(DurabilityTest, ALostWorkerIsNoticedAgainAfterAFailedCommit) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  clock.AdvanceMillis(91'000);
  store.FailCommits(2);
  EXPECT_FALSE(Settle().ok());
  EXPECT_EQ(State(id), JobState::kRunning);
  EXPECT_EQ(core->jobs().at(id).job.lease_epoch, key.lease_epoch);
  clock.AdvanceMillis(1'001);
  EXPECT_FALSE(Settle().ok());
  Advance(1'001);
  EXPECT_EQ(State(id), JobState::kQueued);
  EXPECT_EQ(Get(id).lease_epoch, key.lease_epoch + 1) << "once, not three times";
  EXPECT_EQ(core->Stats().lease_expirations_total, 1u);
}

// The disk is full for longer than any lease. Workers go on calling; once there is space again nobody is lost.
TEST_F(DurabilityTest, AFullDiskForAnyTimeLosesNoWorker) {
  const std::string other = Open(TestWorker("w2"));
  const std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  absl::StatusOr<SyncReply> reply = Validate(session, id);
  const std::optional<AttemptKey> key = StartOf(*reply, id);
  ASSERT_TRUE(key.has_value());
  ASSERT_TRUE(Sync(session, {Running(*key)}).ok());
  store.FailCommits(1'000'000);
  for (int64_t number = 100; number < 130; ++number) {
    clock.AdvanceMillis(10'000);
    ASSERT_TRUE(core->Create({TestJob(blobs.Add("dataset")), "b"}).ok()) << "within the batch, which then fails";
    core->Sync({session, number, {Running(*key, number, number)}, 0, 0}).status().IgnoreError();
    core->Sync({other, number, {}, 0, 0}).status().IgnoreError();
    EXPECT_FALSE(Settle().ok());
    EXPECT_EQ(State(id), JobState::kRunning) << "reads go on";
  }
  store.FailCommits(0);
  Advance(1'001);
  EXPECT_EQ(State(id), JobState::kRunning);
  EXPECT_EQ(Get(id).lease_epoch, key->lease_epoch);
  EXPECT_TRUE(core->workers().at("w2").online);
  EXPECT_EQ(SyncNumbered(session, 200, {Running(*key, 200, 200)})->leases.size(), 1u);
}

TEST_F(DurabilityTest, ARecoveryIsFinishedAfterAFailedCommit) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(core->Sync({session, 90, {Report(key, AttemptPhase::kEnded, ExitReason::kCrashed)}, 0, 0}).ok());
  ASSERT_TRUE(core->CommitBatch().ok());
  EXPECT_EQ(State(id), JobState::kRecovering);
  store.FailCommits(1);
  core->Tick();
  EXPECT_FALSE(core->CommitBatch().ok());
  EXPECT_EQ(core->jobs().at(id).job.state, JobState::kRecovering);
  Advance(1'001);
  EXPECT_EQ(State(id), JobState::kQueued);
}

TEST_F(DurabilityTest, AStartIsNeverToldBeforeItsCommit) {
  const std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  absl::StatusOr<SyncReply> reply = Sync(session);
  store.FailCommits(1);
  const absl::Status failed =
      Do(core->Sync({session, ++sync_number, {Validated(*StartOf(*reply, id))}, 0, 0})).status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(State(id), JobState::kValidating);
  EXPECT_EQ(core->workers().at("w1").holds.size(), 1u);
  EXPECT_EQ(core->workers().at("w1").holds.begin()->second.kind, AttemptKind::kValidate);
  Advance(1'001);
  reply = Sync(session, {Validated(*StartOf(*reply, id))});
  EXPECT_EQ(StartOf(*reply, id)->lease_epoch, 2);
}

// A restart in every state: the job is there with the same sequence, and ends well.
TEST_F(DurabilityTest, RestartAnywhere) {
  const Worker worker = TestWorker("w1");
  std::string session = Open(worker);
  const std::string id = Create();
  const auto restart = [&](std::vector<AttemptReport> attempts) {
    const int64_t sequence = Get(id).sequence;
    Restart();
    EXPECT_EQ(Get(id).sequence, sequence);
    session = Open(worker, std::move(attempts));
  };
  restart({});  // VALIDATING, its start not heard of
  auto reply = Sync(session);
  AttemptKey key = *StartOf(*reply, id);
  EXPECT_EQ(key.attempt, 1);
  restart({Report(key, AttemptPhase::kStarting)});
  EXPECT_TRUE(Sync(session, {Report(key, AttemptPhase::kStarting)})->starts.empty());
  reply = Sync(session, {Validated(key)});
  key = *StartOf(*reply, id);  // STARTING
  restart({Report(key, AttemptPhase::kStarting)});
  ASSERT_TRUE(Sync(session, {Running(key, 1, 3)}).ok());
  restart({Running(key, 1, 3)});
  ASSERT_TRUE(CommitCheckpoint(session, key, 3).ok());
  ASSERT_TRUE(Do(core->Pause(id)).ok());
  restart({Running(key)});  // PAUSING: told again to stop
  EXPECT_EQ(StopOf(*Sync(session, {Running(key)}), key), StopMode::kCheckpoint);
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)}).ok());
  restart({});  // PAUSED
  EXPECT_EQ(State(id), JobState::kPaused);
  ASSERT_TRUE(Do(core->Resume(id)).ok());
  restart({});
  reply = Sync(session);
  key = *StartOf(*reply, id);
  EXPECT_EQ(reply->starts[0].resume_from->step, 3);
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kFinalizing, ExitReason::kSucceeded)}).ok());
  restart({Report(key, AttemptPhase::kFinalizing, ExitReason::kSucceeded)});
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  // SUCCEEDED, but the trainer's end is not told yet: it is neither fenced nor forgotten.
  restart({Report(key, AttemptPhase::kFinalizing, ExitReason::kNone)});
  EXPECT_TRUE(CommitArtifact(session, key).ok());
  EXPECT_TRUE(core->CheckFence(session, key).ok());
  EXPECT_TRUE(Sync(session, {Report(key, AttemptPhase::kFinalizing)})->stops.empty());
  EXPECT_EQ(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded)})->acknowledged.size(), 1u);
  EXPECT_EQ(State(id), JobState::kSucceeded);
  EXPECT_EQ(Get(id).failed_attempts, 0);
  EXPECT_TRUE(core->jobs().empty());
}

// An agent was killed as it put the attempt's folder away, and found enough of it to begin again.
TEST_F(DurabilityTest, WhatHasSucceededIsNotRunAgain) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  ASSERT_EQ(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded)})->acknowledged.size(), 1u);
  ASSERT_TRUE(core->jobs().empty());
  for (const AttemptPhase phase : {AttemptPhase::kStarting, AttemptPhase::kRunning, AttemptPhase::kHeld}) {
    const std::string back = Open(TestWorker("w1"), {Report(key, phase)});
    EXPECT_EQ(StopOf(*Sync(back, {Report(key, phase)}), key), StopMode::kCancel);
    EXPECT_EQ(Sync(back, {Report(key, AttemptPhase::kEnded, ExitReason::kCancelled)})->acknowledged.size(), 1u);
    EXPECT_EQ(State(id), JobState::kSucceeded);
    EXPECT_TRUE(core->jobs().empty());
  }
}

TEST_F(DurabilityTest, RestartWhileCancelling) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(Do(core->Cancel(id)).ok());
  Restart();
  const std::string back = Open(TestWorker("w1"), {Running(key)});
  EXPECT_EQ(StopOf(*Sync(back, {Running(key)}), key), StopMode::kCancel);
  Restart();
  Open(TestWorker("w1"));  // gone with its agent
  EXPECT_EQ(State(id), JobState::kCancelled);
}

TEST_F(DurabilityTest, RestartWhileRecovering) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(core->Sync({session, 90, {Report(key, AttemptPhase::kEnded, ExitReason::kCrashed)}, 0, 0}).ok());
  ASSERT_TRUE(core->CommitBatch().ok());
  ASSERT_EQ(State(id), JobState::kRecovering);
  Restart();
  EXPECT_EQ(State(id), JobState::kQueued);
}

}  // namespace
}  // namespace longhaul::server
