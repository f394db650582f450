// How long the blobs of checkpoints stay that nothing refers to any more.
#include <map>

#include "base/limits.h"
#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

using BlobCollectionTest = DispatcherCoreTest;

TEST_F(BlobCollectionTest, OvertakenCheckpointsGiveTheirRoomBackWithinMinutes) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  std::map<int64_t, BlobRef> files;  // by step
  // As an agent does: the blobs first, then the checkpoint of them.
  const auto commit = [&](int64_t step, std::optional<double> eval_loss = std::nullopt) {
    const Checkpoint checkpoint = MakeCheckpoint(step, eval_loss);
    files[step] = checkpoint.files[0].blob;
    ASSERT_TRUE(Do(core->RecordBlobs({files[step]})).ok());
    clock.AdvanceMillis(5'000);
    ASSERT_TRUE(Do(core->CommitCheckpoint(session, key, checkpoint)).ok());
    ASSERT_TRUE(Sync(session, {Running(key, step, step)}).ok());  // holds the lease
  };
  const auto there = [&] {
    for (int i = 0; i < 256; ++i) EXPECT_TRUE(Do(core->CollectBlobs()).ok());
    std::vector<int64_t> steps;
    for (const auto& [step, file] : files) {
      if (*blobs.Present(file)) steps.push_back(step);
    }
    return steps;
  };
  const auto minutes = [&](int count) {
    for (int i = 0; i < 2 * count; ++i) {
      Advance(30'000);
      ASSERT_TRUE(Sync(session, {Running(key)}).ok());
    }
  };
  commit(20, 1.0);
  for (int64_t step = 40; step <= 2'000; step += 20) commit(step, 2.0);
  EXPECT_EQ(CheckpointSteps(id), (std::vector<int64_t>{20, 1'980, 2'000}));
  // Of 500 s those that were overtaken in the last 300, one every 5 s with both ends, and the three.
  EXPECT_EQ(there().size(), 61u + 3u);
  minutes(4);
  EXPECT_GT(there().size(), 3u) << "whoever reads one is not cut off";
  minutes(2);
  EXPECT_EQ(there(), (std::vector<int64_t>{20, 1'980, 2'000}));

  // Of a deleted job none is kept, but for one that somebody was told of meanwhile.
  ASSERT_TRUE(CommitArtifact(session, key).ok());
  ASSERT_TRUE(Do(core->RecordBlobs({files[1'980]})).ok());
  ASSERT_TRUE(Do(core->Delete(id)).ok());
  EXPECT_EQ(there().size(), 3u);
  Advance(limits::kDroppedBlobGraceMs + 1);
  EXPECT_EQ(there(), (std::vector<int64_t>{1'980}));
  Advance(limits::kBlobGraceHours * 3'600'000);
  EXPECT_TRUE(there().empty());
}

TEST_F(BlobCollectionTest, AnAdapterIsNotCollectedInTheBatchThatCommitsIt) {
  const std::string session = Open(TestWorker("w1"));
  std::string id;
  const AttemptKey key = RunningJob(session, &id);
  const BlobRef file = blobs.Add("adapter");
  ASSERT_TRUE(Do(core->RecordBlobs({file})).ok());
  for (int i = 0; i <= limits::kBlobGraceHours * 120; ++i) {
    Advance(30'000);
    ASSERT_TRUE(Sync(session, {Running(key)}).ok());  // holds the lease
  }
  ASSERT_TRUE(core->CommitArtifact(session, key, {{"adapter_model.safetensors", file}}, "result").ok());
  EXPECT_TRUE(core->CollectBlobs().ok());
  ASSERT_TRUE(Settle().ok());
  EXPECT_EQ(Get(id).state, JobState::kSucceeded);
  EXPECT_TRUE(*blobs.Present(file));
}

}  // namespace
}  // namespace longhaul::server
