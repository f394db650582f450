// A scheduler that could not hear: its workers' silence meanwhile is its own.
#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

using DeafTest = DispatcherCoreTest;

TEST_F(DeafTest, WhileTheSchedulerStoodStillNobodyWasSilent) {
  options.lease_ms = 3'000;
  options.worker_lost_ms = 4'000;
  options.sync_hold_ms = 1'000;
  Restart();
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  const std::string quiet = Open(TestWorker("w2"));
  Advance(500);
  clock.AdvanceMillis(100'000);
  core->NoteDeaf(int64_t{100'000} * 1'000'000);
  ASSERT_TRUE(Settle().ok());
  EXPECT_EQ(State(id), JobState::kRunning);
  for (const WorkerView& view : core->Workers()) EXPECT_FALSE(view.suspect) << view.worker->id;
  // As after a start: time for an agent that has just begun its longest wait.
  Advance(limits::kStartGraceMs - 1);
  EXPECT_EQ(State(id), JobState::kRunning);
  EXPECT_EQ(Sync(session, {Running(key)})->leases.size(), 1u) << "the session is still open";
  EXPECT_EQ(Get(id).lease_epoch, key.lease_epoch);
  EXPECT_EQ(Get(id).failed_attempts, 0);
  Advance(1);
  EXPECT_FALSE(core->SessionOpen(quiet)) << "which did not come back in that time";
  // Once it has been heard of, the short times are its own again.
  Advance(3'998);
  EXPECT_EQ(State(id), JobState::kRunning);
  Advance(1);
  EXPECT_EQ(State(id), JobState::kQueued);
}

// An hour without a lease ends a trainer. Where we were away for it, that is neither the job's failure nor its
// worker's.
TEST_F(DeafTest, ALeaseThatRanOutWhileTheSchedulerWasAwayIsNotCounted) {
  std::string session = Open(TestWorker("w1"));
  std::string id;
  AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitCheckpoint(session, key, 20).ok());
  const auto lost = [](const AttemptKey& of) {
    return std::vector{Report(of, AttemptPhase::kEnded, ExitReason::kLeaseLost)};
  };
  clock.AdvanceMillis(2 * limits::kOrphanMs);
  Restart();
  Open(TestWorker("w2"));
  session = Open(TestWorker("w1"), lost(key));
  EXPECT_EQ(Get(id).failed_attempts, 0);
  const auto reply = Sync(session);
  ASSERT_TRUE(StartOf(*reply, id).has_value()) << "at once, and its worker is not avoided";
  key = *StartOf(*reply, id);
  EXPECT_EQ(Get(id).attempt.resumed_from_step, 20);
  EXPECT_EQ(Get(id).state, JobState::kStarting);
  // A store that takes nothing gives no leases, either.
  ASSERT_TRUE(Sync(session, {Running(key)}).ok());
  Advance(1'000);
  store.FailCommits(1);
  core->Create({TestJob(blobs.Add("dataset")), "body"}).status().IgnoreError();
  EXPECT_FALSE(core->CommitBatch().ok());
  clock.AdvanceMillis(limits::kStoreRetryMs);
  ASSERT_TRUE(Sync(session, lost(key)).ok());
  EXPECT_EQ(Get(id).failed_attempts, 0);
  // While we were there all the time since it was last heard of, it counts.
  ASSERT_TRUE(StartOf(*Sync(session), id).has_value());
  key = {id, Get(id).attempt.number, Get(id).lease_epoch};
  Advance(1'000);
  store.FailCommits(1);
  core->Create({TestJob(blobs.Add("dataset")), "body"}).status().IgnoreError();
  EXPECT_FALSE(core->CommitBatch().ok());
  clock.AdvanceMillis(limits::kStoreRetryMs);
  ASSERT_TRUE(Sync(session, {Running(key)}).ok()) << "which has extended its lease";
  Advance(1'000);
  ASSERT_TRUE(Sync(session, lost(key)).ok());
  EXPECT_EQ(Get(id).failed_attempts, 1);
}

// A batch is long where the dispatcher stood still: the store still says that the job runs.
TEST_F(DeafTest, AJobThatEndedAndWasDeletedInABatchIsGoneForTheRestOfIt) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(core->CommitArtifact(session, key, {{"adapter", blobs.Add("adapter")}}, "result").ok());
  ASSERT_TRUE(core->Delete(id).ok());
  EXPECT_EQ(ErrorReason(core->Cancel(id).status()), "JOB_NOT_FOUND");
  EXPECT_EQ(ErrorReason(core->Delete(id)), "JOB_NOT_FOUND");
  EXPECT_EQ(ErrorReason(core->CheckFence(session, key)), "LEASE_FENCED");
  ASSERT_TRUE(Settle().ok());
  EXPECT_EQ(ErrorReason(store.GetJob(id).status()), "JOB_NOT_FOUND");
  EXPECT_EQ(core->Stats().internal_errors_total, 0u);
}

}  // namespace
}  // namespace longhaul::server
