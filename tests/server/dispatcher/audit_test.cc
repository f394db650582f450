// The audit log is written in the transaction of what it records. And a worker's id belongs to who registered it.
#include "base/clock.h"
#include "base/error.h"
#include "gtest/gtest.h"
#include "server/dispatcher.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fakes/fake_store.h"

namespace longhaul::server {
namespace {

class AuditTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(dispatcher_.Start().ok()); }

  Audit By(const std::string& caller, const std::string& target = "") {
    Audit audit;
    audit.record.caller = caller;
    audit.record.method = "Service/Method";
    audit.record.target = target;
    return audit;
  }
  CreateInput Input() { return {TestJob(blobs_.Add("dataset")), "body"}; }
  std::vector<AuditRecord> Records() { return *store_.ListAudit(0, 1000); }
  absl::Status OpenAs(const std::string& caller, const std::string& worker, bool may_take_over = false) {
    return dispatcher_.OpenSession({TestWorker(worker), 1, {}, caller, may_take_over}).status();
  }
  // Whatever the dispatcher's thread had to do by itself (its start, a timer) is committed: a failure that is set now
  // meets the test's own command. The first answer may come from the turn that began before.
  void Settle() {
    for (int i = 0; i < 2; ++i) dispatcher_.Cancel("ftjob-nobody", nullptr).status().IgnoreError();
  }
  std::string OwnerOf(const std::string& worker) {
    const std::vector<Worker> workers = store_.ListWorkers().value();
    for (const Worker& known : workers) {
      if (known.id == worker) return known.owner;
    }
    return "?";
  }

  FakeClock clock_;
  FakeStore store_;
  FakeBlobs blobs_;
  FakePlanner planner_;
  RecordingSink sink_;
  Dispatcher dispatcher_{Dispatcher::Options{60'000, 90'000, 10'000}, &store_, &blobs_, &clock_, &sink_, &planner_};
};

TEST_F(AuditTest, WhatIsDoneIsRecordedWithIt) {
  Audit created = By("token:ci");
  const auto job = dispatcher_.Create(Input(), &created);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_TRUE(created.recorded);
  Audit cancelled = By("token:ops", job->id);
  ASSERT_TRUE(dispatcher_.Cancel(job->id, &cancelled).ok());
  const auto records = Records();
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].caller, "token:ci");
  EXPECT_EQ(records[0].target, job->id) << "the id that the command gave";
  EXPECT_EQ(records[0].code, "OK");
  EXPECT_EQ(records[0].wall_micros, clock_.WallMicros());
  EXPECT_EQ(records[1].caller, "token:ops");
  EXPECT_EQ(records[1].number, 2);
}

TEST_F(AuditTest, ARefusedCommandIsRecordedAndDoesNothingElse) {
  Audit audit = By("token:ci", "ftjob-nobody");
  EXPECT_EQ(ErrorReason(dispatcher_.Cancel("ftjob-nobody", &audit).status()), "JOB_NOT_FOUND");
  EXPECT_TRUE(audit.recorded);
  const auto records = Records();
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].target, "ftjob-nobody");
  EXPECT_EQ(records[0].code, "NOT_FOUND");
  EXPECT_EQ(records[0].reason, "JOB_NOT_FOUND");
}

TEST_F(AuditTest, WhereTheCommitFailsNeitherIsThere) {
  Settle();
  store_.FailCommits(1);
  Audit audit = By("token:ci");
  EXPECT_EQ(dispatcher_.Create(Input(), &audit).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(audit.recorded);
  EXPECT_TRUE(Records().empty());
  EXPECT_TRUE(store_.ListJobs({})->jobs.empty());
}

TEST_F(AuditTest, WhereTheRecordCannotBeWrittenNothingIsDone) {
  Audit created = By("token:ci");
  const auto job = dispatcher_.Create(Input(), &created);
  ASSERT_TRUE(job.ok());
  // The command of a worker that is drained already writes one row, its record the second.
  const auto drain = [&](Audit* audit) { return dispatcher_.SetDraining("w1", true, audit); };
  ASSERT_TRUE(OpenAs("", "w1").ok());
  for (int failing = 0; failing < 2; ++failing) {
    Settle();
    store_.FailWritesAfter(failing);
    Audit audit = By("token:ops", "w1");
    EXPECT_EQ(drain(&audit).code(), absl::StatusCode::kUnavailable) << failing;
    EXPECT_FALSE(audit.recorded);
    EXPECT_FALSE(store_.ListWorkers()->at(0).draining) << failing;
    clock_.AdvanceMillis(60'000);  // past the rest after a failed commit
    dispatcher_.Wake();
  }
  EXPECT_EQ(Records().size(), 1u);
}

TEST_F(AuditTest, ACallThatNeverBecameACommandIsRecordedToo) {
  AuditRecord record;
  record.caller = "token:ci";
  record.wall_micros = clock_.WallMicros();
  ASSERT_TRUE(dispatcher_.RecordAudit(record).ok());
  EXPECT_EQ(Records().at(0).caller, "token:ci");
}

TEST_F(AuditTest, AWorkersIdBelongsToWhoRegisteredIt) {
  ASSERT_TRUE(OpenAs("token:red", "w1").ok());
  EXPECT_EQ(OwnerOf("w1"), "token:red");
  const absl::Status refused = OpenAs("token:blue", "w1");
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ErrorReason(refused), "WORKER_OWNED");
  EXPECT_TRUE(OpenAs("token:red", "w1").ok());
  EXPECT_TRUE(OpenAs("token:blue", "w2").ok());
  // An administrator may be any worker and takes none away.
  EXPECT_TRUE(OpenAs("", "w1").ok());
  EXPECT_EQ(OwnerOf("w1"), "token:red");
  // A credential that names the worker is the administrator's word.
  EXPECT_TRUE(OpenAs("certificate:w1", "w1", true).ok());
  EXPECT_EQ(OwnerOf("w1"), "certificate:w1");
  EXPECT_EQ(ErrorReason(OpenAs("token:red", "w1")), "WORKER_OWNED");
}

TEST_F(AuditTest, AForeignCallerDoesNotEndTheOwnersSession) {
  const auto owner = dispatcher_.OpenSession({TestWorker("w1"), 1, {}, "token:red"});
  ASSERT_TRUE(owner.ok());
  ASSERT_FALSE(OpenAs("token:blue", "w1").ok());
  EXPECT_EQ(ErrorReason(dispatcher_.CheckFence(owner->session_id, {"ftjob-x", 1, 1})), "LEASE_FENCED")
      << "the session is still open";
}

TEST_F(AuditTest, OwnersOutliveTheScheduler) {
  ASSERT_TRUE(OpenAs("token:red", "w1").ok());
  ASSERT_TRUE(dispatcher_.SetDraining("w1", true).ok()) << "rewrites the row";
  dispatcher_.Stop();
  Dispatcher next({60'000, 90'000, 10'000}, &store_, &blobs_, &clock_, &sink_, &planner_);
  ASSERT_TRUE(next.Start().ok());
  EXPECT_EQ(ErrorReason(next.OpenSession({TestWorker("w1"), 1, {}, "token:blue"}).status()), "WORKER_OWNED");
  EXPECT_TRUE(next.OpenSession({TestWorker("w1"), 1, {}, "token:red"}).ok());
}

TEST_F(AuditTest, BlobsAreRecordedForTheirProject) {
  const BlobRef blob = blobs_.Add("bytes");
  ASSERT_TRUE(dispatcher_.RecordBlobs({blob}).ok());
  EXPECT_FALSE(*store_.BlobInProject(blob, "red"));
  Audit audit = By("token:ci", blob.sha256);
  ASSERT_TRUE(dispatcher_.RecordBlobs({blob}, "red", &audit).ok());
  EXPECT_TRUE(*store_.BlobInProject(blob, "red"));
  EXPECT_EQ(Records().at(0).target, blob.sha256);
}

}  // namespace
}  // namespace longhaul::server
