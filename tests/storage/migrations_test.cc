// Databases as earlier builds left them, kept in tests/golden, are brought up to date with all that was in them.
#include "storage/migrations.h"

#include <csignal>
#include <filesystem>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/hash.h"
#include "gtest/gtest.h"
#include "storage/job_store.h"
#include "storage/sqlite_db.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

// state_v1.db: written by the build whose newest schema was 1. Two jobs of two projects with events, an attempt, a
// checkpoint, metrics, a request key; a worker; four blobs.
class MigrationTest : public ::testing::Test {
 protected:
  MigrationTest() {
    std::filesystem::copy_file(LONGHAUL_SOURCE_DIR "/tests/golden/state_v1.db", JoinPath(dir_.path(), "state.db"));
  }
  int64_t Version() {
    auto db = Db::Open(JoinPath(dir_.path(), "state.db"), Db::Mode::kReadWrite);
    LH_CHECK(db.ok());
    return *(*db)->QueryInt("PRAGMA user_version");
  }
  const TempDir dir_;
};

TEST_F(MigrationTest, SchemaOneComesThroughWhole) {
  ASSERT_EQ(Version(), 1);
  auto opened = OpenJobStore(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  Store& store = **opened;
  const auto done = store.GetJob("ftjob-aaaaaaaaaaaaaaaaaaaa");
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->project, "research");
  EXPECT_EQ(done->state, JobState::kSucceeded);
  EXPECT_EQ(done->labels.at("team"), "red");
  EXPECT_EQ(done->artifact.at(0).path, "adapter_model.safetensors");
  EXPECT_EQ(done->model_shape.hidden, 64);
  EXPECT_EQ(store.ListEvents(done->id, 0, 10)->size(), 3u);
  EXPECT_EQ(store.ListAttempts(done->id)->at(0).worker_id, "gpu-1");
  EXPECT_EQ(store.ListCheckpoints(done->id)->at(0).eval_loss, 1.5);
  EXPECT_EQ(store.ListMetrics(done->id, 0, 1000)->size(), 300u);
  EXPECT_EQ((*store.GetRequestKey("research", "r-1"))->job_id, done->id);
  const auto live = store.LoadLiveJobs();
  ASSERT_EQ(live->size(), 1u);
  EXPECT_EQ(live->at(0).reason, Reason::kNoWorker);
  EXPECT_EQ(live->at(0).train_shape.sequence_length, 128);
  EXPECT_EQ(*store.MaxCreateNumber(), 2u);
  const auto workers = store.ListWorkers();
  ASSERT_EQ(workers->size(), 1u);
  EXPECT_TRUE(workers->at(0).draining);
  EXPECT_EQ(workers->at(0).owner, "");
  opened->reset();
  EXPECT_EQ(Version(), SchemaVersion());
}

TEST_F(MigrationTest, SchemaOneGetsWhatSchemaTwoHas) {
  auto opened = OpenJobStore(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  Store& store = **opened;
  // Blobs belong to the projects of the jobs that keep them; the idle one to nobody yet.
  const BlobRef dataset{Sha256Hex("dataset"), 7};
  const BlobRef weights{Sha256Hex("weights"), 7};
  const BlobRef idle{Sha256Hex("idle"), 4};
  EXPECT_TRUE(*store.BlobInProject(dataset, "research"));
  EXPECT_TRUE(*store.BlobInProject(dataset, "default"));
  EXPECT_TRUE(*store.BlobInProject(weights, "research"));
  EXPECT_FALSE(*store.BlobInProject(weights, "default"));
  EXPECT_TRUE(*store.HasBlob(idle));
  EXPECT_FALSE(*store.BlobInProject(idle, "research"));
  EXPECT_TRUE(store.ListAudit(0, 10)->empty());
  auto transaction = store.Begin();
  ASSERT_TRUE(transaction.ok());
  EXPECT_TRUE((*transaction)->PutBlobProject(idle, "research").ok());
  EXPECT_TRUE((*transaction)->AddAudit({}).ok());
  EXPECT_TRUE((*transaction)->Commit().ok());
  EXPECT_TRUE(*store.BlobInProject(idle, "research"));
}

// Each step is a transaction of its own; the next start goes on with the one that was cut off.
TEST_F(MigrationTest, AKilledStepIsDoneByTheNextStart) {
  for (int version = Version(); version < SchemaVersion(); ++version) {
    const auto killed = [&] {
      ArmFailpoint("migration_commit", "crash@2");
      (void)OpenJobStore(dir_.path());
    };
    if (version + 1 < SchemaVersion()) {
      EXPECT_EXIT(killed(), ::testing::KilledBySignal(SIGKILL), "");
      EXPECT_EQ(Version(), version + 1);
    }
  }
  const auto store = OpenJobStore(dir_.path());
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(Version(), SchemaVersion());
  EXPECT_TRUE((*store)->GetJob("ftjob-aaaaaaaaaaaaaaaaaaaa").ok());
}

TEST_F(MigrationTest, AStepThatFailsLeavesTheDatabaseAsItWas) {
  {
    auto db = Db::Open(JoinPath(dir_.path(), "state.db"), Db::Mode::kReadWrite);
    // In the way of schema 2, behind its first tables.
    ASSERT_TRUE((*db)->Exec("CREATE TABLE blob_projects(x)").ok());
  }
  EXPECT_FALSE(OpenJobStore(dir_.path()).ok());
  EXPECT_EQ(Version(), 1);
  auto db = Db::Open(JoinPath(dir_.path(), "state.db"), Db::Mode::kReadWrite);
  EXPECT_EQ(*(*db)->QueryInt("SELECT COUNT(*) FROM sqlite_master WHERE name='tokens'"), 0);
  ASSERT_TRUE((*db)->Exec("DROP TABLE blob_projects").ok());
  EXPECT_TRUE(OpenJobStore(dir_.path()).ok());
}

}  // namespace
}  // namespace longhaul::storage
