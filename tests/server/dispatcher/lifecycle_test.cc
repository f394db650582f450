// A job's way through its states, undisturbed and by request.
#include <cmath>

#include "base/limits.h"
#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

using LifecycleTest = DispatcherCoreTest;

TEST_F(LifecycleTest, FromCreateToSucceeded) {
  const std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  EXPECT_EQ(State(id), JobState::kValidating);
  absl::StatusOr<SyncReply> reply = Sync(session);
  ASSERT_TRUE(reply.ok());
  ASSERT_EQ(reply->starts.size(), 1u);
  EXPECT_EQ(reply->starts[0].kind, AttemptKind::kValidate);
  EXPECT_EQ(reply->starts[0].key.lease_epoch, 1);
  EXPECT_EQ(reply->leases.size(), 1u);
  reply = Sync(session, {Validated(reply->starts[0].key)});
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->acknowledged.size(), 1u);
  ASSERT_EQ(reply->starts.size(), 1u) << Get(id).reason_detail;
  const StartCommand start = reply->starts[0];
  EXPECT_EQ(start.kind, AttemptKind::kTrain);
  EXPECT_EQ(start.key.attempt, 2);
  EXPECT_EQ(start.key.lease_epoch, 2);
  EXPECT_NE(start.memory_plan_json.find("whole"), std::string::npos);
  EXPECT_EQ(start.job.train_shape.longest_document, 300);
  EXPECT_EQ(start.job.train_shape.dataset_tokens, 3000);
  EXPECT_EQ(start.job.total_steps, 60);
  EXPECT_FALSE(start.resume_from.has_value());
  EXPECT_EQ(State(id), JobState::kStarting);

  ASSERT_TRUE(Sync(session, {Running(start.key, 1, 3)}).ok());
  EXPECT_EQ(State(id), JobState::kRunning);
  EXPECT_GT(Get(id).start_wall_micros, 0);
  ASSERT_TRUE(CommitCheckpoint(session, start.key, 3).ok());
  ASSERT_TRUE(Sync(session, {Report(start.key, AttemptPhase::kFinalizing, ExitReason::kSucceeded)}).ok());
  EXPECT_EQ(State(id), JobState::kFinalizing);
  ASSERT_TRUE(CommitArtifact(session, start.key).ok());
  EXPECT_EQ(State(id), JobState::kSucceeded);
  EXPECT_TRUE(CommitArtifact(session, start.key).ok()) << "asked again after a lost answer";
  const Job done = Get(id);
  EXPECT_EQ(done.result, "result");
  EXPECT_EQ(done.artifact.size(), 1u);
  EXPECT_EQ(done.attempt.outcome, AttemptOutcome::kSucceeded);
  EXPECT_EQ(core->workers().at("w1").holds.size(), 1u) << "its memory is not back before its end is told";
  EXPECT_TRUE(core->CheckFence(session, start.key).ok()) << "it still ships its log";

  AttemptReport ended = Report(start.key, AttemptPhase::kEnded, ExitReason::kSucceeded);
  ended.host_bytes_peak = 1234;
  reply = Sync(session, {ended});
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->acknowledged.size(), 1u);
  EXPECT_TRUE(core->workers().at("w1").holds.empty());
  EXPECT_TRUE(core->jobs().empty()) << "a terminal job leaves memory";
  EXPECT_EQ(store.ListAttempts(id)->at(1).host_bytes_peak, 1234);
  EXPECT_EQ(Sync(session, {ended})->acknowledged.size(), 1u) << "told again, acknowledged again";
  EXPECT_EQ(StateStory(id), "VALIDATING QUEUED STARTING RUNNING FINALIZING SUCCEEDED");
  // Nothing follows the terminal event.
  const std::vector<JobEvent> events = *store.ListEvents(id, 0, 100);
  EXPECT_EQ(events.back().state, JobState::kSucceeded);
  EXPECT_EQ(events.back().type, EventType::kState);
  EXPECT_EQ(store.ListMetrics(id, 0, 100)->size(), 3u);
}

TEST_F(LifecycleTest, InvalidDataFailsWithItsReport) {
  const std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  absl::StatusOr<SyncReply> reply = Sync(session);
  AttemptReport report = Validated(reply->starts.at(0).key);
  report.report_error_count = 3;
  ASSERT_TRUE(Sync(session, {report}).ok());
  Job job = Get(id);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.failure.reason, Reason::kInvalidDataset);
  EXPECT_TRUE(job.failure.user_can_fix);
  EXPECT_EQ(job.data_report, "report");

  const std::string told = Create();
  reply = Sync(session);
  AttemptReport failed = Failed(*StartOf(*reply, told), Reason::kInvalidDataset);
  failed.data_report = "report";
  ASSERT_TRUE(Sync(session, {failed}).ok());
  EXPECT_EQ(Get(told).failure.reason, Reason::kInvalidDataset);

  const std::string empty = Create();
  reply = Sync(session);
  ASSERT_TRUE(Sync(session, {Validated(*StartOf(*reply, empty), 0)}).ok());
  EXPECT_EQ(Get(empty).failure.reason, Reason::kInvalidDataset);
}

TEST_F(LifecycleTest, DataTooLongForEveryDeviceFailsWithTheFigures) {
  const std::string session = Open(TestWorker("w1", 600 << 20));
  Job asked = TestJob(blobs.Add("dataset"));
  asked.train_shape.sequence_length = 1 << 20;  // KiB at the minimum point: 1 GiB, were it used to the end
  asked.train_shape.longest_document = 1000;    // a guess before the data is known
  const absl::StatusOr<Job> job = Do(core->Create({asked, "b"}));
  ASSERT_TRUE(job.ok());
  absl::StatusOr<SyncReply> reply = Sync(session);
  AttemptReport report = Validated(reply->starts.at(0).key);
  report.report_longest_tokens = 5 << 20;  // never more than asked
  ASSERT_TRUE(Sync(session, {report}).ok());
  const Job failed = Get(job->id);
  EXPECT_EQ(failed.state, JobState::kFailed);
  EXPECT_EQ(failed.reason, Reason::kExceedsEveryDevice);
  EXPECT_EQ(failed.train_shape.longest_document, 1 << 20);
  EXPECT_NE(failed.failure.message.find("needs"), std::string::npos) << failed.failure.message;
}

TEST_F(LifecycleTest, TwoJobsSideBySideWhenBothFit) {
  const std::string session = Open(TestWorker("w1", int64_t{8} << 30, 2));
  std::string a;
  std::string b;
  others.push_back(Running(RunningJob(session, &a, 1)));
  others.push_back(Running(RunningJob(session, &b, 1)));
  EXPECT_EQ(State(a), JobState::kRunning);
  EXPECT_EQ(State(b), JobState::kRunning);
  const std::string c = Create(1);
  Validate(session, c).status().IgnoreError();
  const Job waiting = Get(c);
  EXPECT_EQ(waiting.state, JobState::kQueued);
  EXPECT_EQ(waiting.reason, Reason::kWaitingForCpuThreads);
  EXPECT_EQ(waiting.reason_detail, "needs 1 CPU threads; worker w1 has 0 free of 2");
  EXPECT_EQ(Position(c), 1);
  // The first one ends: the third takes its place at once.
  const Job first = Get(a);
  const AttemptKey key{a, first.attempt.number, first.lease_epoch};
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  EXPECT_EQ(State(c), JobState::kQueued) << "not before the first trainer is gone";
  others.erase(others.begin());
  const auto reply = Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded)});
  EXPECT_TRUE(StartOf(*reply, c).has_value());
}

TEST_F(LifecycleTest, CreateIsIdempotentByRequestId) {
  CreateInput input{TestJob(blobs.Add("dataset")), "body"};
  input.job.request_id = "r1";
  const absl::StatusOr<Job> first = Do(core->Create(input));
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(Do(core->Create(input))->id, first->id);
  // Twice in one batch.
  input.job.request_id = "r2";
  const absl::StatusOr<Job> one = core->Create(input);
  const absl::StatusOr<Job> two = core->Create(input);
  ASSERT_TRUE(Settle().ok());
  EXPECT_EQ(one->id, two->id);
  input.body_sha256 = "another";
  const absl::Status reused = Do(core->Create(input)).status();
  EXPECT_EQ(reused.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ErrorReason(reused), "REQUEST_ID_REUSED");
  input.job.project = "other";
  EXPECT_TRUE(Do(core->Create(input)).ok()) << "keys are a project's own";
  // After Delete the key is a tombstone; after 30 days it is free.
  ASSERT_TRUE(Do(core->Cancel(first->id)).ok());
  ASSERT_TRUE(Do(core->Delete(first->id)).ok());
  input.job.project = "default";
  input.job.request_id = "r1";
  input.body_sha256 = "body";
  EXPECT_EQ(ErrorReason(Do(core->Create(input)).status()), "JOB_NOT_FOUND");
  Advance(int64_t{31} * 24 * 3600 * 1000);
  const absl::StatusOr<Job> again = Do(core->Create(input));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_NE(again->id, first->id);
}

// However fast jobs are made: what a minute's sweep leaves, the next ones take at once.
TEST_F(LifecycleTest, RequestKeysAreForgottenAsFastAsTheyCome) {
  const int64_t born = clock.WallMicros();
  const int keys = 3 * limits::kMaxKeysSweptPerCommit + 1;
  auto transaction = store.Begin().value();
  ASSERT_TRUE(transaction->BeginCommand().ok());
  for (int i = 0; i < keys; ++i) {
    ASSERT_TRUE(transaction->PutRequestKey({"default", "r" + std::to_string(i), "sha", "ftjob-1", born}).ok());
  }
  ASSERT_TRUE(transaction->EndCommand(true).ok());
  ASSERT_TRUE(transaction->Commit().ok());
  transaction.reset();
  const auto left = [&] {
    int count = 0;
    for (int i = 0; i < keys; ++i) count += store.GetRequestKey("default", "r" + std::to_string(i))->has_value();
    return count;
  };
  Advance(limits::kRequestIdTtlDays * 24 * 3'600'000 + 1);
  EXPECT_EQ(left(), keys - limits::kMaxKeysSweptPerCommit);
  for (int i = 0; i < 3; ++i) Advance(limits::kKeySweepAgainMs);
  EXPECT_EQ(left(), 0);
}

TEST_F(LifecycleTest, CreateNeedsItsBlobs) {
  CreateInput input{TestJob({std::string(64, 'a'), 3}), "body"};
  const absl::Status status = Do(core->Create(input)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(status), "DATASET_NOT_UPLOADED");
  EXPECT_TRUE(store.LoadLiveJobs()->empty());
}

TEST_F(LifecycleTest, DeadlineEndsWaitingAndRunningJobs) {
  const std::string session = Open(TestWorker("w1"));
  CreateInput input{TestJob(blobs.Add("dataset")), "body"};
  input.job.deadline_wall_micros = clock.WallMicros() + 30'000'000;
  const absl::StatusOr<Job> waiting = Do(core->Create(input));
  input.job.train_shape.cpu_threads = 4;
  const absl::StatusOr<Job> running = Do(core->Create(input));
  absl::StatusOr<SyncReply> reply = Sync(session);
  reply = Sync(session, {Validated(*StartOf(*reply, running->id))});
  const AttemptKey key = *StartOf(*reply, running->id);
  ASSERT_TRUE(Sync(session, {Running(key)}).ok());
  EXPECT_LE(core->NextTimerBootNanos() - clock.BootNanos(), 30'000'000'000) << "the thread wakes for it";
  Advance(30'001);
  EXPECT_EQ(Get(waiting->id).failure.reason, Reason::kDeadlineExceeded);
  EXPECT_EQ(Get(running->id).state, JobState::kFailed);
  EXPECT_TRUE(core->Urgent("w1"));
  reply = Sync(session, {Running(key)});
  EXPECT_EQ(StopOf(*reply, key), StopMode::kCancel);
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCancelled)}).ok());
  EXPECT_EQ(StateStory(running->id), "VALIDATING QUEUED STARTING RUNNING FAILED");
}

// ---- Cancel and pause in every state ----

TEST_F(LifecycleTest, CancelWaitingJobsAtOnce) {
  const std::string validating = Create();
  EXPECT_EQ(Do(core->Cancel(validating))->state, JobState::kCancelled);
  const absl::Status again = Do(core->Cancel(validating)).status();
  EXPECT_EQ(again.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(again), "ILLEGAL_TRANSITION");
  EXPECT_EQ(ErrorReason(Do(core->Cancel("ftjob-none")).status()), "JOB_NOT_FOUND");

  const std::string session = Open(TestWorker("w1", int64_t{8} << 30, 1));
  std::string other;
  RunningJob(session, &other);
  const std::string queued = Create();
  Validate(session, queued).status().IgnoreError();
  ASSERT_EQ(State(queued), JobState::kQueued);
  EXPECT_EQ(Do(core->Cancel(queued))->state, JobState::kCancelled);
}

TEST_F(LifecycleTest, CancelRunning) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  EXPECT_EQ(Do(core->Cancel(id))->state, JobState::kCancelling);
  EXPECT_EQ(Do(core->Cancel(id))->state, JobState::kCancelling) << "in force: OK";
  EXPECT_EQ(Do(core->Pause(id)).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(core->Urgent("w1"));
  absl::StatusOr<SyncReply> reply = Sync(session, {Running(key)});
  EXPECT_EQ(StopOf(*reply, key), StopMode::kCancel);
  EXPECT_FALSE(core->Urgent("w1")) << "told once; repeated with every answer, but not at once";
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCancelled)}).ok());
  EXPECT_EQ(State(id), JobState::kCancelled);
  EXPECT_EQ(Get(id).attempt.outcome, AttemptOutcome::kStopped);
  EXPECT_EQ(Get(id).failed_attempts, 0);
}

TEST_F(LifecycleTest, CancelRunningEndsWithTheLeaseOfALostWorker) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  RunningJob(session, &id);
  ASSERT_TRUE(Do(core->Cancel(id)).ok());
  Advance(89'000);
  EXPECT_EQ(State(id), JobState::kCancelling);
  Advance(2'000);
  EXPECT_EQ(State(id), JobState::kCancelled);
}

TEST_F(LifecycleTest, CancelBeforeTheStartWasSent) {
  const std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  absl::StatusOr<SyncReply> reply = Sync(session);
  // The report makes it STARTING; its start waits in no answer yet.
  const absl::StatusOr<std::string> worker =
      Do(core->Sync({session, ++sync_number, {Validated(*StartOf(*reply, id))}, 0, 0}));
  ASSERT_EQ(State(id), JobState::kStarting);
  EXPECT_EQ(Do(core->Cancel(id))->state, JobState::kCancelled) << "its worker never heard of it";
  reply = Sync(session);
  EXPECT_TRUE(reply->starts.empty());
  EXPECT_TRUE(core->workers().at("w1").holds.empty());
}

TEST_F(LifecycleTest, CancelOfAStartThatNeverArrived) {
  const std::string session = Open(TestWorker("w1"));
  const std::string id = Create();
  absl::StatusOr<SyncReply> reply = Validate(session, id);
  ASSERT_TRUE(StartOf(*reply, id).has_value());  // this answer is lost
  EXPECT_EQ(Do(core->Cancel(id))->state, JobState::kCancelling);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Sync(session).ok());
  EXPECT_EQ(State(id), JobState::kCancelled);
}

TEST_F(LifecycleTest, PauseAndResume) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  AttemptKey key = RunningJob(session, &id);
  EXPECT_EQ(Do(core->Pause(id))->state, JobState::kPausing);
  EXPECT_EQ(Do(core->Pause(id))->state, JobState::kPausing);
  absl::StatusOr<SyncReply> reply = Sync(session, {Running(key, 1, 5)});
  EXPECT_EQ(StopOf(*reply, key), StopMode::kCheckpoint);
  ASSERT_TRUE(CommitCheckpoint(session, key, 5).ok());
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)}).ok());
  Job job = Get(id);
  EXPECT_EQ(job.state, JobState::kPaused);
  EXPECT_EQ(job.reason, Reason::kPausedByUser);
  EXPECT_EQ(job.failed_attempts, 0);
  EXPECT_TRUE(core->workers().at("w1").holds.empty()) << "the device is free";
  EXPECT_EQ(Do(core->Pause(id))->state, JobState::kPaused);
  ASSERT_TRUE(Do(core->Resume(id)).ok());
  EXPECT_EQ(Do(core->Resume(id)).status().code(), absl::StatusCode::kFailedPrecondition);
  reply = Sync(session);
  ASSERT_EQ(reply->starts.size(), 1u);
  EXPECT_EQ(reply->starts[0].key.attempt, key.attempt + 1);
  EXPECT_EQ(reply->starts[0].key.lease_epoch, key.lease_epoch + 1);
  ASSERT_TRUE(reply->starts[0].resume_from.has_value());
  EXPECT_EQ(reply->starts[0].resume_from->step, 5);
  EXPECT_EQ(Get(id).attempt.resumed_from_step, 5);
  EXPECT_EQ(StateStory(id), "VALIDATING QUEUED STARTING RUNNING PAUSING PAUSED QUEUED STARTING");
}

TEST_F(LifecycleTest, ResumeWhilePausingQueuesAgain) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(Do(core->Pause(id)).ok());
  EXPECT_EQ(Get(id).reason, Reason::kPausedByUser);
  EXPECT_EQ(Do(core->Resume(id))->pause_cause, PauseCause::kPreempt);
  EXPECT_EQ(Get(id).reason, Reason::kNone);
  const auto reply = Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)});
  EXPECT_TRUE(StartOf(*reply, id).has_value()) << "placed again at once: " << Get(id).reason_detail;
}

TEST_F(LifecycleTest, PauseIsRefusedWhileValidatingAndFinalizing) {
  const std::string session = Open(TestWorker("w1"));
  const std::string validating = Create();
  EXPECT_EQ(Do(core->Pause(validating)).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(Do(core->Cancel(validating)).ok());
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kFinalizing)}).ok());
  EXPECT_EQ(State(id), JobState::kFinalizing);
  EXPECT_EQ(Do(core->Pause(id)).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Do(core->Cancel(id))->state, JobState::kCancelling);
  EXPECT_TRUE(CommitArtifact(session, key).ok()) << "the cancel came too late";
  EXPECT_EQ(State(id), JobState::kSucceeded);
}

TEST_F(LifecycleTest, PausedJobsWaitThroughEverything) {
  const std::string session = Open(TestWorker("w1", int64_t{8} << 30, 1));
  std::string other;
  RunningJob(session, &other);
  const std::string id = Create();
  Validate(session, id).status().IgnoreError();
  EXPECT_EQ(Do(core->Pause(id))->state, JobState::kPaused);
  Restart();
  EXPECT_EQ(State(id), JobState::kPaused);
  EXPECT_EQ(Do(core->Cancel(id))->state, JobState::kCancelled);
}

TEST_F(LifecycleTest, DrainMovesJobsAndTakesNoNewOnes) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  EXPECT_EQ(ErrorReason(Do(core->SetDraining("none", true))), "WORKER_NOT_FOUND");
  ASSERT_TRUE(Do(core->SetDraining("w1", true)).ok());
  EXPECT_EQ(State(id), JobState::kPausing);
  auto reply = Sync(session, {Running(key)});
  EXPECT_EQ(StopOf(*reply, key), StopMode::kCheckpoint);
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)}).ok());
  EXPECT_EQ(State(id), JobState::kQueued);
  EXPECT_EQ(Get(id).reason, Reason::kNoWorker);
  EXPECT_EQ(Get(id).failed_attempts, 0);
  Restart();
  const std::string again = Open(TestWorker("w1"));
  EXPECT_TRUE(Sync(again)->starts.empty()) << "draining outlives sessions and restarts";
  ASSERT_TRUE(Do(core->SetDraining("w1", false)).ok());
  EXPECT_TRUE(StartOf(*Sync(again), id).has_value());
}

TEST_F(LifecycleTest, AWorkerThatStopsByItselfHandsItsJobBack) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kCheckpointed)}).ok());
  EXPECT_EQ(Get(id).failed_attempts, 0);
  EXPECT_EQ(StateStory(id), "VALIDATING QUEUED STARTING RUNNING PAUSING QUEUED STARTING") << "placed again";
}

TEST_F(LifecycleTest, OnlyTerminalJobsAreDeleted) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  EXPECT_EQ(Do(core->Delete(id)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  ASSERT_TRUE(Do(core->Delete(id)).ok());
  EXPECT_FALSE(store.GetJob(id).ok());
  EXPECT_EQ(ErrorReason(Do(core->Delete(id))), "JOB_NOT_FOUND");
  // What still runs of it is told to stop.
  const auto reply = Sync(session, {Report(key, AttemptPhase::kFinalizing)});
  EXPECT_EQ(StopOf(*reply, key), StopMode::kFenced);
}

TEST_F(LifecycleTest, TheLastTwoCheckpointsAndTheBestAreKept) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitCheckpoint(session, key, 10, std::nan("")).ok());  // is not the best for good
  ASSERT_TRUE(CommitCheckpoint(session, key, 20, 1.0).ok());
  ASSERT_TRUE(CommitCheckpoint(session, key, 30, 1.5).ok());
  ASSERT_TRUE(CommitCheckpoint(session, key, 40).ok());
  ASSERT_TRUE(CommitCheckpoint(session, key, 50, 1.7).ok());
  EXPECT_EQ(CheckpointSteps(id), (std::vector<int64_t>{20, 40, 50}));
  const int64_t sequence = Get(id).sequence;
  ASSERT_TRUE(CommitCheckpoint(session, key, 50, 1.7).ok());
  EXPECT_EQ(Get(id).sequence, sequence) << "the same again is no event";
  Checkpoint bad = MakeCheckpoint(60);
  bad.files.push_back({"gone.bin", {std::string(64, 'f'), 1}});
  EXPECT_EQ(ErrorReason(Do(core->CommitCheckpoint(session, key, bad))), "BLOB_MISSING");
  for (const std::string path : {"", "..", "a/b", "a\\b", "/x", "a b"}) {
    bad = MakeCheckpoint(60);
    bad.files[0].path = path;
    EXPECT_EQ(Do(core->CommitCheckpoint(session, key, bad)).code(), absl::StatusCode::kInvalidArgument) << path;
  }
  EXPECT_EQ(CheckpointSteps(id), (std::vector<int64_t>{20, 40, 50}));
}

TEST_F(LifecycleTest, UnreferencedBlobsAreCollectedAfterTheirGrace) {
  const std::string id = Create();
  const BlobRef loose = blobs.Add("loose");
  const BlobRef dataset = Get(id).inputs[0];
  ASSERT_TRUE(Do(core->RecordBlobs({loose})).ok());
  const BlobRef unrecorded = blobs.Add("a file whose row a crash has lost");
  EXPECT_EQ(ErrorReason(Do(core->RecordBlobs({{std::string(64, 'b'), 1}}))), "BLOB_GONE");
  const auto collect = [&] {
    int removed = 0;
    for (int folder = 0; folder < kBlobFolders; ++folder) {
      removed += Do(core->CollectBlobs(UnknownBlobs(&blobs, &store, folder).value())).value_or(-1000);
    }
    return removed;
  };
  EXPECT_EQ(collect(), 0);
  EXPECT_TRUE(*store.HasBlob(unrecorded)) << "found, and given its grace";
  clock.AdvanceMillis(int64_t{23} * 3600 * 1000);
  EXPECT_EQ(collect(), 0) << "within their grace";
  clock.AdvanceMillis(int64_t{2} * 3600 * 1000);
  EXPECT_EQ(collect(), 2);
  EXPECT_FALSE(*blobs.Present(loose));
  EXPECT_FALSE(*blobs.Present(unrecorded));
  EXPECT_TRUE(*blobs.Present(dataset));
}

TEST_F(LifecycleTest, MetricsAreDurableWithinTwoSecondsAndPublishedAtOnce) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  effects.clear();
  const int commits = store.commits();
  ASSERT_TRUE(Sync(session, {Running(key, 1, 2)}).ok());
  ASSERT_TRUE(Sync(session, {Running(key, 1, 3)}).ok()) << "unacknowledged points come again";
  EXPECT_EQ(effects.size(), 3u);
  EXPECT_EQ(store.commits(), commits) << "a heartbeat with progress costs no commit";
  EXPECT_TRUE(store.ListMetrics(id, 0, 10)->empty());
  EXPECT_LE(core->NextTimerBootNanos() - clock.BootNanos(), 2'000'000'000);
  Advance(2'000);
  EXPECT_EQ(store.ListMetrics(id, 0, 10)->size(), 3u);
  EXPECT_EQ(Get(id).progress, "step 3");
  EXPECT_EQ(core->Stats().training_tokens_total, 300u);
}

TEST_F(LifecycleTest, MetricsOfManyJobsShareACommitAndOutliveOneThatFails) {
  const std::string session = Open(TestWorker("w1"));
  std::string a;
  std::string b;
  const AttemptKey key_a = RunningJob(session, &a);
  others = {Running(key_a)};
  const AttemptKey key_b = RunningJob(session, &b);
  others.clear();
  const int commits = store.commits();
  ASSERT_TRUE(Sync(session, {Running(key_a, 1, 1), Running(key_b)}).ok());
  Advance(1'500);
  ASSERT_TRUE(Sync(session, {Running(key_a), Running(key_b, 1, 1)}).ok());
  EXPECT_EQ(store.commits(), commits);
  store.FailCommits(1);
  clock.AdvanceMillis(500);
  EXPECT_FALSE(Settle().ok());
  EXPECT_TRUE(store.ListMetrics(a, 0, 10)->empty());
  EXPECT_TRUE(store.ListMetrics(b, 0, 10)->empty());
  Advance(limits::kStoreRetryMs);
  EXPECT_EQ(store.ListMetrics(a, 0, 10)->size(), 1u);
  EXPECT_EQ(store.ListMetrics(b, 0, 10)->size(), 1u) << "not due itself, but it costs nothing here";
  EXPECT_EQ(store.commits(), commits + 1);
  Advance(5'000);
  EXPECT_EQ(store.commits(), commits + 1) << "nothing waits any more";
}

}  // namespace
}  // namespace longhaul::server
