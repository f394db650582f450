#include "tests/storage/store_contract.h"

#include <unistd.h>

#include <cstdlib>

#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "storage/job_store.h"
#include "tests/fakes/fake_store.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FakeUnderTest final : public StoreUnderTest {
 public:
  Store& store() override { return store_; }
  void Reopen() override {}

 private:
  FakeStore store_;
};

class SqliteUnderTest final : public StoreUnderTest {
 public:
  SqliteUnderTest() { Reopen(); }
  Store& store() override { return *store_; }
  void Reopen() override {
    store_.reset();
    absl::StatusOr<std::unique_ptr<Store>> store = storage::OpenJobStore(dir_.path());
    LH_CHECK(store.ok(), std::string(store.status().message()));
    store_ = *std::move(store);
  }

 private:
  TempDir dir_;
  std::unique_ptr<Store> store_;
};

INSTANTIATE_TEST_SUITE_P(Stores, StoreContractTest,
                         ::testing::Values(StoreFactory{"Fake", [] { return std::make_unique<FakeUnderTest>(); }},
                                           StoreFactory{"Sqlite", [] { return std::make_unique<SqliteUnderTest>(); }}),
                         [](const auto& tested) { return tested.param.name; });

TEST_P(StoreContractTest, AJobIsThereAfterItsCommitAndAfterReopening) {
  EXPECT_EQ(ErrorReason(store().GetJob("ftjob-1001").status()), "JOB_NOT_FOUND");
  Job job = MakeJob(1);
  job.labels = {{"team", "a"}};
  job.last_checkpoint = Checkpoint{7, 1, false, 0.5, "s", {}, 3, "one thread"};
  std::unique_ptr<StoreTransaction> transaction = Begin();
  ASSERT_TRUE(transaction->PutJob(job).ok());
  EXPECT_FALSE(store().GetJob(job.id).ok()) << "readers see the last commit";
  ASSERT_TRUE(transaction->Commit().ok());
  transaction.reset();
  for (int i = 0; i < 2; ++i) {
    const absl::StatusOr<Job> back = store().GetJob(job.id);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->labels, job.labels);
    EXPECT_EQ(back->last_checkpoint->step, 7);
    EXPECT_EQ(*store().MaxCreateNumber(), 1u);
    Reopen();
  }
}

TEST_P(StoreContractTest, WithoutCommitNothingHappened) {
  {
    std::unique_ptr<StoreTransaction> transaction = Begin();
    ASSERT_TRUE(transaction->PutJob(MakeJob(1)).ok());
  }
  EXPECT_FALSE(store().GetJob("ftjob-1001").ok());
  PutJob(MakeJob(2));  // the writer is free again
  EXPECT_TRUE(store().GetJob("ftjob-1002").ok());
}

TEST_P(StoreContractTest, ACommandIsUndoneAlone) {
  Write([](StoreTransaction& tx) -> absl::Status {
    EXPECT_TRUE(tx.BeginCommand().ok());
    EXPECT_TRUE(tx.PutJob(MakeJob(1)).ok());
    EXPECT_TRUE(tx.EndCommand(true).ok());
    EXPECT_TRUE(tx.BeginCommand().ok());
    EXPECT_TRUE(tx.PutJob(MakeJob(2)).ok());
    Job changed = MakeJob(1, JobState::kPaused);
    EXPECT_TRUE(tx.PutJob(changed).ok());
    EXPECT_TRUE(tx.EndCommand(false).ok());
    return absl::OkStatus();
  });
  EXPECT_EQ(store().GetJob("ftjob-1001")->state, JobState::kQueued);
  EXPECT_FALSE(store().GetJob("ftjob-1002").ok());
}

TEST_P(StoreContractTest, EventsAreDense) {
  PutJob(MakeJob(1));
  const std::string id = "ftjob-1001";
  const auto event = [](int64_t sequence) {
    JobEvent made;
    made.sequence = sequence;
    made.message = "e" + std::to_string(sequence);
    return made;
  };
  for (int64_t i = 1; i <= 5; ++i) {
    Write([&](StoreTransaction& tx) { return tx.AddEvent(id, event(i)); });
  }
  for (const int64_t bad : {0, 5, 7}) {
    std::unique_ptr<StoreTransaction> transaction = Begin();
    EXPECT_EQ(transaction->AddEvent(id, event(bad)).code(), absl::StatusCode::kAborted) << bad;
  }
  const absl::StatusOr<std::vector<JobEvent>> events = store().ListEvents(id, 2, 2);
  ASSERT_TRUE(events.ok());
  ASSERT_EQ(events->size(), 2u);
  EXPECT_EQ((*events)[0].message, "e3");
  EXPECT_EQ((*events)[1].sequence, 4);
}

TEST_P(StoreContractTest, AttemptsAndCheckpoints) {
  PutJob(MakeJob(1));
  const std::string id = "ftjob-1001";
  Write([&](StoreTransaction& tx) -> absl::Status {
    for (const int number : {2, 1}) {
      Attempt attempt;
      attempt.number = number;
      attempt.worker_id = "w";
      EXPECT_TRUE(tx.PutAttempt(id, attempt).ok());
    }
    for (const int64_t step : {40, 20, 60}) {
      Checkpoint checkpoint;
      checkpoint.step = step;
      checkpoint.files = {{"f", {std::string(64, 'a'), step}}};
      EXPECT_TRUE(tx.PutCheckpoint(id, checkpoint).ok());
    }
    return tx.DeleteCheckpoint(id, 40, 0);
  });
  Attempt ended;
  ended.number = 1;
  ended.outcome = AttemptOutcome::kLost;
  Write([&](StoreTransaction& tx) { return tx.PutAttempt(id, ended); });
  const auto attempts = store().ListAttempts(id);
  ASSERT_TRUE(attempts.ok());
  ASSERT_EQ(attempts->size(), 2u);
  EXPECT_EQ((*attempts)[0].outcome, AttemptOutcome::kLost);
  EXPECT_EQ((*attempts)[1].number, 2);
  const auto checkpoints = store().ListCheckpoints(id);
  ASSERT_TRUE(checkpoints.ok());
  ASSERT_EQ(checkpoints->size(), 2u);
  EXPECT_EQ((*checkpoints)[0].step, 20);
  EXPECT_EQ((*checkpoints)[1].files.at(0).blob.size_bytes, 60);
}

TEST_P(StoreContractTest, ChildrenNeedTheirJob) {
  std::unique_ptr<StoreTransaction> transaction = Begin();
  EXPECT_EQ(transaction->PutAttempt("ftjob-none", Attempt()).code(), absl::StatusCode::kAborted);
}

TEST_P(StoreContractTest, MetricsKeepTheLastAttemptsPointAndThin) {
  PutJob(MakeJob(1));
  const std::string id = "ftjob-1001";
  const auto points = [](int attempt, int64_t from, int64_t to) {
    std::vector<MetricPoint> made;
    for (int64_t step = from; step <= to; ++step) {
      made.push_back({attempt, step, "a" + std::to_string(attempt) + "s" + std::to_string(step), 0, 0});
    }
    return made;
  };
  Write([&](StoreTransaction& tx) { return tx.PutMetrics(id, points(1, 1, 600)); });
  Write([&](StoreTransaction& tx) { return tx.PutMetrics(id, points(2, 500, 5000)); });
  Write([&](StoreTransaction& tx) { return tx.PutMetrics(id, points(1, 550, 551)); });  // late: the older attempt loses
  for (int64_t step = 5001; step <= 5010; ++step) {
    Write([&](StoreTransaction& tx) { return tx.PutMetrics(id, points(2, step, step)); });  // one by one, as they come
  }
  // Within one write a step may come twice, and out of order.
  Write([&](StoreTransaction& tx) {
    return tx.PutMetrics(id, {{2, 5012, "early", 0, 0}, {2, 5011, "a2s5011", 0, 0}, {2, 5012, "a2s5012", 0, 0}});
  });
  auto all = store().ListMetrics(id, 5009, 100'000);
  ASSERT_EQ(all->size(), 3u);
  EXPECT_EQ((*all)[0].progress, "a2s5010");
  EXPECT_EQ((*all)[1].progress, "a2s5011");
  EXPECT_EQ((*all)[2].progress, "a2s5012");
  Write(
      [&](StoreTransaction& tx) { return tx.PutMetrics(id, points(3, 5009, 5010)); });  // resumed from an earlier step
  all = store().ListMetrics(id, 5008, 1);
  ASSERT_EQ(all->size(), 1u);
  EXPECT_EQ((*all)[0].attempt, 3);
  all = store().ListMetrics(id, 0, 5000);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 5000u);
  for (size_t i = 0; i < all->size(); ++i) {
    const int64_t step = static_cast<int64_t>(i) + 1;
    ASSERT_EQ((*all)[i].step, step);
    ASSERT_EQ((*all)[i].attempt, step < 500 ? 1 : 2) << step;
  }
  const auto page = store().ListMetrics(id, 255, 3);
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->size(), 3u);
  EXPECT_EQ((*page)[0].step, 256);
  EXPECT_EQ((*page)[2].progress, "a1s258");

  Write([&](StoreTransaction& tx) { return tx.ThinMetrics(id, limits::kMaxMetricsPointsTerminal); });
  all = store().ListMetrics(id, 0, 100'000);
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(all->size(), static_cast<size_t>(limits::kMaxMetricsPointsTerminal));
  EXPECT_EQ(all->front().step, 1);
  EXPECT_EQ(all->back().step, 5012);
  for (size_t i = 1; i < all->size(); ++i) {
    const int64_t gap = (*all)[i].step - (*all)[i - 1].step;
    ASSERT_GE(gap, 2);
    ASSERT_LE(gap, 3);
  }
  const auto later = store().ListMetrics(id, 4000, 2);
  ASSERT_EQ(later->size(), 2u);
  EXPECT_GT((*later)[0].step, 4000);
}

TEST_P(StoreContractTest, RequestKeysOutliveTheirJobAndExpire) {
  PutJob(MakeJob(1, JobState::kSucceeded));
  Write([](StoreTransaction& tx) { return tx.PutRequestKey({"p", "r", "sha", "ftjob-1001", 50}); });
  Write([](StoreTransaction& tx) { return tx.DeleteJob("ftjob-1001", 0); });
  auto key = store().GetRequestKey("p", "r");
  ASSERT_TRUE(key.ok());
  ASSERT_TRUE(key->has_value());
  EXPECT_EQ((*key)->job_id, "ftjob-1001");
  EXPECT_FALSE((*store().GetRequestKey("q", "r")).has_value());
  const auto sweep = [this](int64_t before, int most) {
    int deleted = -1;
    Write([&](StoreTransaction& tx) -> absl::Status {
      LH_ASSIGN_OR_RETURN(deleted, tx.DeleteRequestKeysBefore(before, most));
      return absl::OkStatus();
    });
    return deleted;
  };
  EXPECT_EQ(sweep(50, 100), 0);
  EXPECT_TRUE((*store().GetRequestKey("p", "r")).has_value());
  EXPECT_EQ(sweep(51, 100), 1);
  EXPECT_FALSE((*store().GetRequestKey("p", "r")).has_value());
}

TEST_P(StoreContractTest, TheOldestRequestKeysGoFirst) {
  for (int i = 0; i < 5; ++i) {
    Write([i](StoreTransaction& tx) {
      return tx.PutRequestKey({"p", "r" + std::to_string(i), "sha", "ftjob-1", 100 - i});
    });
  }
  Write([](StoreTransaction& tx) { return tx.DeleteRequestKeysBefore(100, 3).status(); });
  EXPECT_TRUE((*store().GetRequestKey("p", "r0")).has_value()) << "it is young enough";
  EXPECT_TRUE((*store().GetRequestKey("p", "r1")).has_value()) << "the next sweep's";
  for (const char* gone : {"r2", "r3", "r4"}) EXPECT_FALSE((*store().GetRequestKey("p", gone)).has_value()) << gone;
}

TEST_P(StoreContractTest, ADeletionIsAnIntentUntilItIsForgotten) {
  for (const int number : {3, 1, 2}) {
    PutJob(MakeJob(number, JobState::kFailed));
    Write([&](StoreTransaction& tx) { return tx.DeleteJob("ftjob-100" + std::to_string(number), 0); });
  }
  Write([](StoreTransaction& tx) { return tx.DeleteJob("ftjob-never", 0); });
  Reopen();
  EXPECT_THAT(*store().ListDeletedJobs("", 2), ElementsAre("ftjob-1001", "ftjob-1002"));
  EXPECT_THAT(*store().ListDeletedJobs("ftjob-1002", 2), ElementsAre("ftjob-1003"));
  EXPECT_THAT(*store().ListDeletedJobs("ftjob-1003", 2), IsEmpty());
  EXPECT_THAT(*store().ListDeletedJobs("", 0), IsEmpty());
  Write([](StoreTransaction& tx) { return tx.ForgetDeletedJob("ftjob-1001"); });
  EXPECT_THAT(*store().ListDeletedJobs("", 10), ElementsAre("ftjob-1002", "ftjob-1003"));
}

TEST_P(StoreContractTest, DeleteTakesEverythingOfAJob) {
  PutJob(MakeJob(1, JobState::kFailed));
  const std::string id = "ftjob-1001";
  Write([&](StoreTransaction& tx) -> absl::Status {
    JobEvent event;
    event.sequence = 1;
    Attempt attempt;
    attempt.number = 1;
    EXPECT_TRUE(tx.AddEvent(id, event).ok());
    EXPECT_TRUE(tx.PutAttempt(id, attempt).ok());
    EXPECT_TRUE(tx.PutCheckpoint(id, Checkpoint()).ok());
    return tx.PutMetrics(id, {{1, 1, "p", 0, 0}});
  });
  Write([&](StoreTransaction& tx) { return tx.DeleteJob(id, 0); });
  EXPECT_FALSE(store().GetJob(id).ok());
  EXPECT_THAT(*store().ListEvents(id, 0, 10), IsEmpty());
  EXPECT_THAT(*store().ListAttempts(id), IsEmpty());
  EXPECT_THAT(*store().ListCheckpoints(id), IsEmpty());
  EXPECT_THAT(*store().ListMetrics(id, 0, 10), IsEmpty());
}

TEST_P(StoreContractTest, LiveJobsAndWorkers) {
  PutJob(MakeJob(3));
  PutJob(MakeJob(1, JobState::kCancelled));
  PutJob(MakeJob(2, JobState::kRunning));
  PutJob(MakeJob(2, JobState::kRecovering));  // replaced, not doubled
  EXPECT_THAT(Ids(*store().LoadLiveJobs()), ElementsAre("1002", "1003"));
  EXPECT_EQ(*store().MaxCreateNumber(), 3u);
  Worker worker;
  worker.id = "w";
  Write([&](StoreTransaction& tx) { return tx.PutWorker(worker); });
  worker.draining = true;
  Write([&](StoreTransaction& tx) { return tx.PutWorker(worker); });
  const auto workers = store().ListWorkers();
  ASSERT_EQ(workers->size(), 1u);
  EXPECT_TRUE((*workers)[0].draining);
  for (int i = 0; i < 2; ++i) Write([&](StoreTransaction& tx) { return tx.DeleteWorker("w"); });
  EXPECT_THAT(*store().ListWorkers(), IsEmpty());
}

TEST_P(StoreContractTest, OnlyUnreferencedBlobsPastTheirGraceAreDropped) {
  const auto blob = [](char c) { return BlobRef{std::string(64, c), 10}; };
  Job job = MakeJob(1, JobState::kRunning);
  job.inputs = {blob('a')};
  PutJob(job);
  Write([&](StoreTransaction& tx) -> absl::Status {
    for (const char c : {'a', 'b', 'c', 'd', 'e'}) EXPECT_TRUE(tx.PutBlob(blob(c), c == 'd' ? 200 : 100).ok());
    Checkpoint checkpoint;
    checkpoint.step = 20;
    checkpoint.files = {{"f", blob('b')}};
    return tx.PutCheckpoint(job.id, checkpoint);
  });
  job.state = JobState::kSucceeded;
  job.artifact = {{"adapter", blob('c')}};
  PutJob(job);
  EXPECT_TRUE(*store().HasBlob(blob('e')));
  EXPECT_FALSE(*store().HasBlob({std::string(64, 'e'), 11}));
  EXPECT_EQ(*store().IdleBlobGraceMicros(blob('d')), 200);
  EXPECT_EQ(*store().IdleBlobGraceMicros({std::string(64, 'd'), 11}), std::nullopt);
  for (const char referred : {'a', 'b', 'c'}) EXPECT_EQ(*store().IdleBlobGraceMicros(blob(referred)), std::nullopt);
  const auto drop = [&](int64_t before, int most) {
    std::vector<std::string> names;
    Write([&](StoreTransaction& tx) -> absl::Status {
      const auto dropped = tx.DropUnreferencedBlobs(before, most);
      if (!dropped.ok()) return dropped.status();
      for (const BlobRef& gone : *dropped) names.push_back(gone.sha256.substr(0, 1));
      return absl::OkStatus();
    });
    return names;
  };
  EXPECT_THAT(drop(100, 10), IsEmpty());
  EXPECT_THAT(drop(150, 0), IsEmpty());
  EXPECT_THAT(drop(150, 10), ElementsAre("e"));
  EXPECT_FALSE(*store().HasBlob(blob('e')));
  Write([&](StoreTransaction& tx) { return tx.PutBlob(blob('d'), 50); });  // a renewal never shortens
  EXPECT_THAT(drop(150, 10), IsEmpty());
  Write([&](StoreTransaction& tx) { return tx.DeleteCheckpoint(job.id, 20, 0); });
  EXPECT_THAT(drop(150, 10), ElementsAre("b"));
  Write([&](StoreTransaction& tx) { return tx.DeleteJob(job.id, 0); });
  EXPECT_THAT(drop(150, 10), ElementsAre("a", "c"));
}

TEST_P(StoreContractTest, ABlobThatLosesItsLastReferenceHasTheGraceThatItIsGiven) {
  const auto blob = [](char c) { return BlobRef{std::string(64, c), 10}; };
  const auto checkpoint = [&](int64_t step, int64_t commit_wall_micros, const std::string& names) {
    Checkpoint made;
    made.step = step;
    made.commit_wall_micros = commit_wall_micros;
    for (const char c : names) made.files.push_back({std::string(1, c), blob(c)});
    return made;
  };
  Job job = MakeJob(1, JobState::kSucceeded);
  job.inputs = {blob('f')};
  job.artifact = {{"adapter", blob('e')}};
  job.artifact_wall_micros = 130;
  Write([&](StoreTransaction& tx) -> absl::Status {
    for (const char c : {'a', 'b', 'c', 'd', 'e', 'f'}) EXPECT_TRUE(tx.PutBlob(blob(c), 100).ok());
    EXPECT_TRUE(tx.PutJob(job).ok());
    EXPECT_TRUE(tx.PutCheckpoint(job.id, checkpoint(10, 110, "abc")).ok());
    EXPECT_TRUE(tx.PutBlob(blob('c'), 111).ok());  // somebody was told that it is there
    return tx.PutCheckpoint(job.id, checkpoint(20, 120, "bd"));
  });
  const auto drop = [&](int64_t before) {
    std::string names;
    Write([&](StoreTransaction& tx) -> absl::Status {
      const auto dropped = tx.DropUnreferencedBlobs(before, 10);
      if (!dropped.ok()) return dropped.status();
      for (const BlobRef& gone : *dropped) names += gone.sha256[0];
      return absl::OkStatus();
    });
    std::sort(names.begin(), names.end());
    return names;
  };
  Write([&](StoreTransaction& tx) { return tx.DeleteCheckpoint(job.id, 10, 50); });
  Write([&](StoreTransaction& tx) { return tx.DeleteCheckpoint(job.id, 10, 40); });  // there is none any more
  EXPECT_EQ(drop(50), "");
  EXPECT_EQ(drop(100), "a") << "the next checkpoint keeps b, and c was renewed";
  EXPECT_EQ(drop(112), "c");
  // Later than it was, too, and so are the blobs of a deleted job; its inputs are not its own.
  Write([&](StoreTransaction& tx) { return tx.DeleteJob(job.id, 200); });
  EXPECT_EQ(drop(200), "f");
  Write([&](StoreTransaction& tx) { return tx.PutBlob(blob('d'), 300); });
  EXPECT_EQ(drop(201), "be");
  EXPECT_EQ(drop(300), "");
  EXPECT_EQ(drop(301), "d");
}

TEST_P(StoreContractTest, ABlobIsInTheProjectsThatUploadedItAndThoseWhoseJobsKeepIt) {
  const auto blob = [](char c) { return BlobRef{std::string(64, c), 10}; };
  Job job = MakeJob(1, JobState::kSucceeded);
  job.project = "red";
  job.inputs = {blob('a')};
  job.artifact = {{"adapter", blob('b')}};
  Write([&](StoreTransaction& tx) -> absl::Status {
    for (const char c : {'a', 'b', 'c', 'd'}) EXPECT_TRUE(tx.PutBlob(blob(c), 100).ok());
    EXPECT_TRUE(tx.PutJob(job).ok());
    Checkpoint checkpoint;
    checkpoint.step = 2;
    checkpoint.files = {{"f", blob('c')}};
    EXPECT_TRUE(tx.PutCheckpoint(job.id, checkpoint).ok());
    EXPECT_TRUE(tx.PutBlobProject(blob('d'), "blue").ok());
    EXPECT_TRUE(tx.PutBlobProject(blob('a'), "blue").ok());
    return tx.PutBlobProject(blob('d'), "blue");  // again
  });
  const auto in = [&](const std::string& project) {
    std::string names;
    for (const char c : {'a', 'b', 'c', 'd', 'e'}) {
      if (*store().BlobInProject(blob(c), project)) names += c;
    }
    return names;
  };
  EXPECT_EQ(in("red"), "abc");
  EXPECT_EQ(in("blue"), "ad");
  EXPECT_EQ(in(""), "");
  EXPECT_EQ(store().Uploaded("blue")->bytes, 20);
  EXPECT_EQ(store().Uploaded("blue")->blobs, 2);
  EXPECT_EQ(store().Uploaded("red")->bytes, 0);
  EXPECT_EQ(store().Uploaded("red")->blobs, 0);
  // Whose upload it was is forgotten with the blob.
  Write([&](StoreTransaction& tx) { return tx.DropUnreferencedBlobs(150, 10).status(); });
  EXPECT_EQ(in("blue"), "a");
  EXPECT_EQ(store().Uploaded("blue")->bytes, 10);
  EXPECT_EQ(store().Uploaded("blue")->blobs, 1);
  EXPECT_FALSE(Begin()->PutBlobProject(blob('e'), "blue").ok()) << "there is no such blob";
}

TEST_P(StoreContractTest, TheAuditLogIsAppendOnlyAndNumbered) {
  const int64_t now = RealClock().WallMicros();
  const int64_t kept = limits::kAuditKeepDays * 24 * 3600 * 1'000'000;
  Write([&](StoreTransaction& tx) -> absl::Status {
    AuditRecord record{0,     now - 2 * kept, "token:ci", "10.0.0.1", "FineTuneService/CreateFineTuneJob",
                       "red", "ftjob-1",      "OK",       ""};
    EXPECT_TRUE(tx.AddAudit(record).ok());
    record.wall_micros = now;
    record.code = "NOT_FOUND";
    record.reason = "JOB_NOT_FOUND";
    return tx.AddAudit(record);
  });
  {
    const auto undone = Begin();
    EXPECT_TRUE(undone->AddAudit({}).ok());
  }
  for (int i = 0; i < 2; ++i) {
    const auto records = store().ListAudit(0, 10);
    ASSERT_TRUE(records.ok()) << records.status();
    ASSERT_EQ(records->size(), 2u);
    EXPECT_EQ(records->at(0).number, 1);
    EXPECT_EQ(records->at(0).target, "ftjob-1");
    EXPECT_EQ(records->at(1).number, 2);
    EXPECT_EQ(records->at(1).caller, "token:ci");
    EXPECT_EQ(records->at(1).host, "10.0.0.1");
    EXPECT_EQ(records->at(1).method, "FineTuneService/CreateFineTuneJob");
    EXPECT_EQ(records->at(1).project, "red");
    EXPECT_EQ(records->at(1).wall_micros, now);
    EXPECT_EQ(records->at(1).reason, "JOB_NOT_FOUND");
    Reopen();
  }
  EXPECT_EQ(store().ListAudit(0, 1)->size(), 1u);
  EXPECT_EQ(store().ListAudit(1, 10)->at(0).number, 2);
  // What is too young stays, and takes the old ones of the same attempt with it.
  EXPECT_EQ(Begin()->DeleteAuditBefore(now + 1).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(store().ListAudit(0, 10)->size(), 2u);
  Write([&](StoreTransaction& tx) { return tx.DeleteAuditBefore(now - kept - 1'000'000); });
  ASSERT_EQ(store().ListAudit(0, 10)->size(), 1u);
  EXPECT_EQ(store().ListAudit(0, 10)->at(0).number, 2);
}

}  // namespace
}  // namespace longhaul::server
