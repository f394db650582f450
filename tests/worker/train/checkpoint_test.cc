#include "worker/train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cerrno>
#include <functional>
#include <random>
#include <utility>

#include "base/disk_seam.h"
#include "base/env.h"
#include "base/error.h"
#include "tests/worker/train/rig.h"

namespace longhaul::train {
namespace {

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() : rig_(TinyPlan(TinyShape(), TinyTrain(ComputeType::kF32))) {
    std::string pattern = testing::TempDir() + "checkpointXXXXXX";
    root_ = mkdtemp(pattern.data());
    folder_ = root_ + "/step-7";
    for (int64_t i = 0; i < rig_.adapter->params(); ++i) {
      SetElement(rig_.adapter->moment1(), i, 1.0 / static_cast<double>(i + 3));
      SetElement(rig_.adapter->moment2(), i, 1e-9 * static_cast<double>(i));
    }
    state_.step = 7;
    state_.total_steps = 20;
    state_.adam_steps = 6;
    state_.trained_tokens = 12345;
    state_.skipped_updates = 1;
    state_.last_loss = 1.0 / 3;
    state_.eval_before = 4.25;
    state_.eval_pending = true;
  }
  ~CheckpointTest() override { RemoveTree(root_).IgnoreError(); }
  absl::Status Write() { return WriteCheckpoint(folder_, state_, {"plan", "two threads", "run"}, *rig_.adapter); }

  Rig rig_;
  std::string root_, folder_;
  TrainerState state_;
};

TEST_F(CheckpointTest, RoundTripsExactly) {
  ASSERT_TRUE(Write().ok());
  const std::vector<double> master = Values(rig_.adapter->master());
  const std::vector<double> moment2 = Values(rig_.adapter->moment2());
  kernels::Zero(*rig_.exec, rig_.adapter->master());
  kernels::Zero(*rig_.exec, rig_.adapter->moment2());
  const auto read = ReadCheckpoint(folder_, *rig_.adapter);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Values(rig_.adapter->master()), master);
  EXPECT_EQ(Values(rig_.adapter->moment2()), moment2);
  EXPECT_EQ(read->state.step, 7);
  EXPECT_EQ(read->state.adam_steps, 6);
  EXPECT_EQ(read->state.last_loss, 1.0 / 3);
  EXPECT_EQ(read->state.eval_before, 4.25);
  EXPECT_FALSE(read->state.eval_last.has_value());
  EXPECT_TRUE(read->state.eval_pending);
  EXPECT_EQ(read->identity.plan_signature, "plan");
  EXPECT_EQ(read->identity.made_with, "two threads");
}

TEST_F(CheckpointTest, OneOfAnOlderBuildHasNoEvaluationPending) {
  ASSERT_TRUE(Write().ok());
  std::string text = ReadFile(folder_ + "/state.json", 1 << 16).value();
  const std::string field = "  \"eval_pending\": true,\n";
  const size_t at = text.find(field);
  ASSERT_NE(at, std::string::npos);
  ASSERT_TRUE(WriteFileAtomic(folder_ + "/state.json", text.erase(at, field.size())).ok());
  const auto read = ReadCheckpoint(folder_, *rig_.adapter);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->state.eval_pending);
}

TEST_F(CheckpointTest, SameStateSameBytesAndReplaces) {
  ASSERT_TRUE(Write().ok());
  std::vector<std::string> before;
  for (const std::string& file : CheckpointFiles()) before.push_back(*ReadFile(JoinPath(folder_, file), 1 << 24));
  ASSERT_TRUE(Write().ok());
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(*ReadFile(JoinPath(folder_, CheckpointFiles()[i]), 1 << 24), before[i]);
  }
  EXPECT_THAT(*ListDir(root_), testing::ElementsAre("step-7"));
}

// Looks before every change of the disk, as a crash there would leave it; may refuse the change.
class WatchedDisk final : public DiskSeam {
 public:
  explicit WatchedDisk(std::function<int(int number, const DiskChange&)> before) : before_(std::move(before)) {
    InstallDiskSeam(this);
  }
  ~WatchedDisk() override { InstallDiskSeam(nullptr); }
  int Before(const DiskChange& change) override { return before_(changes_++, change); }
  int changes() const { return changes_; }

 private:
  std::function<int(int, const DiskChange&)> before_;
  int changes_ = 0;
};

TEST_F(CheckpointTest, AFolderOfItsNameIsWholeWhileItIsReplaced) {
  ASSERT_TRUE(Write().ok());
  int changes = 0;
  {
    const WatchedDisk disk([&](int, const DiskChange& change) {
      // The files of a tree go one after the other.
      EXPECT_FALSE(change.kind == DiskChange::Kind::kRemove && change.path == folder_);
      const bool there = FileExists(folder_);
      EXPECT_TRUE(ReadCheckpoint(there ? folder_ : folder_ + ".replaced", *rig_.adapter).ok());
      return 0;
    });
    ASSERT_TRUE(Write().ok());
    changes = disk.changes();
  }
  EXPECT_THAT(*ListDir(root_), testing::ElementsAre("step-7"));
  // Whatever change fails: one of that name is there, and nothing half.
  for (int failing = 0; failing < changes; ++failing) {
    {
      const WatchedDisk disk([failing](int number, const DiskChange&) { return number == failing ? EIO : 0; });
      Write().IgnoreError();
    }
    EXPECT_TRUE(ReadCheckpoint(folder_, *rig_.adapter).ok()) << failing;
    EXPECT_FALSE(FileExists(folder_ + ".partial")) << failing;
  }
  ASSERT_TRUE(Write().ok());
  EXPECT_THAT(*ListDir(root_), testing::ElementsAre("step-7"));
}

TEST_F(CheckpointTest, RefusesAnAdapterOfAnotherSize) {
  ASSERT_TRUE(Write().ok());
  TrainShape other = TinyTrain(ComputeType::kF32);
  other.lora_rank = 4;
  Rig rig(TinyPlan(TinyShape(), other));
  EXPECT_EQ(ErrorReason(ReadCheckpoint(folder_, *rig.adapter).status()), "INVALID_CHECKPOINT");
}

TEST_F(CheckpointTest, MissingFilesAreErrors) {
  EXPECT_EQ(ReadCheckpoint(folder_, *rig_.adapter).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Write().ok());
  ASSERT_TRUE(RemoveFile(JoinPath(folder_, CheckpointFiles()[0])).ok());
  EXPECT_FALSE(ReadCheckpoint(folder_, *rig_.adapter).ok());
}

TEST_F(CheckpointTest, MutatedFilesNeverCrash) {
  ASSERT_TRUE(Write().ok());
  std::mt19937 random(99);
  for (const std::string& file : CheckpointFiles()) {
    const std::string path = JoinPath(folder_, file);
    const std::string good = *ReadFile(path, 1 << 24);
    for (int i = 0; i < 300; ++i) {
      std::string bad = good;
      const size_t reach = std::min<size_t>(bad.size(), 600);
      const size_t at = random() % reach;
      if (random() % 3 == 0) {
        bad.resize(at);
      } else {
        bad[at] = static_cast<char>(random());
      }
      ASSERT_TRUE(WriteFileAtomic(path, bad).ok());
      const auto read = ReadCheckpoint(folder_, *rig_.adapter);
      if (read.ok()) {
        EXPECT_LE(read->state.step, read->state.total_steps);
      }
    }
    ASSERT_TRUE(WriteFileAtomic(path, good).ok());
  }
  EXPECT_TRUE(ReadCheckpoint(folder_, *rig_.adapter).ok());
}

}  // namespace
}  // namespace longhaul::train
