// What is given to nobody though a worker has it: what others took, what is above a quota; and until when.
#include "base/limits.h"
#include "base/units.h"
#include "tests/server/dispatcher/scheduling_fixture.h"

namespace longhaul::server {
namespace {

using ResourcesTest = SchedulingTest;

TEST_F(ResourcesTest, AQuotaHoldsUntilAJobOfTheProjectEnds) {
  options.quotas["ants"].jobs = 1;
  Restart();
  const std::string session = Open(TestWorker("w1"));
  const std::string one = CreateAs(PriorityClass::kNormal, "ants");
  AttemptKey key;
  Start(session, one, &key);
  const std::string two = CreateAs(PriorityClass::kNormal, "ants");
  absl::StatusOr<SyncReply> reply = Sync(session, {Running(key)});
  ASSERT_TRUE(Sync(session, {Running(key), Validated(*StartOf(*reply, two))}).ok());
  EXPECT_EQ(Get(two).reason, Reason::kWaitingForQuota);
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  reply = Sync(session, {Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded)});
  EXPECT_TRUE(StartOf(*reply, two).has_value());
}

// One after another, each when the one before it ends by its measured steps; a device that has room is not "now".
TEST_F(ResourcesTest, WhoWaitsForAQuotaIsToldUntilWhen) {
  options.quotas["ants"].jobs = 1;
  Restart();
  const std::string session = Open(TestWorker("w1"));
  const std::string one = CreateAs(PriorityClass::kNormal, "ants");
  AttemptKey key;
  Start(session, one, &key);
  const std::string two = CreateAs(PriorityClass::kNormal, "ants");
  const std::string three = CreateAs(PriorityClass::kNormal, "ants");
  absl::StatusOr<SyncReply> reply = Sync(session, {Running(key)});
  AttemptReport running = Running(key, 1, 10);  // of 60, half a second each
  running.progress.back().step_seconds = 0.5;
  ASSERT_TRUE(Sync(session, {running, Validated(*StartOf(*reply, two)), Validated(*StartOf(*reply, three))}).ok());
  const int64_t now = clock.WallMicros();
  const int64_t first_end = now + (25 + limits::kAttemptOverheadSeconds) * 1'000'000;
  const Explanation explanation = **core->ExplainWait(two);
  EXPECT_EQ(explanation.wait.reason, Reason::kWaitingForQuota);
  EXPECT_EQ(explanation.wait.expected_wall_micros, first_end);
  EXPECT_NE(explanation.unblocks.at(0).find("about "), std::string::npos) << explanation.unblocks[0];
  ASSERT_EQ(explanation.places.size(), 1u);
  EXPECT_EQ(explanation.places[0].why, "it has room, the quota of project ants has none");
  EXPECT_EQ(explanation.places[0].expected_wall_micros, first_end);
  const int64_t each = (60 + limits::kAttemptOverheadSeconds) * 1'000'000;
  EXPECT_EQ(WaitOf(core->jobs().at(three).job)->expected_wall_micros, first_end + each);
  Job asked = TestJob(blobs.Add("dataset"));
  asked.total_steps = 60;
  asked.project = "ants";
  EXPECT_EQ(core->ForecastStart(asked)->wait.expected_wall_micros, first_end + 2 * each);
  asked.project = "bees";
  EXPECT_EQ(core->ForecastStart(asked)->wait.expected_wall_micros, now);
}

TEST_F(ResourcesTest, AValidationThatWaitsIsToldUntilWhen) {
  const std::string session = Open(OneThread("w1"));
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(CreateAs(PriorityClass::kNormal));
  ASSERT_TRUE(StartOf(*Sync(session), ids[0]).has_value());
  const int64_t end = clock.WallMicros() + limits::kValidateSeconds * 1'000'000;
  EXPECT_EQ(Get(ids[1]).reason, Reason::kWaitingForValidation);
  EXPECT_EQ(WaitOf(Get(ids[1]))->expected_wall_micros, end);
  EXPECT_EQ(WaitOf(Get(ids[2]))->expected_wall_micros, end + limits::kValidateSeconds * 1'000'000);
  ASSERT_TRUE(Do(core->SetDraining("w1", true)).ok());
  EXPECT_EQ(WaitOf(Get(ids[1]))->expected_wall_micros, 0) << "nobody can tell when a worker comes";
}

// What others have taken of a host since its worker started is offered to nobody; what its own attempts use is counted
// once.
TEST_F(ResourcesTest, HostMemoryThatOthersTookIsNotOffered) {
  const std::string session = Open(TestWorker("w1", 8 * kGiB, 4));
  const auto create = [&] {
    Job job = TestJob(blobs.Add("dataset"));
    job.train_shape.sequence_length = 2 * kGiB / 1024;  // FakePlanner: 2 GiB
    job.device_share = DeviceShare::kFit;
    return Do(core->Create({job, "body"}))->id;
  };
  const auto validated = [&](const AttemptKey& key) {
    AttemptReport report = Validated(key);
    report.report_longest_tokens = 2 * kGiB / 1024;
    return report;
  };
  const auto sync_with = [&](int64_t available, std::vector<AttemptReport> attempts) {
    EXPECT_TRUE(Do(core->Sync({session, ++sync_number, std::move(attempts), available, 0})).ok());
    return core->MakeReply("w1", sync_number);
  };
  const std::string first = create();
  std::optional<AttemptKey> key = StartOf(sync_with(8 * kGiB, {}), first);
  ASSERT_TRUE(key.has_value());
  key = StartOf(sync_with(8 * kGiB, {validated(*key)}), first);
  ASSERT_TRUE(key.has_value()) << Get(first).reason_detail;
  AttemptReport report = Running(*key);
  report.host_bytes_peak = 2 * kGiB;
  const int64_t left = 6 * kGiB;
  sync_with(left, {report});
  const std::string next = create();
  const std::optional<AttemptKey> validation = StartOf(sync_with(left, {report}), next);
  ASSERT_TRUE(validation.has_value());
  // Somebody else takes most of what is left.
  SyncReply reply = sync_with(kGiB, {report, validated(*validation)});
  EXPECT_FALSE(StartOf(reply, next).has_value());
  EXPECT_EQ(Get(next).reason, Reason::kWaitingForHostRam) << Get(next).reason_detail;
  EXPECT_FALSE(StartOf(sync_with(kGiB, {report}), next).has_value());
  // And gives it back: the Sync that says so starts the job, beside the one that runs, whose memory is counted once.
  reply = sync_with(left, {report});
  EXPECT_TRUE(StartOf(reply, next).has_value()) << Get(next).reason_detail;
}

// What attempts have fetched is counted once, what they have yet to fetch is not given away, and of what others took
// nothing is.
TEST_F(ResourcesTest, DiskThatOthersTookIsNotOffered) {
  const std::string session = Open(TestWorker("w1", 512 * kGiB));  // with 100 GiB of disk
  const auto create = [&] {
    Job job = TestJob(blobs.Add("dataset"));
    job.train_shape.dataset_bytes = 30 * kGiB;
    job.train_shape.dataset_tokens = 1;
    return Do(core->Create({job, "body"}))->id;
  };
  const auto sync_with = [&](int64_t available, std::vector<AttemptReport> attempts) {
    SyncInput input{session, ++sync_number, std::move(attempts), 512 * kGiB, available};
    EXPECT_TRUE(Do(core->Sync(input)).ok());
    return core->MakeReply("w1", sync_number);
  };
  // Others leave 40 GiB: one validation fits, which fetches 30.
  sync_with(40 * kGiB, {});
  const std::string first = create();
  const std::optional<AttemptKey> key = StartOf(sync_with(40 * kGiB, {}), first);
  ASSERT_TRUE(key.has_value());
  const std::string next = create();
  EXPECT_FALSE(StartOf(sync_with(40 * kGiB, {Report(*key, AttemptPhase::kStarting)}), next).has_value());
  EXPECT_EQ(Get(next).reason, Reason::kWaitingForDisk);
  EXPECT_EQ(Get(next).reason_detail,
            "needs 30.06 GiB of disk; worker w1 has 9.94 GiB free of 100.00 GiB, of which others hold 60.00 GiB");
  const std::optional<Explanation> explanation = core->ExplainWait(next).value();
  ASSERT_EQ(explanation->places.size(), 1u);
  EXPECT_EQ(explanation->places[0].why, Get(next).reason_detail);
  // It has fetched them: 10 are left, and they are counted as its own, not as others'.
  EXPECT_FALSE(StartOf(sync_with(10 * kGiB, {Report(*key, AttemptPhase::kRunning)}), next).has_value());
  // The others go: 70 GiB are there, beside the 30 of the first.
  EXPECT_TRUE(StartOf(sync_with(70 * kGiB, {Report(*key, AttemptPhase::kRunning)}), next).has_value())
      << Get(next).reason_detail;
}

}  // namespace
}  // namespace longhaul::server
