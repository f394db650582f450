// Databases that earlier builds wrote, kept in tests/golden: each opens, is migrated, and says what it said then. A
// migration that loses power begins again where it was.
#include <filesystem>

#include "base/env.h"
#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/codec.h"
#include "storage/job_store.h"
#include "storage/migrations.h"
#include "storage/sqlite_db.h"
#include "tests/fakes/power_cut_disk.h"
#include "tests/storage/kept_state.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

using ::testing::ElementsAre;
using namespace server;  // NOLINT: the domain's values are this file's subject

constexpr int kOldestKeptVersion = 1;

std::string KeptFile(int version) {
  return std::string(LONGHAUL_SOURCE_DIR) + "/tests/golden/kept_v" + std::to_string(version) + ".db";
}

void CopyKept(int version, const std::string& folder) {
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(KeptFile(version), JoinPath(folder, "state.db"));
}

template <class T, class Encode>
std::vector<std::string> Encoded(const std::vector<T>& values, Encode encode) {
  std::vector<std::string> bytes;
  for (const T& value : values) bytes.push_back(encode(value));
  return bytes;
}

// Value by value: what the file of the older build was made from.
void ExpectKept(Store* store) {
  const KeptState kept = MakeKeptState();
  for (const KeptJob& expected : kept.jobs) {
    const std::string& id = expected.job.id;
    const absl::StatusOr<Job> job = store->GetJob(id);
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(EncodeJob(*job), EncodeJob(expected.job)) << id;
    EXPECT_EQ(Encoded(*store->ListEvents(id, 0, 100), EncodeEvent), Encoded(expected.events, EncodeEvent)) << id;
    EXPECT_EQ(Encoded(*store->ListAttempts(id), EncodeAttempt), Encoded(expected.attempts, EncodeAttempt)) << id;
    EXPECT_EQ(Encoded(*store->ListCheckpoints(id), EncodeCheckpoint), Encoded(expected.checkpoints, EncodeCheckpoint));
    EXPECT_EQ(EncodeMetrics(*store->ListMetrics(id, 0, 1'000)), EncodeMetrics(expected.metrics)) << id;
  }
  for (const RequestKey& expected : kept.keys) {
    const auto key = store->GetRequestKey(expected.project, expected.request_id);
    ASSERT_TRUE(key.ok() && key->has_value()) << expected.request_id;
    EXPECT_EQ((*key)->body_sha256, expected.body_sha256);
    EXPECT_EQ((*key)->job_id, expected.job_id);
    EXPECT_EQ((*key)->create_wall_micros, expected.create_wall_micros);
  }
  EXPECT_EQ(Encoded(*store->ListWorkers(), EncodeWorker), Encoded(kept.workers, EncodeWorker));
  int64_t blob_bytes = 0;
  std::map<std::string, int64_t> sizes;
  for (const BlobRef& blob : kept.blobs) {
    EXPECT_TRUE(*store->HasBlob(blob)) << blob.sha256;
    sizes[blob.sha256] = blob.size_bytes;
  }
  for (const auto& [sha256, size] : sizes) blob_bytes += size;
  EXPECT_EQ(store->GetSizes().blob_bytes, blob_bytes);
  EXPECT_EQ(*store->MaxCreateNumber(), kept.jobs.size());
  EXPECT_EQ(store->LoadLiveJobs()->size(), 9u);
}

std::vector<std::string> ListIds(Store* store, JobFilter filter) {
  std::vector<std::string> ids;
  const absl::StatusOr<JobPage> page = store->ListJobs(filter);
  EXPECT_TRUE(page.ok()) << page.status();
  if (page.ok()) {
    for (const Job& job : page->jobs) ids.push_back(job.id.substr(10));
  }
  return ids;
}

// Lists and garbage collection stand on columns that migrations made.
void ExpectDerived(Store* store) {
  JobFilter filter;
  filter.labels = {{"team", "a"}};
  EXPECT_THAT(ListIds(store, filter), ElementsAre("12", "9", "6", "3"));
  filter.labels["number"] = "9";
  EXPECT_THAT(ListIds(store, filter), ElementsAre("9"));
  // Jobs 10, 11 and 12 have ended, each in a state of its own.
  filter = JobFilter();
  filter.labels = {{"team", "b"}};
  filter.states = {JobState::kSucceeded, JobState::kFailed, JobState::kCancelled};
  EXPECT_THAT(ListIds(store, filter), ElementsAre("11", "10"));
  filter.project = "research";
  EXPECT_THAT(ListIds(store, filter), ElementsAre("11"));
  filter.states = {JobState::kSucceeded};
  EXPECT_THAT(ListIds(store, filter), ElementsAre());
  filter = JobFilter();
  // Job 7 was created while the clock was behind: it is listed where it stands, after 6.
  filter.created_after_micros = kKeptWallMicros + 5'500'000;
  filter.created_before_micros = kKeptWallMicros + 8'500'000;
  filter.oldest_first = true;
  EXPECT_THAT(ListIds(store, filter), ElementsAre("6", "7", "8"));
  filter = JobFilter();
  filter.project = "research";
  filter.model = "model-3";
  EXPECT_THAT(ListIds(store, filter), ElementsAre("11", "7", "3"));
  filter.labels = {{"team", "b"}};
  EXPECT_THAT(ListIds(store, filter), ElementsAre("11", "7"));
  filter.project.clear();
  filter.labels = {{"team", "a"}};
  EXPECT_THAT(ListIds(store, filter), ElementsAre("3"));

  const KeptState kept = MakeKeptState();
  const auto drop = [&] {
    const auto tx = store->Begin();
    const auto dropped = (*tx)->DropUnreferencedBlobs(kKeptWallMicros + 1, 1'000);
    EXPECT_TRUE((*tx)->Commit().ok());
    return *dropped;
  };
  const std::vector<BlobRef> dropped = drop();
  ASSERT_EQ(dropped.size(), 1u);
  EXPECT_EQ(dropped[0].sha256, kept.blobs.back().sha256);
  // The rows' own references went into the count: with its last job a blob goes, and not before.
  const std::string artifact = kept.jobs[9].job.artifact[0].blob.sha256;
  const auto tx = store->Begin();
  ASSERT_TRUE((*tx)->DeleteJob(kept.jobs[9].job.id, 0).ok());
  ASSERT_TRUE((*tx)->Commit().ok());
  std::vector<std::string> names;
  for (const BlobRef& blob : drop()) names.push_back(blob.sha256);
  EXPECT_THAT(names, ::testing::Contains(artifact));
  EXPECT_EQ(names.size(), 4u) << "artifact, card and two checkpoints' adapters; its dataset and optimizer are shared";
}

TEST(KeptDatabaseTest, EveryKeptDatabaseSaysWhatItSaid) {
  ASSERT_GT(SchemaVersion(), kOldestKeptVersion);
  for (int version = kOldestKeptVersion; version < SchemaVersion(); ++version) {
    SCOPED_TRACE("schema " + std::to_string(version));
    const TempDir dir;
    ASSERT_TRUE(FileExists(KeptFile(version))) << "keep a database of each released schema: make_kept_state writes it";
    CopyKept(version, JoinPath(dir.path(), "state"));
    {
      // Of the copy: SQLite puts a log beside what it opens.
      auto old = Db::Open(JoinPath(dir.path(), "state/state.db"), Db::Mode::kReadOnly);
      ASSERT_TRUE(old.ok()) << old.status();
      ASSERT_EQ(*(*old)->QueryInt("PRAGMA user_version"), version) << "the file is not of its schema";
    }
    const auto store = OpenJobStore(JoinPath(dir.path(), "state"));
    ASSERT_TRUE(store.ok()) << store.status();
    ExpectKept(store->get());
    ExpectDerived(store->get());
  }
}

TEST(KeptDatabaseTest, ANewDatabaseIsTheSameAsAMigratedOne) {
  const TempDir dir;
  CopyKept(kOldestKeptVersion, JoinPath(dir.path(), "old"));
  const auto schema = [](const std::string& folder) {
    EXPECT_TRUE(OpenJobStore(folder).ok());
    auto db = Db::Open(JoinPath(folder, "state.db"), Db::Mode::kReadOnly);
    std::vector<std::string> lines;
    auto rows = (*db)->Prepare("SELECT type || ' ' || name || ' ' || IFNULL(sql, '') FROM sqlite_master ORDER BY 1");
    while (*rows->Step()) lines.push_back(rows->Text(0));
    return lines;
  };
  EXPECT_EQ(schema(JoinPath(dir.path(), "old")), schema(JoinPath(dir.path(), "new")));
}

// The first round is not cut and counts the changes of a migration; the others are spread over all of them.
TEST(KeptDatabaseTest, PowerCutsWhileMigrating) {
  constexpr int kCuts = 40;
  int64_t changes = 0;
  int cut_off = 0;
  for (int round = 0; round <= kCuts; ++round) {
    const int64_t cut = round == 0 ? -1 : changes * (round - 1) / kCuts;
    SCOPED_TRACE("cut after " + std::to_string(cut) + " changes of " + std::to_string(changes));
    const TempDir dir;
    const std::string before = JoinPath(dir.path(), "before");
    const std::string after = JoinPath(dir.path(), "after");
    CopyKept(kOldestKeptVersion, before);
    {
      PowerCutDisk disk(before);
      disk.CutAfter(cut);
      const bool migrated = OpenJobStore(before).ok();
      ASSERT_TRUE(migrated || round > 0);
      if (round == 0) changes = disk.changes();
      cut_off += !migrated;
      disk.Restore(after, static_cast<uint64_t>(round));
    }
    const auto store = OpenJobStore(after);
    ASSERT_TRUE(store.ok()) << store.status();
    ExpectKept(store->get());
    ExpectDerived(store->get());
  }
  ASSERT_GT(changes, kCuts);
  EXPECT_GT(cut_off, kCuts / 2) << "the cuts are to come before the migration's end";
}

}  // namespace
}  // namespace longhaul::storage
