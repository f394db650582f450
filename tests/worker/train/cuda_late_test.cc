// A trainer on CUDA queues an update before it reads the numbers of the one before. Nobody may notice: reports, skips,
// stops and checkpoints are those of a trainer that waits after each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "kernels/cuda_error.h"
#include "tests/worker/train/cuda_run.h"
#include "tests/worker/train/poisoned_gradient.h"

namespace longhaul::train {
namespace {

using ::testing::HasSubstr;

class CudaLate : public testing::Test {
 protected:
  CudaLate() {
    std::string pattern = testing::TempDir() + "cudalateXXXXXX";
    folder_ = mkdtemp(pattern.data());
    for (uint64_t i = 0; i < 6; ++i)
      documents_.emplace_back(std::vector<int64_t>{128 - 3 * (i % 2 ? 1 : 0)}, 500, 40 + i);
    TrainShape train = CudaTinyTrain(1, 128);
    train.deterministic = true;
    options_.plan = CudaPlan(CudaTinyShape(/*qwen3=*/true), train);
    options_.hyper.max_steps = 9;
    options_.hyper.learning_rate = 5e-3;
    options_.hyper.checkpoint_every_steps = 0;
  }
  ~CudaLate() override { RemoveTree(folder_).IgnoreError(); }

  void Run(const TrainerOptions& options, LateRun* run) {
    FixedBatches batches(documents_, 1);
    BatchSource* const eval = options.hyper.eval_every_steps > 0 ? &batches : nullptr;
    auto trainer = Trainer::Create(options, Bf16Source(options.plan.shape), &batches, eval, run, run, &clock_);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    PoisonToken(**trainer);
    const bool on_cuda = options.plan.device == DeviceKind::kCuda;
    auto* const ops = on_cuda ? &static_cast<CudaOps&>((*trainer)->ops()) : nullptr;
    if (ops != nullptr) {
      ops->LimitGraphNodes(run->most_graph_nodes);
      run->graph_nodes_before = ops->graphs().nodes();
    }
    run->outcome = (*trainer)->Run();
    if (ops != nullptr) {
      run->graph_nodes = ops->graphs().nodes();
      run->graphs = ops->graphs().counts();
    }
    run->state = (*trainer)->state();
    const Adapter& adapter = (*trainer)->adapter();
    adapter.Download();
    const float* const master = adapter.host().master.as<float>();
    run->master = {master, master + adapter.params()};
  }

  // Of a CudaError in update 4: exits with 3, and prints the error.
  [[noreturn]] void RunToTheError() {
    FixedBatches batches(documents_, 1);
    LateRun run;
    auto trainer = Trainer::Create(options_, Bf16Source(options_.plan.shape), &batches, nullptr, &run, &run, &clock_);
    if (!trainer.ok()) std::_Exit(2);
    try {
      (*trainer)->Run().IgnoreError();
    } catch (const kernels::CudaError& error) {
      const int64_t reported = run.progress.empty() ? 0 : run.progress.back().step;
      std::fprintf(stderr, "reported %d, begun %d: %s\n", static_cast<int>(reported),
                   static_cast<int>((*trainer)->last_begun()), error.what());
      std::_Exit(reported < 4 && (*trainer)->last_begun() >= 4 && (*trainer)->last_begun() - reported <= 2 ? 3 : 4);
    }
    std::_Exit(5);
  }

  RealClock clock_;
  std::string folder_;
  std::vector<TinyBatch> documents_;
  TrainerOptions options_;
};

TEST_F(CudaLate, ReportsAreThoseOfAWaitAfterEachUpdate) {
  LateRun late, waiting;
  Run(options_, &late);
  options_.hyper.eval_every_steps = 1;  // every state is looked at
  Run(options_, &waiting);
  ASSERT_TRUE(late.outcome.ok()) << late.outcome.status();
  ASSERT_EQ(late.progress.size(), 9u);
  ASSERT_EQ(waiting.progress.size(), 9u);
  for (size_t i = 0; i < 9; ++i) {
    EXPECT_EQ(late.progress[i].step, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(late.progress[i].loss, waiting.progress[i].loss) << i;
    EXPECT_EQ(late.progress[i].grad_norm, waiting.progress[i].grad_norm) << i;
    EXPECT_EQ(late.progress[i].learning_rate, waiting.progress[i].learning_rate) << i;
    EXPECT_EQ(late.progress[i].trained_tokens, waiting.progress[i].trained_tokens) << i;
    EXPECT_GT(late.progress[i].step_seconds, 0);
  }
  EXPECT_EQ(late.master, waiting.master);
  EXPECT_EQ(late.state.adam_steps, 9);
}

// Parts of a micro-batch come again: all are captured, or some, or none.
TEST_F(CudaLate, GraphsKeepWithinTheirNodesAndChangeNoBit) {
  LateRun all, some, none;
  Run(options_, &all);
  some.most_graph_nodes = all.graph_nodes * 2 / 3;
  Run(options_, &some);
  none.most_graph_nodes = 0;
  Run(options_, &none);
  EXPECT_LE(all.graph_nodes, limits::kMaxCudaGraphNodes);
  EXPECT_LE(some.graph_nodes, some.most_graph_nodes);
  EXPECT_GT(some.graph_nodes, some.graph_nodes_before);
  EXPECT_EQ(none.graph_nodes, none.graph_nodes_before);
  EXPECT_EQ(all.master, some.master);
  EXPECT_EQ(all.master, none.master);
}

// Update 2, and 8 in the second epoch: what follows was queued before anybody knew.
TEST_F(CudaLate, PoisonedUpdatesAreSkippedCountedAndNamedAsOnTheCpu) {
  documents_[1].ids[4] = kPoisonedToken;
  LateRun cuda, cpu;
  Run(options_, &cuda);
  options_.plan = CpuTwin(options_.plan);
  Run(options_, &cpu);
  ASSERT_TRUE(cuda.outcome.ok()) << cuda.outcome.status();
  EXPECT_EQ(cuda.state.skipped_updates, 2);
  EXPECT_EQ(cuda.state.adam_steps, 7);
  ASSERT_EQ(cuda.warnings.size(), 2u);
  EXPECT_THAT(cuda.warnings[0], HasSubstr("update 2"));
  EXPECT_THAT(cuda.warnings[0], HasSubstr("sample 1"));
  EXPECT_EQ(cuda.warnings, cpu.warnings);
  for (float value : cuda.master) ASSERT_TRUE(std::isfinite(value));
  for (size_t i = 0; i < 9; ++i) {
    if (i % 6 == 1) continue;
    EXPECT_NEAR(cuda.progress[i].loss, cpu.progress[i].loss, 0.01 * cpu.progress[i].loss) << i;
  }
}

TEST_F(CudaLate, ANonFiniteGradientNamesTheMicroBatchThatItCameWith) {
  TrainShape train = options_.plan.train;
  train.accumulation_steps = 3;
  options_.plan = CudaPlan(options_.plan.shape, train);
  options_.hyper.max_steps = 8;
  for (int64_t poisoned : {1, 2}) {
    PoisonedGradient batches(FixedBatches(documents_, 3), poisoned);
    LateRun run;
    auto trainer = Trainer::Create(options_, Bf16Source(options_.plan.shape), &batches, nullptr, &run, &run, &clock_);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    batches.trainer = trainer->get();
    ASSERT_TRUE((*trainer)->Run().ok());
    EXPECT_EQ((*trainer)->state().skipped_updates, 1);
    ASSERT_EQ(run.warnings.size(), 1u);
    EXPECT_THAT(run.warnings[0], HasSubstr("not finite from sample " + std::to_string(poisoned) + " on"));
  }
}

TEST_F(CudaLate, TooManyPoisonedUpdatesFailTheRunByTheirNumber) {
  for (TinyBatch& document : documents_) document.ids[0] = kPoisonedToken;
  options_.hyper.max_steps = 50;
  LateRun run;
  Run(options_, &run);
  EXPECT_EQ(ErrorReason(run.outcome.status()), "NON_FINITE_LOSS");
  EXPECT_THAT(std::string(run.outcome.status().message()),
              HasSubstr("update " + std::to_string(limits::kMaxNonFiniteStepsInARow) + ":"));
  EXPECT_EQ(run.warnings.size() + 1, static_cast<size_t>(limits::kMaxNonFiniteStepsInARow));
}

TEST_F(CudaLate, AStopOrAHoldLeavesAnExactCheckpoint) {
  LateRun whole;
  Run(options_, &whole);
  for (Control how : {Control::kStopWithCheckpoint, Control::kHold}) {
    TrainerOptions options = options_;
    options.checkpoint_root = folder_ + (how == Control::kHold ? "/held" : "/stopped");
    LateRun run;
    run.stop_after = 3;
    run.at_stop = how;
    Run(options, &run);
    ASSERT_GE(run.checkpoints.size(), 1u);
    // One more was under way when it was told.
    EXPECT_EQ(run.checkpoints[0].step, 4);
    if (how == Control::kStopWithCheckpoint) {
      EXPECT_EQ(*run.outcome, Outcome::kStopped);
      EXPECT_EQ(run.progress.size(), 4u);
      EXPECT_EQ(run.state.step, 4);
    } else {
      EXPECT_EQ(run.master, whole.master);
    }
    options.resume_from = run.checkpoints[0].folder;
    options.checkpoint_root = folder_ + "/resumed";
    LateRun resumed;
    Run(options, &resumed);
    ASSERT_EQ(resumed.progress.size(), 5u);
    for (size_t i = 0; i < 5; ++i) EXPECT_EQ(resumed.progress[i].loss, whole.progress[i + 4].loss) << i;
    EXPECT_EQ(resumed.master, whole.master);
    EXPECT_EQ(resumed.state.adam_steps, whole.state.adam_steps);
  }
}

// The first pass of all, an evaluation's, ends before it has queued a layer. It is no first run: what would be captured
// next has kernels that were never loaded.
TEST_F(CudaLate, AHoldInTheFirstPassChangesNoBitAndNothingIsCapturedBeforeItRan) {
  options_.hyper.eval_every_steps = 100;
  LateRun whole, held;
  Run(options_, &whole);
  held.control = Control::kHold;
  Run(options_, &held);
  ASSERT_TRUE(whole.outcome.ok()) << whole.outcome.status();
  ASSERT_TRUE(held.outcome.ok()) << held.outcome.status();
  EXPECT_EQ(held.polls, whole.polls + 3);  // of that pass, of the hold and after it
  EXPECT_EQ(held.graphs.run, whole.graphs.run + 1);
  EXPECT_EQ(held.graphs.captured, whole.graphs.captured);
  EXPECT_EQ(held.graphs.replayed, whole.graphs.replayed);
  EXPECT_EQ(held.state.eval_before, whole.state.eval_before);
  EXPECT_EQ(held.state.eval_last, whole.state.eval_last);
  EXPECT_EQ(held.master, whole.master);
}

// In its own process: the context is of no use afterwards. Update 4 gathers a row that the embedding does not have; it
// is seen when that update is waited for, or by what is queued meanwhile.
TEST_F(CudaLate, ACudaErrorInARunIsOfAStepThatWasBegunAndNotReported) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  documents_[3].ids[7] = 100'000;
  EXPECT_EXIT(RunToTheError(), testing::ExitedWithCode(3), "reported 3, begun [45]: .*CUDA error");
}

// With launches that block the op says so itself, in the step that it is of; updates are not replayed as graphs then.
TEST_F(CudaLate, WithBlockingLaunchesTheOpAtFaultIsNamed) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  ASSERT_EQ(setenv("CUDA_LAUNCH_BLOCKING", "1", 1), 0);
  ArmFailpoint("cuda_wrong_token", "error@4");
  EXPECT_EXIT(RunToTheError(), testing::ExitedWithCode(3), "reported 2, begun 4: GatherRows: kernel launch failed");
  DisarmFailpoints();
  ASSERT_EQ(unsetenv("CUDA_LAUNCH_BLOCKING"), 0);
}

TEST_F(CudaLate, ACancelEndsAtOnceWithAStepInFlight) {
  for (int poll : {4, 9, 14}) {
    LateRun run;
    run.cancel_at_poll = poll;
    Run(options_, &run);
    ASSERT_TRUE(run.outcome.ok()) << run.outcome.status();
    EXPECT_EQ(*run.outcome, Outcome::kCancelled);
    EXPECT_TRUE(run.checkpoints.empty());
  }
}

}  // namespace
}  // namespace longhaul::train
