// What workers, callers and a store that fails can make the dispatcher keep or send: bounded.
#include <set>

#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

using BoundsTest = DispatcherCoreTest;

TEST_F(BoundsTest, PointsThatAStoreDoesNotTakeAreThinned) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  constexpr int64_t kSteps = 3 * limits::kMaxPendingMetrics;
  store.FailCommits(1'000'000);
  for (int64_t from = 1; from <= kSteps; from += 512) {
    core->Sync({session, ++sync_number, {Running(key, from, std::min(kSteps, from + 511))}, 0, 0})
        .status()
        .IgnoreError();
    core->CommitBatch().IgnoreError();  // without a tick there is nothing to commit
    EXPECT_LE(core->jobs().at(id).pending_metrics.size(), static_cast<size_t>(limits::kMaxPendingMetrics));
  }
  store.FailCommits(0);
  Advance(limits::kStoreRetryMs + limits::kMetricsFlushMs);
  const std::vector<MetricPoint> points = *store.ListMetrics(id, 0, static_cast<int>(kSteps));
  EXPECT_GT(points.size(), static_cast<size_t>(limits::kMaxPendingMetrics / 4));
  EXPECT_EQ(points.front().step, 1);
  EXPECT_EQ(points.back().step, kSteps);
}

TEST_F(BoundsTest, AttemptsThatAWorkerMakesUpAreCounted) {
  const std::string session = Open(TestWorker("w1"));
  for (int sync = 0; sync < 4; ++sync) {
    std::vector<AttemptReport> made_up;
    for (int i = 0; i < limits::kMaxReportsPerSync; ++i) {
      made_up.push_back(Running({"ftjob-" + std::to_string(sync) + "-" + std::to_string(i), 1, 1}));
    }
    ASSERT_TRUE(Do(core->Sync({session, 0, std::move(made_up), 0, 0})).ok()) << "never the newest: nothing is unlisted";
    EXPECT_LE(core->workers().at("w1").holds.size(), static_cast<size_t>(limits::kMaxHoldsPerWorker));
  }
  // Named and ended in one breath, they leave nothing behind.
  for (int sync = 0; sync < 3; ++sync) {
    std::vector<AttemptReport> made_up;
    for (int i = 0; i < limits::kMaxReportsPerSync / 2; ++i) {
      const AttemptKey key{"ftjob-ends-" + std::to_string(sync) + "-" + std::to_string(i), 1, 1};
      made_up.push_back(Running(key));
      made_up.push_back(Report(key, AttemptPhase::kEnded, ExitReason::kFailed));
    }
    ASSERT_TRUE(Do(core->Sync({session, 0, std::move(made_up), 0, 0})).ok());
  }
  EXPECT_TRUE(core->workers().at("w1").gone.empty());
  const AttemptKey endless{std::string(limits::kMaxJobIdBytes + 1, 'x'), 1, 1};
  const absl::Status refused = Do(core->Sync({session, 1, {Running(endless)}, 0, 0})).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << refused;
  EXPECT_EQ(Do(core->OpenSession({TestWorker("w1"), 1, {Running(endless)}})).status().code(),
            absl::StatusCode::kInvalidArgument);
}

class WorkerRoomTest : public BoundsTest {
 protected:
  // `count` workers of `owner`, as a store has them.
  void Keep(const std::string& owner, int count, int64_t seen_wall_micros) {
    absl::StatusOr<std::unique_ptr<StoreTransaction>> transaction = store.Begin();
    ASSERT_TRUE(transaction.ok());
    ASSERT_TRUE((*transaction)->BeginCommand().ok());
    for (int i = 0; i < count; ++i) {
      Worker worker = TestWorker(owner + "-" + std::to_string(i));
      worker.owner = owner;
      worker.seen_wall_micros = seen_wall_micros + i;
      ASSERT_TRUE((*transaction)->PutWorker(worker).ok());
    }
    ASSERT_TRUE((*transaction)->EndCommand(true).ok());
    ASSERT_TRUE((*transaction)->Commit().ok());
  }
  absl::Status OpenAs(const std::string& owner, const std::string& id) {
    SessionInput input{TestWorker(id), 1, {}};
    input.caller = owner;
    return Do(core->OpenSession(std::move(input))).status();
  }
};

TEST_F(WorkerRoomTest, WhoMakesUpNamesLosesItsOwn) {
  Keep("quiet", 1, clock.WallMicros() - 3'600'000'000);
  Keep("crowd", limits::kMaxWorkers - 1, clock.WallMicros());
  Restart();
  ASSERT_EQ(core->workers().size(), static_cast<size_t>(limits::kMaxWorkers));
  ASSERT_TRUE(OpenAs("crowd", "another").ok());
  EXPECT_EQ(core->workers().size(), static_cast<size_t>(limits::kMaxWorkers));
  EXPECT_FALSE(core->workers().contains("crowd-0")) << "the longest away of its own";
  EXPECT_TRUE(core->workers().contains("quiet-0"));
  // Others find room when somebody has been away for a day; not before.
  const absl::Status full = OpenAs("new", "new-1");
  EXPECT_EQ(ErrorReason(full), "LIMIT_EXCEEDED") << full;
  clock.AdvanceMillis(limits::kForgetWorkerForRoomMs - 3'600'000 + 1);
  ASSERT_TRUE(OpenAs("new", "new-1").ok());
  EXPECT_FALSE(core->workers().contains("quiet-0"));
  EXPECT_EQ(store.ListWorkers()->size(), static_cast<size_t>(limits::kMaxWorkers));
}

TEST_F(WorkerRoomTest, WhoIsDrainedOrHoldsSomethingKeepsItsName) {
  const std::string session = Open(TestWorker("busy"));
  std::string id;
  RunningJob(session, &id);
  ASSERT_TRUE(Do(core->OpenSession({TestWorker("drained"), 1, {}})).ok());
  ASSERT_TRUE(Do(core->SetDraining("drained", true)).ok());
  Keep("crowd", limits::kMaxWorkers - 2, clock.WallMicros());
  Restart();
  clock.AdvanceMillis(2 * limits::kForgetWorkerForRoomMs);
  ASSERT_TRUE(OpenAs("new", "new-1").ok());
  EXPECT_TRUE(core->workers().contains("busy"));
  EXPECT_TRUE(core->workers().contains("drained"));
  EXPECT_FALSE(core->workers().contains("crowd-0"));
}

// A job's spec may be a megabyte; a message may be four.
TEST_F(BoundsTest, StartsThatAreTooMuchForAnAnswerGoWithTheNext) {
  const std::string session = Open(TestWorker("w1", int64_t{64} << 30, 64));
  constexpr size_t kJobs = 5;
  for (size_t i = 0; i < kJobs; ++i) {
    Job job = TestJob(blobs.Add("dataset"));
    job.resolved_spec = std::string(size_t{1} << 20, 's');
    ASSERT_TRUE(Do(core->Create({std::move(job), "body " + std::to_string(i)})).ok());
  }
  std::vector<AttemptReport> named;
  for (size_t answers = 0; named.size() < kJobs; ++answers) {
    ASSERT_LT(answers, kJobs);
    const absl::StatusOr<SyncReply> reply = Sync(session, named);
    ASSERT_TRUE(reply.ok());
    EXPECT_EQ(reply->leases.size(), kJobs) << "of those whose start is still to come, too";
    ASSERT_FALSE(reply->starts.empty());
    size_t bytes = 0;
    for (const StartCommand& start : reply->starts) {
      bytes += start.job.resolved_spec.size();
      named.push_back(Report(start.key, AttemptPhase::kStarting));
    }
    EXPECT_LE(bytes, static_cast<size_t>(limits::kMaxStartBytesPerAnswer));
    EXPECT_EQ(core->Urgent("w1"), named.size() < kJobs) << "the next Sync is answered at once";
  }
}

// A worker that names nothing of what it was sent: what it was sent comes again, behind what is new.
TEST_F(BoundsTest, StartsThatAreSentAgainKeepNoneBack) {
  const std::string session = Open(TestWorker("w1", int64_t{64} << 30, 64));
  std::set<std::string> jobs;
  for (int i = 0; i < 5; ++i) {
    Job job = TestJob(blobs.Add("dataset"));
    job.resolved_spec = std::string(size_t{1} << 20, 's');
    jobs.insert(Do(core->Create({std::move(job), "body " + std::to_string(i)}))->id);
  }
  for (int answers = 0; answers < 3; ++answers) {
    const absl::StatusOr<SyncReply> reply = Sync(session);
    ASSERT_TRUE(reply.ok());
    for (const StartCommand& start : reply->starts) jobs.erase(start.key.job_id);
  }
  EXPECT_TRUE(jobs.empty());
  EXPECT_FALSE(core->Urgent("w1"));
}

}  // namespace
}  // namespace longhaul::server
