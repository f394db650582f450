// What agents tell and what is made of it: steps told again, measured memory, what a restart remembers, collected
// blobs.
#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

using ReportTest = DispatcherCoreTest;

TEST_F(ReportTest, AStepToldAgainWithItsEvaluationReplacesTheFirstTelling) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(Sync(session, {Running(key, 1, 3)}).ok());
  AttemptReport report = Running(key, 3, 3);
  report.progress.push_back(report.progress[0]);
  report.progress[1].progress = "step 3, evaluated";
  report.progress[1].wall_micros = 7;
  effects.clear();
  ASSERT_TRUE(Sync(session, {report}).ok());
  ASSERT_TRUE(Sync(session, {report}).ok()) << "the same again is no news";
  ASSERT_TRUE(Sync(session, {Running(key, 3, 3)}).ok()) << "an older Sync that comes late";
  EXPECT_EQ(effects.size(), 1u);
  Advance(2'000);
  const std::vector<MetricPoint> points = *store.ListMetrics(id, 0, 10);
  ASSERT_EQ(points.size(), 3u);
  EXPECT_EQ(points[2].progress, "step 3, evaluated");
  EXPECT_EQ(Get(id).progress, "step 3, evaluated");
  EXPECT_EQ(core->Stats().training_tokens_total, 300u);
  EXPECT_EQ(core->Stats().step_seconds.count, 3u);
}

// The agent keeps two Syncs on their way and repeats what it gave up: an older copy may come last.
TEST_F(ReportTest, AnOvertakenSyncBringsNoEndedAttemptBack) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  const int64_t late = ++sync_number;
  const int64_t repeated = ++sync_number;
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  const absl::StatusOr<SyncReply> ended =
      SyncNumbered(session, repeated, {Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded)});
  ASSERT_TRUE(ended.ok());
  EXPECT_EQ(ended->acknowledged.size(), 1u);
  ASSERT_TRUE(core->workers().at("w1").holds.empty());
  for (const int64_t number : {late, repeated}) {
    const absl::StatusOr<SyncReply> reply = SyncNumbered(session, number, {Running(key)});
    ASSERT_TRUE(reply.ok());
    EXPECT_TRUE(reply->leases.empty()) << number;
    EXPECT_TRUE(core->workers().at("w1").holds.empty()) << number;
  }
  // The next number may be as old as those. What is named on and on is there, whatever we believed.
  ASSERT_TRUE(Sync(session, {Running(key)}).ok());
  EXPECT_TRUE(core->workers().at("w1").holds.empty());
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(Sync(session, {Running(key)}).ok());
  EXPECT_EQ(core->workers().at("w1").holds.size(), 1u);
}

TEST_F(ReportTest, AWorkerThatLetGoOfAnEndedJobsAttemptHasItsMemoryBack) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  EXPECT_EQ(State(id), JobState::kSucceeded);
  EXPECT_EQ(ErrorReason(CommitCheckpoint(session, key, 5)), "LEASE_FENCED") << "so its worker lets go of it";
  ASSERT_EQ(core->workers().at("w1").holds.size(), 1u) << "it may still run";
  ASSERT_TRUE(SyncNumbered(session, sync_number, {}).ok());
  EXPECT_EQ(core->workers().at("w1").holds.size(), 1u) << "an older copy, from before it began";
  ASSERT_TRUE(Sync(session).ok());
  EXPECT_TRUE(core->workers().at("w1").holds.empty());
}

TEST_F(ReportTest, EstimateErrorsAreShownOnceMeasured) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  EXPECT_FALSE(core->Stats().workers[0].host_estimate_error_ratio.has_value());
  AttemptReport report = Running(key, 1, 1);
  report.host_bytes_peak = Get(id).attempt.host_bytes_planned / 2;
  const uint64_t commands = core->Stats().commands_total;
  ASSERT_TRUE(Sync(session, {report}).ok());
  EXPECT_GT(core->Stats().commands_total, commands);
  EXPECT_DOUBLE_EQ(core->Stats().workers[0].host_estimate_error_ratio.value_or(7), -0.5);
  EXPECT_FALSE(core->Stats().workers[0].device_estimate_error_ratio.has_value());
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  report = Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded);
  report.host_bytes_peak = Get(id).attempt.host_bytes_planned * 2;
  ASSERT_TRUE(Sync(session, {report}).ok());
  EXPECT_EQ(core->Stats().estimate_error_ratio.count, 1u);
  EXPECT_EQ(core->Stats().estimates_exceeded_total, 1u);
}

TEST_F(ReportTest, ARestartKnowsWhatWasToldBefore) {
  std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  AttemptReport report = Running(key, 1, 3);
  report.warnings = {"the loss was not finite"};
  ASSERT_TRUE(Sync(session, {report}).ok());
  ASSERT_TRUE(CommitCheckpoint(session, key, 2).ok());
  Advance(2'000);
  const int64_t sequence = Get(id).sequence;
  Restart();
  effects.clear();
  session = Open(TestWorker("w1"), {report});
  EXPECT_EQ(Get(id).sequence, sequence) << "the warning is an event already";
  EXPECT_EQ(effects.size(), 0u);
  EXPECT_EQ(core->Stats().training_tokens_total, 0u);
  ASSERT_TRUE(Sync(session, {Running(key, 3, 4)}).ok());
  EXPECT_EQ(core->Stats().training_tokens_total, 100u);
  EXPECT_EQ(core->workers().at("w1").holds.begin()->second.checkpoint_step, 2);
}

TEST_F(ReportTest, ABlobThatIsBeingCollectedIsGoneForTheRestOfItsBatch) {
  const BlobRef dataset = blobs.Add("dataset");
  ASSERT_TRUE(Do(core->RecordBlobs({dataset})).ok());
  clock.AdvanceMillis(int64_t{25} * 3600 * 1000);
  // All in one batch: the file is still there and goes with the commit.
  ASSERT_EQ(core->CollectBlobs().value_or(-1), 1);
  const absl::Status recorded = core->RecordBlobs({dataset});
  const absl::StatusOr<Job> created = core->Create({TestJob(dataset), "body"});
  ASSERT_TRUE(Settle().ok());
  EXPECT_EQ(ErrorReason(recorded), "BLOB_GONE");
  EXPECT_EQ(ErrorReason(created.status()), "DATASET_NOT_UPLOADED");
  EXPECT_FALSE(*blobs.Present(dataset));
  // Nor does a list that was made before bring its row back.
  EXPECT_EQ(Do(core->CollectBlobs({dataset})).value_or(-1), 0);
  EXPECT_FALSE(*store.HasBlob(dataset));
  // Uploaded again, it is as any other.
  EXPECT_TRUE(Do(core->Create({TestJob(blobs.Add("dataset")), "body"})).ok());
}

}  // namespace
}  // namespace longhaul::server
