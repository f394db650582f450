// What is SQLite's own: the lock, the schema's number, and what a killed process leaves behind.
#include "storage/job_store.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "gtest/gtest.h"
#include "storage/migrations.h"
#include "storage/sqlite_db.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

using server::Job;
using server::JobEvent;
using server::Store;
using server::StoreTransaction;

Job NumberedJob(int number) {
  Job job;
  job.id = "ftjob-" + std::to_string(number);
  job.project = "p";
  job.create_number = static_cast<uint64_t>(number);
  return job;
}

TEST(JobStoreTest, OneSchedulerAFolder) {
  const TempDir dir;
  const auto first = OpenJobStore(dir.path());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = OpenJobStore(dir.path());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(second.status()), "LOCKED");
  EXPECT_NE(std::string(second.status().message()).find(dir.path()), std::string::npos);
}

TEST(JobStoreTest, ANewerSchemaIsRefusedAndLeftAsItIs) {
  const TempDir dir;
  ASSERT_TRUE(OpenJobStore(dir.path()).ok());
  {
    auto db = Db::Open(JoinPath(dir.path(), "state.db"), Db::Mode::kReadWrite);
    ASSERT_TRUE(db.ok());
    ASSERT_TRUE((*db)->Exec("PRAGMA user_version=999").ok());
  }
  const absl::Status status = OpenJobStore(dir.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(status), "SCHEMA_TOO_NEW");
  EXPECT_NE(std::string(status.message()).find("999"), std::string::npos) << status;
  auto db = Db::Open(JoinPath(dir.path(), "state.db"), Db::Mode::kReadWrite);
  ASSERT_TRUE(db.ok());
  EXPECT_EQ(*(*db)->QueryInt("PRAGMA user_version"), 999);
}

TEST(JobStoreTest, AnotherProgramsDatabaseIsRefused) {
  const TempDir dir;
  {
    auto db = Db::Open(JoinPath(dir.path(), "state.db"), Db::Mode::kReadWrite);
    ASSERT_TRUE(db.ok());
    ASSERT_TRUE((*db)->Exec("CREATE TABLE theirs(x)").ok());
  }
  EXPECT_EQ(ErrorReason(OpenJobStore(dir.path()).status()), "NOT_OURS");
}

TEST(JobStoreTest, AFileThatIsNoDatabaseIsDataLoss) {
  const TempDir dir;
  ASSERT_TRUE(WriteFileAtomic(JoinPath(dir.path(), "state.db"), std::string(8192, 'x')).ok());
  EXPECT_EQ(OpenJobStore(dir.path()).status().code(), absl::StatusCode::kDataLoss);
}

TEST(JobStoreTest, AMigrationIsAppliedOnce) {
  const TempDir dir;
  auto db = Db::Open(JoinPath(dir.path(), "state.db"), Db::Mode::kReadWrite);
  ASSERT_TRUE(db.ok());
  ASSERT_TRUE(Migrate(db->get()).ok());
  ASSERT_TRUE(Migrate(db->get()).ok());
  EXPECT_EQ(*(*db)->QueryInt("PRAGMA user_version"), SchemaVersion());
  EXPECT_EQ(*(*db)->QueryInt("PRAGMA foreign_keys"), 1);
  EXPECT_EQ(*(*db)->QueryInt("PRAGMA synchronous"), 2);
}

// A child commits jobs 1, 2, ... and tells each over a pipe after its commit; it is killed in the middle of a
// transaction. Everything told is there, and jobs come whole with their events.
TEST(JobStoreTest, KilledMidTransactionKeepsWhatWasCommitted) {
  const TempDir dir;
  ASSERT_TRUE(OpenJobStore(dir.path()).ok());
  int told[2];
  ASSERT_EQ(::pipe(told), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::close(told[0]);
    auto store = OpenJobStore(dir.path());
    if (!store.ok()) ::_exit(1);
    for (int number = 1; number < 100'000; ++number) {
      auto transaction = (*store)->Begin();
      if (!transaction.ok() || !(*transaction)->PutJob(NumberedJob(number)).ok()) ::_exit(2);
      JobEvent event;
      event.sequence = 1;
      if (!(*transaction)->AddEvent(NumberedJob(number).id, event).ok()) ::_exit(3);
      if (number % 7 == 0) {  // more for the kill to hit
        for (int i = 0; i < 20; ++i) {
          if (!(*transaction)->PutMetrics(NumberedJob(number).id, {{1, i, std::string(1000, 'm'), 0, 0}}).ok())
            ::_exit(4);
        }
      }
      if (!(*transaction)->Commit().ok()) ::_exit(5);
      if (::write(told[1], &number, sizeof(number)) != sizeof(number)) ::_exit(6);
    }
    ::_exit(0);
  }
  ::close(told[1]);
  int last = 0;
  int number = 0;
  while (last < 25 && ::read(told[0], &number, sizeof(number)) == sizeof(number)) last = number;
  ::kill(child, SIGKILL);
  while (::read(told[0], &number, sizeof(number)) == sizeof(number)) last = number;
  ::close(told[0]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself: " << WEXITSTATUS(status);
  ASSERT_GE(last, 25);

  const auto store = OpenJobStore(dir.path());
  ASSERT_TRUE(store.ok()) << store.status();
  const int there = static_cast<int>(*(*store)->MaxCreateNumber());
  EXPECT_GE(there, last);
  EXPECT_LE(there, last + 1) << "at most one commit was not told yet";
  for (int i = 1; i <= there; ++i) {
    ASSERT_TRUE((*store)->GetJob(NumberedJob(i).id).ok()) << i;
    ASSERT_EQ((*store)->ListEvents(NumberedJob(i).id, 0, 10)->size(), 1u) << i;
  }
}

TEST(JobStoreTest, ReadersNeverWaitForTheWriter) {
  const TempDir dir;
  auto store = OpenJobStore(dir.path());
  ASSERT_TRUE(store.ok());
  {
    auto transaction = (*store)->Begin();
    ASSERT_TRUE((*transaction)->PutJob(NumberedJob(1)).ok());
    ASSERT_TRUE((*transaction)->Commit().ok());
  }
  auto open = (*store)->Begin();
  ASSERT_TRUE((*open)->PutJob(NumberedJob(2)).ok());
  std::vector<std::thread> readers;
  std::atomic<int> good = 0;
  for (int i = 0; i < 12; ++i) {
    readers.emplace_back([&] {
      for (int j = 0; j < 20; ++j) {
        if ((*store)->GetJob("ftjob-1").ok() && !(*store)->GetJob("ftjob-2").ok()) ++good;
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(good, 240);
  ASSERT_TRUE((*open)->Commit().ok());
  EXPECT_TRUE((*store)->GetJob("ftjob-2").ok());
  EXPECT_GT((*store)->GetSizes().db_bytes + (*store)->GetSizes().wal_bytes, 0);
}

// However long a run: what is kept of it is bounded and even, and its newest points are whole.
TEST(JobStoreTest, ALongRunKeepsAnEvenPartOfItsPoints) {
  const TempDir dir;
  auto store = OpenJobStore(dir.path());
  ASSERT_TRUE(store.ok()) << store.status();
  auto transaction = (*store)->Begin();
  ASSERT_TRUE((*transaction)->PutJob(NumberedJob(1)).ok());
  const auto run = [&](int attempt, int64_t from, int64_t to) {
    std::vector<server::MetricPoint> points;
    for (int64_t step = from; step <= to; ++step) {
      points.push_back({attempt, step, "p", 0, 0});
      if (points.size() < 700 && step < to) continue;
      ASSERT_TRUE((*transaction)->PutMetrics("ftjob-1", points).ok());
      points.clear();
    }
  };
  const auto check = [&](int64_t last) {
    ASSERT_TRUE((*transaction)->Commit().ok());
    const auto kept = (*store)->ListMetrics("ftjob-1", 0, 1'000'000);
    ASSERT_TRUE(kept.ok()) << kept.status();
    EXPECT_LE(kept->size(), 101'000u);
    EXPECT_GE(kept->size(), 50'000u);
    EXPECT_EQ(kept->front().step, 1);
    EXPECT_EQ(kept->back().step, last);
    EXPECT_EQ((*kept)[kept->size() - 770].step, last - 769) << "the newest are all there";
    for (size_t i = 1; i < kept->size(); ++i) {
      const int64_t gap = (*kept)[i].step - (*kept)[i - 1].step;
      ASSERT_GE(gap, 1) << (*kept)[i].step;
      ASSERT_LE(gap, 8) << (*kept)[i].step;
    }
    transaction = (*store)->Begin();
  };
  int64_t begin = 1;
  for (const int64_t last : {110'000, 170'000, 300'000}) {
    run(1, std::exchange(begin, last + 1), last);
    check(last);
  }
  // Without a checkpoint it begins again, and ends up with no more.
  run(2, 1, 300'000);
  check(300'000);
  const auto again = (*store)->ListMetrics("ftjob-1", 0, 1'000'000);
  for (const server::MetricPoint& point : *again) ASSERT_EQ(point.attempt, 2);
  ASSERT_TRUE((*transaction)->ThinMetrics("ftjob-1", 2'000).ok());
  ASSERT_TRUE((*transaction)->Commit().ok());
  const auto ended = (*store)->ListMetrics("ftjob-1", 0, 1'000'000);
  EXPECT_EQ(ended->size(), 2'000u);
  EXPECT_EQ(ended->front().step, 1);
  EXPECT_EQ(ended->back().step, 300'000);
}

// Nothing of the pool is needed for it, and nothing that may be wanting later: not even a connection can be opened
// here.
TEST(JobStoreTest, TheWriterReadsWithAConnectionOfItsOwn) {
  const TempDir dir;
  auto store = OpenJobStore(dir.path());
  ASSERT_TRUE(store.ok()) << store.status();
  server::StoreWriter& writer = (*store)->Writer();
  const auto put = [&](int number) {
    auto transaction = writer.Begin();
    ASSERT_TRUE(transaction.ok()) << transaction.status();
    ASSERT_TRUE((*transaction)->PutJob(NumberedJob(number)).ok());
    ASSERT_TRUE((*transaction)->Commit().ok());
  };
  put(1);
  const std::string path = JoinPath(dir.path(), "state.db");
  ASSERT_TRUE(RenameFile(path, path + ".away").ok());
  EXPECT_FALSE((*store)->GetJob("ftjob-1").ok()) << "the pool opens its connections when they are needed";
  EXPECT_TRUE(writer.GetJob("ftjob-1").ok());
  EXPECT_FALSE(writer.GetRequestKey("p", "r")->has_value());
  EXPECT_EQ(writer.ListAttempts("ftjob-1")->size(), 0u);
  EXPECT_EQ(writer.ListCheckpoints("ftjob-1")->size(), 0u);
  ASSERT_TRUE(RenameFile(path + ".away", path).ok());
  // It sees the last commit, as every reader does, and nothing of the transaction that its own thread has open.
  auto open = writer.Begin();
  ASSERT_TRUE((*open)->PutJob(NumberedJob(2)).ok());
  EXPECT_FALSE(writer.GetJob("ftjob-2").ok());
  ASSERT_TRUE((*open)->Commit().ok());
  EXPECT_TRUE(writer.GetJob("ftjob-2").ok());
}

TEST(JobStoreTest, AnUnwritableFolderIsOneClearError) {
  const absl::Status status = OpenJobStore("/proc/longhaul-state").status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(std::string(status.message()).find("/proc/longhaul-state"), std::string::npos) << status;
}

}  // namespace
}  // namespace longhaul::storage
