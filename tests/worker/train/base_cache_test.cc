#include "worker/train/base_cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/disk_seam.h"
#include "base/env.h"
#include "base/limits.h"
#include "base/units.h"
#include "tests/worker/train/rig.h"

namespace longhaul::train {
namespace {

class BaseCacheTest : public testing::Test {
 protected:
  BaseCacheTest() {
    char name[] = "/tmp/base_cache_XXXXXX";
    folder_ = ::mkdtemp(name);
  }
  ~BaseCacheTest() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  struct Engine {
    std::unique_ptr<kernels::Exec> exec;
    std::unique_ptr<EngineMemory> memory;
    ModelWeights weights;
    explicit Engine(const MemoryPlan& plan)
        : exec(CreateExec(plan, false).value()),
          memory(EngineMemory::Create(plan, *exec).value()),
          weights(CarveWeights(*memory)) {}
    absl::Status Load(BaseCache* cache) {
      return LoadWeights(SyntheticWeightSource(memory->plan().shape, 3), *memory, *exec, weights, cache);
    }
    std::string Bytes(const std::string& region) const {
      return {static_cast<const char*>(memory->arena().Get(region)),
              static_cast<size_t>(memory->arena().RegionBytes(region))};
    }
  };

  // Loads, stores, and returns the file's path.
  std::string Fill(const MemoryPlan& plan) {
    Engine engine(plan);
    BaseCache cache(folder_, "digest", *engine.memory);
    EXPECT_TRUE(engine.Load(&cache).ok());
    cache.Finish();
    return cache.path();
  }

  static MemoryPlan Plan(BaseWeights base = BaseWeights::kNf4, ComputeType compute = ComputeType::kF32) {
    TrainShape train = TinyTrain(compute);
    train.base = base;
    return TinyPlan(TinyShape(true, false), train);
  }

  std::string folder_;
};

TEST_F(BaseCacheTest, TheSecondStartCopiesTheSameBytes) {
  std::vector<ComputeType> types = {ComputeType::kF32};
  if (kernels::ProbeCpu().has_bf16) types.push_back(ComputeType::kBF16);
  for (const ComputeType compute : types) {
    const MemoryPlan plan = Plan(BaseWeights::kNf4, compute);
    ASSERT_TRUE(FileExists(Fill(plan)));
    Engine first(plan), second(plan);
    ASSERT_TRUE(first.Load(nullptr).ok());
    BaseCache cache(folder_, "digest", *second.memory);
    ASSERT_TRUE(cache.Load(*second.exec));
    for (const char* region : {"weights.layers", "weights.head", "weights.embedding", "weights.norms"}) {
      EXPECT_EQ(first.Bytes(region), second.Bytes(region)) << region;
    }
  }
}

TEST_F(BaseCacheTest, ACachedBaseIsNotReadAgain) {
  const MemoryPlan plan = Plan();
  Fill(plan);
  Engine engine(plan);
  BaseCache cache(folder_, "digest", *engine.memory);
  // Other weights under the same digest: what comes out shows where it came from.
  ASSERT_TRUE(
      LoadWeights(SyntheticWeightSource(plan.shape, 4), *engine.memory, *engine.exec, engine.weights, &cache).ok());
  Engine original(plan);
  ASSERT_TRUE(original.Load(nullptr).ok());
  EXPECT_EQ(engine.Bytes("weights.layers"), original.Bytes("weights.layers"));
}

TEST_F(BaseCacheTest, AnotherModelOrPlanHasAFileOfItsOwn) {
  const std::string path = Fill(Plan());
  Engine as_stored(Plan(BaseWeights::kAsStored)), same(Plan());
  EXPECT_NE(BaseCache(folder_, "digest", *as_stored.memory).path(), path);
  EXPECT_NE(BaseCache(folder_, "another", *same.memory).path(), path);
  EXPECT_EQ(BaseCache(folder_, "digest", *same.memory).path(), path);
  EXPECT_EQ(BaseCache("", "digest", *same.memory).path(), "");
  EXPECT_EQ(BaseCache(folder_, "", *same.memory).path(), "");
}

TEST_F(BaseCacheTest, ADamagedFileIsRemovedAndTheBaseReadAnew) {
  const MemoryPlan plan = Plan();
  const std::string whole = ReadFile(Fill(plan), 1 << 30).value();
  Engine original(plan);
  ASSERT_TRUE(original.Load(nullptr).ok());
  std::vector<std::string> damaged(4, whole);
  damaged[0][whole.size() / 3] ^= 1;   // a weight
  damaged[1][whole.size() - 20] ^= 1;  // a checksum
  damaged[2].resize(whole.size() - 1);
  damaged[3].back() ^= 1;  // the magic
  for (const std::string& bytes : damaged) {
    Engine engine(plan);
    BaseCache cache(folder_, "digest", *engine.memory);
    ASSERT_TRUE(WriteFileAtomic(cache.path(), bytes).ok());
    EXPECT_FALSE(cache.Load(*engine.exec));
    EXPECT_FALSE(FileExists(cache.path()));
    ASSERT_TRUE(engine.Load(&cache).ok());
    EXPECT_EQ(engine.Bytes("weights.layers"), original.Bytes("weights.layers"));
    cache.Finish();
    EXPECT_EQ(ReadFile(cache.path(), 1 << 30).value(), whole);
  }
}

// A model whose files were replaced while they were read.
class ChangedWeights final : public WeightSource {
 public:
  explicit ChangedWeights(const ModelShape& shape) : inner_(shape, 4) {}
  const ModelShape& shape() const override { return inner_.shape(); }
  absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    return inner_.ReadRows(name, begin, end, out);
  }
  StoredAs Type(const std::string& name) const override { return inner_.Type(name); }
  absl::Status CheckUnchanged() const override { return absl::FailedPreconditionError("changed"); }

 private:
  SyntheticWeightSource inner_;
};

TEST_F(BaseCacheTest, WhatMayNotBeTheDigestsModelIsNotStored) {
  const MemoryPlan plan = Plan();
  Engine engine(plan);
  BaseCache cache(folder_, "digest", *engine.memory);
  const absl::Status loaded =
      LoadWeights(ChangedWeights(plan.shape), *engine.memory, *engine.exec, engine.weights, &cache);
  EXPECT_TRUE(absl::IsFailedPrecondition(loaded)) << loaded;
  cache.Finish();
  EXPECT_FALSE(FileExists(cache.path()));
}

TEST_F(BaseCacheTest, LeavesNoTemporaryFile) {
  const MemoryPlan plan = Plan();
  // What a killed writer left.
  ASSERT_TRUE(WriteFileAtomic(JoinPath(folder_, "0123.base.tmp"), "half").ok());
  {
    Engine engine(plan);
    BaseCache cache(folder_, "digest", *engine.memory);
    ASSERT_TRUE(engine.Load(&cache).ok());
    cache.Finish();
  }
  const std::vector<std::string> names = ListDir(folder_).value();
  EXPECT_EQ(names.size(), 2u);  // the base, and the lock
  for (const std::string& name : names) EXPECT_EQ(name.find(".tmp"), std::string::npos) << name;
}

// Refuses the changes of one kind.
class RefusingDisk final : public DiskSeam {
 public:
  explicit RefusingDisk(DiskChange::Kind kind) : kind_(kind) { InstallDiskSeam(this); }
  ~RefusingDisk() override { InstallDiskSeam(nullptr); }
  int Before(const DiskChange& change) override { return change.kind == kind_ ? EIO : 0; }

 private:
  DiskChange::Kind kind_;
};

TEST_F(BaseCacheTest, AWriteThatFailsLeavesNoTemporaryFile) {
  using Kind = DiskChange::Kind;
  const MemoryPlan plan = Plan();
  for (const Kind kind : {Kind::kWrite, Kind::kSyncFile, Kind::kRename}) {
    {
      Engine engine(plan);
      BaseCache cache(folder_, "digest", *engine.memory);
      const RefusingDisk disk(kind);
      ASSERT_TRUE(engine.Load(&cache).ok());
      cache.Finish();
    }
    EXPECT_EQ(ListDir(folder_).value(), std::vector<std::string>{"lock"}) << static_cast<int>(kind);
  }
}

TEST_F(BaseCacheTest, AUseIsSeenInTheFilesTime) {
  const MemoryPlan plan = Plan();
  const std::string path = Fill(plan);
  const timespec old[2] = {{1000, 0}, {1000, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), old, 0), 0);
  ASSERT_EQ(FileModifiedNanos(path).value(), 1'000'000'000'000);
  Engine engine(plan);
  ASSERT_TRUE(BaseCache(folder_, "digest", *engine.memory).Load(*engine.exec));
  EXPECT_GT(FileModifiedNanos(path).value(), 1'000'000'000'000);
}

TEST(BasesToEvictTest, TheLongestUnusedGoAndOnlyWhereThatHelps) {
  constexpr int64_t kRoomy = int64_t{1000} * kGiB;
  const auto names = [](const std::optional<std::vector<CachedBase>>& bases) {
    std::string all;
    for (const CachedBase& base : bases.value_or(std::vector<CachedBase>{{"none", 0, 0}})) all += base.path + " ";
    return all;
  };
  const std::vector<CachedBase> bases = {{"newest", 20 * kGiB, 9}, {"oldest", 20 * kGiB, 1}, {"middle", 20 * kGiB, 5}};
  EXPECT_EQ(names(BasesToEvict(bases, 4 * kGiB, kRoomy)), "");
  EXPECT_EQ(names(BasesToEvict(bases, 5 * kGiB, kRoomy)), "oldest ");
  EXPECT_EQ(names(BasesToEvict(bases, 30 * kGiB, kRoomy)), "oldest middle ");
  EXPECT_EQ(names(BasesToEvict(bases, limits::kMaxBaseCacheBytes, kRoomy)), "oldest middle newest ");
  // Nothing goes for a base that will not be kept.
  EXPECT_EQ(names(BasesToEvict(bases, limits::kMaxBaseCacheBytes + 1, kRoomy)), "none ");
  EXPECT_EQ(names(BasesToEvict(bases, 30 * kGiB, 0)), "oldest middle ");  // 40 GiB come free, and 4 stay
  EXPECT_EQ(names(BasesToEvict(bases, 37 * kGiB, 0)), "none ");
  EXPECT_EQ(names(BasesToEvict({}, kGiB, kGiB)), "none ");
}

}  // namespace
}  // namespace longhaul::train
