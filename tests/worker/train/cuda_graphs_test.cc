// Steps of data as it comes, of all lengths and masks: parts that come again are replayed and change no bit, every
// product is chosen before the first, device memory stays as it is.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <utility>

#include "base/env.h"
#include "tests/worker/train/cuda_run.h"
#include "tests/worker/train/cuda_step.h"

namespace longhaul::train {
namespace {

constexpr int64_t kAccumulation = 4, kMicroBatches = 32;

struct RaggedRun {
  LateRun run;
  int64_t stale_uses = limits::kCudaGraphStaleUses;
  int64_t chosen_late = 0;
};

class CudaGraphs : public testing::Test {
 protected:
  CudaGraphs() {
    std::string pattern = testing::TempDir() + "cudagraphsXXXXXX";
    folder_ = mkdtemp(pattern.data());
    // A third of the targets is not trained, another third each time.
    const auto tokens = [](uint64_t key, uint64_t i, uint64_t most) {
      return static_cast<int64_t>(CounterBits(key, i) % most);
    };
    for (uint64_t i = 0; i < kMicroBatches; ++i) {
      whole_.emplace_back(std::vector<int64_t>{128 * (1 + tokens(4, i, 4))}, 500, 40 + i);
      ragged_.emplace_back(std::vector<int64_t>{40 + tokens(5, i, 128), 40 + tokens(6, i, 256)}, 500, 80 + i);
    }
    batches_ = whole_;
    TrainShape train = CudaTinyTrain(1, 512);
    train.accumulation_steps = kAccumulation;
    train.deterministic = true;
    options_.plan = CudaPlan(CudaTinyShape(/*qwen3=*/true), train);
    options_.hyper.learning_rate = 5e-3;
    options_.hyper.checkpoint_every_steps = 0;
  }
  ~CudaGraphs() override { RemoveTree(folder_).IgnoreError(); }

  // `eager`: nothing is captured, because the parts of steps are timed.
  void Run(bool eager, RaggedRun* ragged) {
    FixedBatches batches(batches_, options_.plan.train.accumulation_steps);
    FixedBatches held_out({batches_.begin(), batches_.begin() + 5}, 1);
    LateRun& run = ragged->run;
    auto trainer = Trainer::Create(options_, Bf16Source(options_.plan.shape), &batches, &held_out, &run, &run, &clock_);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    PoisonToken(**trainer);
    CudaOps& ops = static_cast<CudaOps&>((*trainer)->ops());
    ops.LimitGraphNodes(run.most_graph_nodes);
    ops.LimitGraphStaleUses(ragged->stale_uses);
    if (eager) ops.engine().BeginProfile();
    run.outcome = (*trainer)->Run();
    if (eager) ops.engine().EndProfile();
    ASSERT_TRUE(run.outcome.ok()) << run.outcome.status();
    run.state = (*trainer)->state();
    run.graphs = ops.graphs().counts();
    run.graph_nodes = ops.graphs().nodes();
    ragged->chosen_late = ops.engine().chosen_late();
    const Adapter& adapter = (*trainer)->adapter();
    adapter.Download();
    const float* const master = adapter.host().master.as<float>();
    run.master = {master, master + adapter.params()};
  }

  RealClock clock_;
  std::string folder_;
  // Of one document that fills its rows: attention is a call then, also where it is deterministic. Of two of any
  // length.
  std::vector<TinyBatch> whole_, ragged_;
  std::vector<TinyBatch> batches_;  // what Run takes
  TrainerOptions options_;
};

constexpr int64_t kUpdates = 2 * kMicroBatches / kAccumulation;

void ExpectReplayed(const RaggedRun& replayed, const RaggedRun& eager) {
  // But for the adapter's, twice before the first step.
  EXPECT_EQ(eager.run.graphs.run + eager.run.graphs.captured, 2);
  EXPECT_EQ(eager.run.graphs.replayed, 0);
  // Rows are 128, 256, 384 or 512 in the forward and the backward pass, at most as many of them trained; the adapter.
  constexpr int64_t kSizes = 4 + 4 + 4 + 1;
  EXPECT_LE(replayed.run.graphs.run, kSizes);
  EXPECT_LE(replayed.run.graphs.captured, kSizes);
  EXPECT_GE(replayed.run.graphs.captured, 8);
  EXPECT_EQ(replayed.run.graphs.dropped, 0);
  EXPECT_GE(replayed.run.graphs.replayed, 3 * 2 * kMicroBatches - 2 * kSizes);
  ASSERT_EQ(replayed.run.progress.size(), static_cast<size_t>(kUpdates));
  ASSERT_EQ(eager.run.progress.size(), static_cast<size_t>(kUpdates));
}

// To the bit.
void ExpectTheSame(const LateRun& replayed, const LateRun& eager) {
  ASSERT_EQ(replayed.progress.size(), eager.progress.size());
  for (size_t i = 0; i < replayed.progress.size(); ++i) {
    EXPECT_EQ(replayed.progress[i].loss, eager.progress[i].loss) << i;
    EXPECT_EQ(replayed.progress[i].grad_norm, eager.progress[i].grad_norm) << i;
  }
  EXPECT_EQ(replayed.master, eager.master);
  EXPECT_EQ(replayed.state.eval_last, eager.state.eval_last);
}

// A document of `rows` rows, of whose targets the last `trained` are.
TinyBatch TrainedAtItsEnd(int64_t rows, size_t trained, uint64_t seed) {
  TinyBatch batch({rows}, 500, seed);
  const size_t targets = batch.ids.size() - 1;
  for (size_t i = 0; i < targets; ++i) batch.labels[i] = i + trained < targets ? -100 : batch.ids[i + 1];
  return batch;
}

TEST_F(CudaGraphs, MicroBatchesOfOtherRowsAndMasksAreReplayedAndChangeNoBit) {
  options_.hyper.max_steps = kUpdates;
  RaggedRun replayed, eager;
  Run(false, &replayed);
  Run(true, &eager);
  ExpectReplayed(replayed, eager);
  ExpectTheSame(replayed.run, eager.run);
}

// The loss is captured with one micro-batch's rows, and replayed for others whose trained rows are as many and lie
// where that one has none: a window of 18 micro-batches, the last of 128 or of 512 rows.
TEST_F(CudaGraphs, ALossIsReplayedForMicroBatchesOfMoreRowsAndOfFewer) {
  constexpr size_t kWindow = 18, kFirst = 5;
  TrainShape train = options_.plan.train;
  train.accumulation_steps = static_cast<int64_t>(kWindow);
  options_.plan = CudaPlan(options_.plan.shape, train);
  options_.hyper.max_steps = 2;
  for (const auto& [first_rows, other_rows] : {std::pair<int64_t, int64_t>{128, 512}, {512, 128}}) {
    SCOPED_TRACE(first_rows);
    batches_.clear();
    for (size_t i = 0; i < kWindow; ++i) {
      batches_.push_back(TrainedAtItsEnd(i < kFirst ? first_rows : other_rows, /*trained=*/50 + 7 * (i % 9), 60 + i));
    }
    RaggedRun replayed, eager;
    Run(false, &replayed);
    Run(true, &eager);
    // The forward and the backward pass of either size, one loss, the adapter.
    EXPECT_EQ(replayed.run.graphs.run, 2 + 2 + 1 + 1);
    EXPECT_EQ(replayed.run.graphs.captured, 2 + 2 + 1 + 1);
    EXPECT_EQ(eager.run.graphs.replayed, 0);
    ExpectTheSame(replayed.run, eager.run);
  }
}

// The adapter stays as it is, so no micro-batch's loss depends on those before it; without graphs they come in the
// opposite order, so that documents, rows or labels left from an earlier one are of different ones in the two runs. The
// forward pass adds in a fixed order, a window's losses not: 1e-6 is far above the roundings of a sum of four in f64,
// and far below one token that is attended too many or too few. Attention's backward pass over packed documents adds in
// any order, by f32 into what is rounded to bf16: below the tolerance of bf16 altogether.
TEST_F(CudaGraphs, PackedDocumentsOfAnyLengthAreReplayed) {
  batches_ = ragged_;
  TrainShape train = options_.plan.train;
  train.deterministic = false;
  options_.plan = CudaPlan(options_.plan.shape, train);
  options_.hyper.max_steps = kUpdates;
  options_.hyper.learning_rate = 1e-20;
  RaggedRun replayed, eager;
  Run(false, &replayed);
  std::reverse(batches_.begin(), batches_.end());
  Run(true, &eager);
  ExpectReplayed(replayed, eager);
  for (size_t i = 0; i < replayed.run.progress.size(); ++i) {
    const TrainProgress& ours = replayed.run.progress[i];
    const TrainProgress& theirs = eager.run.progress[eager.run.progress.size() - 1 - i];
    EXPECT_NEAR(ours.loss, theirs.loss, 1e-6 * theirs.loss) << i;
    EXPECT_NEAR(ours.grad_norm, theirs.grad_norm, kGradientError * theirs.grad_norm) << i;
  }
}

TEST_F(CudaGraphs, InFp8TooTheyChangeNoBit) {
  if (ComputeCapabilityOf(ThisGpu().isa) / 10 != 9) GTEST_SKIP() << "FP8 products with a scale a row are Hopper's";
  TrainShape train = options_.plan.train;
  train.compute = ComputeType::kFP8;
  options_.plan = CudaPlan(options_.plan.shape, train, {.cached_layers = 1});
  options_.hyper.max_steps = kUpdates;
  RaggedRun replayed, eager;
  Run(false, &replayed);
  Run(true, &eager);
  ExpectReplayed(replayed, eager);
  ExpectTheSame(replayed.run, eager.run);
}

// It lies where other things are in other phases, so each replay of the loss has to bring it.
TEST_F(CudaGraphs, AHeadOnTheHostComesWithEveryReplayedLoss) {
  options_.plan = CudaPlan(options_.plan.shape, options_.plan.train,
                           {.keep_all_layers = 0,
                            .cached_layers = 1,
                            .token_tile_rows = 128,
                            .attention_calls = 2,
                            .grouped = true,
                            .host_head = true});
  options_.hyper.max_steps = kUpdates;
  RaggedRun replayed, eager;
  Run(false, &replayed);
  Run(true, &eager);
  ExpectReplayed(replayed, eager);
  ExpectTheSame(replayed.run, eager.run);
}

TEST_F(CudaGraphs, TheLossOfEveryMicroBatchIsItsOwn) {
  options_.hyper.max_steps = kMicroBatches / kAccumulation;
  options_.hyper.learning_rate = 1e-12;
  batches_ = ragged_;
  RaggedRun cuda, cpu;
  Run(false, &cuda);
  FixedBatches batches(batches_, kAccumulation);
  TrainerOptions options = options_;
  options.plan = CpuTwin(options_.plan);
  auto trainer =
      Trainer::Create(options, Bf16Source(options.plan.shape), &batches, nullptr, &cpu.run, &cpu.run, &clock_);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  ASSERT_TRUE((*trainer)->Run().ok());
  ASSERT_EQ(cuda.run.progress.size(), cpu.run.progress.size());
  for (size_t i = 0; i < cuda.run.progress.size(); ++i) {
    EXPECT_NEAR(cuda.run.progress[i].loss, cpu.run.progress[i].loss, kLossError * cpu.run.progress[i].loss) << i;
    EXPECT_NEAR(cuda.run.progress[i].grad_norm, cpu.run.progress[i].grad_norm,
                kGradientError * cpu.run.progress[i].grad_norm)
        << i;
  }
}

TEST_F(CudaGraphs, NoProductIsChosenInAStep) {
  batches_ = ragged_;
  options_.hyper.max_steps = kMicroBatches / kAccumulation;
  for (const CudaTweaks& tweaks :
       {CudaTweaks{}, {0, 0, 100, 0}, {1, 0, 0, 0, 1, true}, {0, 1, 128, 0, 1, true, 2, true, true}}) {
    SCOPED_TRACE(tweaks.token_tile_rows);
    options_.plan = CudaPlan(options_.plan.shape, options_.plan.train, tweaks);
    RaggedRun run;
    Run(false, &run);
    EXPECT_EQ(run.chosen_late, 0);
  }
  TrainShape train = options_.plan.train;
  if (ComputeCapabilityOf(ThisGpu().isa) / 10 == 9) {
    train.compute = ComputeType::kFP8;
    options_.plan = CudaPlan(options_.plan.shape, train, {.cached_layers = 1});
    RaggedRun run;
    Run(false, &run);
    EXPECT_EQ(run.chosen_late, 0);
    train.compute = ComputeType::kBF16;
  }
  train.lora_dropout = true;
  options_.hyper.lora_dropout = 0.1;
  options_.plan = CudaPlan(options_.plan.shape, train);
  RaggedRun run;
  Run(false, &run);
  EXPECT_EQ(run.chosen_late, 0);
}

// Updates, evaluations, checkpoints and a skipped update; the third epoch brings nothing that was not there before.
TEST_F(CudaGraphs, DeviceMemoryStaysAsItIs) {
  // Outside the arenas a plan counts 560 MiB, and 543 to 558 were measured.
  constexpr int64_t kGrowthBytes = int64_t{8} << 20;
  batches_[7].ids[4] = kPoisonedToken;
  options_.hyper.max_steps = 30;
  options_.hyper.eval_every_steps = 5;
  options_.hyper.checkpoint_every_steps = 7;
  options_.checkpoint_root = folder_ + "/checkpoints";
  RaggedRun ragged;
  Run(false, &ragged);
  const std::vector<TrainProgress>& progress = ragged.run.progress;
  ASSERT_EQ(progress.size(), 30u);
  EXPECT_EQ(ragged.run.state.skipped_updates, 4);
  EXPECT_GE(ragged.run.checkpoints.size(), 4u);
  constexpr size_t kEpoch = kMicroBatches / kAccumulation;
  for (size_t i = 0; i < progress.size(); ++i) {
    EXPECT_LE(progress[i].device_bytes_used, progress[0].device_bytes_used + kGrowthBytes) << i;
    if (i < 2 * kEpoch) continue;
    EXPECT_EQ(progress[i].device_bytes_used, progress[2 * kEpoch].device_bytes_used) << i;
  }
}

// Windows of three micro-batches of a size, and room for the graphs of one size: each is captured, replayed and soon
// stale, and gives its place to the next, while the device may still be running it.
TEST_F(CudaGraphs, GraphsThatGiveTheirPlaceToOthersChangeNoBitAndTakeNoMoreMemory) {
  constexpr int64_t kWindow = 3, kSteps = 100, kWarmSteps = 12;
  // The driver takes memory for graphs by steps of 2 MiB. All that were captured would be 20 MiB and more: some 300, of
  // 40 nodes on average, at about 2 KiB a small one.
  constexpr int64_t kGrowthBytes = int64_t{4} << 20;
  batches_.clear();
  for (uint64_t i = 0; i < 4 * kWindow; ++i) {
    const int64_t rows = 128 * (4 - static_cast<int64_t>(i / kWindow));
    batches_.push_back(TrainedAtItsEnd(rows, static_cast<size_t>(rows - 1), 60 + i));
  }
  TrainShape train = options_.plan.train;
  train.accumulation_steps = kWindow;
  options_.plan = CudaPlan(options_.plan.shape, train);
  options_.hyper.max_steps = 1;
  RaggedRun one_size, changing, eager;
  Run(false, &one_size);
  changing.run.most_graph_nodes = one_size.run.graph_nodes;
  changing.stale_uses = 2 * kWindow;
  options_.hyper.max_steps = kSteps;
  Run(false, &changing);
  Run(true, &eager);
  EXPECT_GE(changing.run.graphs.dropped, 50);
  EXPECT_GE(changing.run.graphs.replayed, kSteps);
  EXPECT_LE(changing.run.graph_nodes, changing.run.most_graph_nodes);
  ExpectTheSame(changing.run, eager.run);
  const std::vector<TrainProgress>& progress = changing.run.progress;
  ASSERT_EQ(progress.size(), static_cast<size_t>(kSteps));
  for (size_t i = kWarmSteps; i < progress.size(); ++i) {
    EXPECT_LE(progress[i].device_bytes_used, progress[kWarmSteps].device_bytes_used + kGrowthBytes) << i;
  }
}

}  // namespace
}  // namespace longhaul::train
