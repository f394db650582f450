#include "worker/train/graph_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/cuda_layout.h"
#include "model/memory_plan.h"
#include "worker/train/rehearsal.h"

namespace longhaul::train {
namespace {

using GraphKey = GraphCache::Key;

// What bodies queue, captured or not, becomes text.
class FakeStream {
 public:
  explicit FakeStream(const GraphCache::Limits& limits)
      : cache(limits, [this](const std::function<void()>& body, int64_t most) { return Capture(body, most); }) {}

  bool Run(const GraphKey& key, const std::string& work, bool complete = true) {
    return cache.Run(key, [&] {
      (captured_ != nullptr ? *captured_ : done) += work;
      return complete;
    });
  }

  std::string done;
  int64_t alive = 0;
  int64_t most_alive = 0;
  int64_t captures = 0;
  GraphCache cache;

 private:
  class Graph final : public kernels::CudaGraph {
   public:
    Graph(FakeStream* stream, std::string work) : stream_(stream), work_(std::move(work)) {
      stream_->most_alive = std::max(stream_->most_alive, ++stream_->alive);
    }
    ~Graph() override { --stream_->alive; }
    void Launch() override { stream_->done += work_; }

   private:
    FakeStream* stream_;
    std::string work_;
  };
  kernels::CudaCapture Capture(const std::function<void()>& body, int64_t most) {
    std::string work;
    captured_ = &work;
    body();
    captured_ = nullptr;
    ++captures;
    kernels::CudaCapture capture;
    capture.nodes = static_cast<int64_t>(work.size());
    if (capture.nodes <= most) capture.graph = std::make_unique<Graph>(this, work);
    return capture;
  }

  std::string* captured_ = nullptr;
};

TEST(GraphCache, RunsThenCapturesThenReplays) {
  FakeStream stream({4, 100, 10});
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(stream.Run({0, 128, 0}, "a"));
  EXPECT_EQ(stream.done, "aaaaa");
  EXPECT_EQ(stream.cache.counts().run, 1);
  EXPECT_EQ(stream.cache.counts().captured, 1);
  EXPECT_EQ(stream.cache.counts().replayed, 3);
}

TEST(GraphCache, EveryPartOfTheKeyMakesAnother) {
  FakeStream stream({8, 100, 100});
  const GraphKey keys[] = {{0, 128, 0}, {1, 128, 0}, {0, 256, 0}, {0, 128, 1}};
  for (int round = 0; round < 3; ++round) {
    for (size_t k = 0; k < 4; ++k) stream.Run(keys[k], std::string(1, static_cast<char>('a' + k)));
  }
  EXPECT_EQ(stream.done, "abcdabcdabcd");
  EXPECT_EQ(stream.cache.counts().captured, 4);
}

// Too many sizes, by turns: those that were captured stay, and are replayed. (A cache that clears itself, or drops the
// one not used for longest, replays nothing.)
TEST(GraphCache, SizesByTurnsDoNotTakeEachOthersPlace) {
  for (const GraphCache::Limits& limits : {GraphCache::Limits{16, 1000, 100}, {100, 16, 100}}) {
    FakeStream stream(limits);
    for (int round = 0; round < 10; ++round) {
      for (int64_t rows = 0; rows < 20; ++rows) stream.Run({0, rows, 0}, "x");
    }
    EXPECT_EQ(stream.cache.counts().captured, 16);
    EXPECT_EQ(stream.cache.counts().replayed, 8 * 16);
    EXPECT_EQ(stream.cache.counts().dropped, 0);
    EXPECT_EQ(stream.captures, 16);
    EXPECT_EQ(stream.done, std::string(200, 'x'));
  }
}

TEST(GraphCache, AStaleOneMakesRoomAndIsNewAgain) {
  FakeStream stream({8, 3, 5});
  const GraphKey a{0, 128, 0}, b{0, 256, 0}, c{0, 384, 0};
  for (int i = 0; i < 2; ++i) stream.Run(a, "a");
  for (int i = 0; i < 2; ++i) stream.Run(b, "bb");
  for (int i = 0; i < 2; ++i) stream.Run(c, "c");  // no room, and neither is stale
  EXPECT_EQ(stream.cache.counts().dropped, 0);
  for (int i = 0; i < 2; ++i) stream.Run(b, "bb");
  stream.Run(c, "c");  // a is stale
  EXPECT_EQ(stream.cache.counts().dropped, 1);
  EXPECT_EQ(stream.cache.nodes(), 3);
  const int64_t replayed = stream.cache.counts().replayed, run = stream.cache.counts().run;
  stream.Run(b, "bb");
  stream.Run(c, "c");
  EXPECT_EQ(stream.cache.counts().replayed, replayed + 2);
  stream.Run(a, "a");
  EXPECT_EQ(stream.cache.counts().run, run + 1);
  EXPECT_EQ(stream.done, "aabbbbccbbbbcbbca");
}

// It is captured once to find that out, and not again before there is more room.
TEST(GraphCache, WhatIsTooLargeAloneIsRunAsItIs) {
  FakeStream stream({8, 3, 5});
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(stream.Run({0, 128, 0}, "four"));
  EXPECT_EQ(stream.captures, 1);
  EXPECT_EQ(stream.cache.counts().run, 20);
  EXPECT_EQ(stream.done.size(), 80u);
  stream.cache.LimitNodes(4);
  for (int i = 0; i < 2; ++i) stream.Run({0, 128, 0}, "four");
  EXPECT_EQ(stream.cache.counts().replayed, 1);
}

// Stale or not: nothing gives its place to what would not fit in it.
TEST(GraphCache, StaleOnesStayWhereTheirRoomIsNotEnough) {
  FakeStream stream({8, 8, 5});
  const auto small = [&] {
    for (int64_t rows = 0; rows < 4; ++rows) stream.Run({0, rows, 0}, "ab");
  };
  for (int i = 0; i < 2; ++i) small();
  ASSERT_EQ(stream.captures, 4);
  const std::string nine(9, 'x'), five(5, 'y');
  for (int i = 0; i < 20; ++i) stream.Run({1, 0, 0}, nine);  // more than the limit
  EXPECT_EQ(stream.captures, 5);
  EXPECT_EQ(stream.cache.counts().dropped, 0);
  small();  // replayed: not stale for a while
  EXPECT_EQ(stream.cache.counts().replayed, 4);
  stream.Run({2, 0, 0}, five);
  stream.Run({1, 0, 0}, nine);
  stream.Run({2, 0, 0}, five);  // two are stale, and three would have to go: it tells its size
  EXPECT_EQ(stream.captures, 6);
  EXPECT_EQ(stream.cache.counts().dropped, 0);
  stream.Run({2, 0, 0}, five);
  EXPECT_EQ(stream.captures, 7);
  EXPECT_EQ(stream.cache.counts().dropped, 3);
  EXPECT_EQ(stream.cache.nodes(), 2 + 5);
}

TEST(GraphCache, KeepsNoMoreThanItMay) {
  FakeStream stream({3, 100, 4});
  std::mt19937 random(7);
  std::string expected;
  for (int i = 0; i < 2000; ++i) {
    const int64_t rows = static_cast<int64_t>(random() % 9);
    const std::string work(1, static_cast<char>('a' + rows));
    stream.Run({0, rows, 0}, work);
    expected += work;
  }
  EXPECT_EQ(stream.done, expected);
  EXPECT_EQ(stream.most_alive, 3);
  EXPECT_GT(stream.cache.counts().dropped, 10);
  EXPECT_EQ(stream.cache.nodes(), stream.alive);
}

TEST(GraphCache, ACaptureThatEndsEarlyLeavesNothing) {
  FakeStream stream({3, 100, 10});
  stream.Run({}, "a");
  EXPECT_FALSE(stream.Run({}, "b", /*complete=*/false));
  EXPECT_EQ(stream.done, "a");
  EXPECT_TRUE(stream.Run({}, "a"));
  EXPECT_EQ(stream.done, "aa");
  EXPECT_EQ(stream.cache.counts().captured, 1);
}

// A capture needs every kernel loaded, and the part that was not run may have others.
TEST(GraphCache, AFirstRunThatEndsEarlyIsNoRun) {
  FakeStream stream({3, 100, 10});
  EXPECT_FALSE(stream.Run({}, "a", /*complete=*/false));
  EXPECT_TRUE(stream.Run({}, "ab"));
  EXPECT_EQ(stream.captures, 0);
  EXPECT_TRUE(stream.Run({}, "ab"));
  EXPECT_EQ(stream.captures, 1);
  EXPECT_EQ(stream.done, "aabab");
}

TEST(Rehearsal, TilesOfEveryLengthThatAMicroBatchMayHaveAreThere) {
  DeviceFacts gpu;
  gpu.device_class = "gpu";
  gpu.kind = DeviceKind::kCuda;
  gpu.isa = "sm_90";
  gpu.device_bytes = int64_t{80} << 30;
  gpu.host_bytes = int64_t{128} << 30;
  gpu.cpu_threads = 16;
  ModelShape shape;
  shape.family = "llama";
  shape.layers = 4;
  shape.hidden = 512;
  shape.intermediate = 1024;
  shape.heads = 8;
  shape.kv_heads = 4;
  shape.head_dim = 64;
  shape.vocab = 1024;
  shape.max_position_embeddings = 1 << 20;
  for (const auto& [tokens, tile] :
       {std::pair<int64_t, int64_t>{1000, 1024}, {4096, 2048}, {20000, 2048}, {700, 100}}) {
    TrainShape train;
    train.compute = ComputeType::kBF16;
    train.base = BaseWeights::kNf4;
    train.lora_rank = 8;
    train.batch_size = 1;
    train.sequence_length = tokens;
    auto plan = MakePlan(shape, train, gpu, {});
    ASSERT_TRUE(plan.ok()) << plan.status();
    plan->choices.token_tile_rows = tile;
    const std::vector<int64_t> rehearsed = RowsToRehearse(*plan);
    // A tile for most; one more pass for each that is of another length.
    EXPECT_LE(rehearsed.size(), static_cast<size_t>(std::max(tile, LossRows(*plan)) / kCudaRowUnit + 1));
    for (const int64_t all : {tile, LossRows(*plan)}) {
      std::vector<bool> there(static_cast<size_t>(all + 1), false);
      const auto each_length = [&](int64_t rows, const auto& body) {
        for (int64_t begin = 0; begin < rows; begin += all)
          body(static_cast<size_t>(std::min(rows, begin + all) - begin));
      };
      for (int64_t rows : rehearsed) each_length(rows, [&](size_t length) { there[length] = true; });
      for (int64_t rows = kCudaRowUnit; rows <= PlannedRows(*plan); rows += kCudaRowUnit) {
        each_length(rows, [&](size_t length) { EXPECT_TRUE(there[length]) << length << " of " << rows; });
      }
    }
  }
}

}  // namespace
}  // namespace longhaul::train
