#include "worker/train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>
#include <functional>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "tests/worker/train/rig.h"

namespace longhaul::train {
namespace {

using ::testing::HasSubstr;

class TempDir {
 public:
  TempDir() {
    std::string pattern = testing::TempDir() + "trainerXXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { RemoveTree(path_).IgnoreError(); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Records everything; `on_progress` may change what the control says.
class FakeRun final : public TrainerObserver, public TrainerControl {
 public:
  void OnStarted(const TrainStarted& s) override { started = s; }
  void OnProgress(const TrainProgress& p) override {
    progress.push_back(p);
    if (p.step == stop_after) control = at_stop;
  }
  void OnEvaluated(int64_t step, const EvalResult& r) override {
    evals.emplace_back(step, r.loss);
    eval_polls.push_back(polls);
  }
  absl::Status OnCheckpoint(const CheckpointInfo& c) override {
    checkpoints.push_back(c);
    return absl::OkStatus();
  }
  void OnWarning(const std::string& text) override { warnings.push_back(text); }
  void OnHold(bool held) override { holds.push_back(held); }
  Control Poll() override {
    ++polls;
    if (polls == change_at_poll) control = at_poll;
    return polls == cancel_at_poll ? Control::kCancel : control;
  }
  void WaitWhileHeld() override { control = Control::kContinue; }

  TrainStarted started;
  std::vector<TrainProgress> progress;
  std::vector<std::pair<int64_t, double>> evals;
  std::vector<int> eval_polls;  // polls before each ended
  std::vector<CheckpointInfo> checkpoints;
  std::vector<std::string> warnings;
  std::vector<bool> holds;
  int64_t stop_after = -1;
  Control at_stop = Control::kContinue;
  Control control = Control::kContinue;
  int polls = 0;
  int cancel_at_poll = -1;
  int change_at_poll = -1;
  Control at_poll = Control::kContinue;
};

FixedBatches TrainingBatches(int64_t accumulation = 2) {
  std::vector<TinyBatch> batches;
  for (uint64_t i = 0; i < 5; ++i) batches.emplace_back(std::vector<int64_t>{7, 12, 4}, 67, 40 + i);
  return FixedBatches(std::move(batches), accumulation);
}

TrainerOptions Options(const std::string& checkpoint_root = "", ComputeType compute = ComputeType::kF32) {
  TrainerOptions options;
  options.plan = TinyPlan(TinyShape(), TinyTrain(compute, 1, 23), {1, 9, 8});
  options.hyper.learning_rate = 1e-2;
  options.hyper.lora_alpha = 6;
  options.hyper.max_steps = 6;
  options.hyper.checkpoint_every_steps = 0;
  options.checkpoint_root = checkpoint_root;
  options.data_signature = "five batches";
  return options;
}

struct Done {
  absl::StatusOr<Outcome> outcome = absl::UnknownError("not run");
  std::vector<double> master, moment1, moment2;
  TrainerState state;
};

Done RunTrainer(const TrainerOptions& options, FakeRun* run, BatchSource* train, BatchSource* eval = nullptr,
                const std::string& export_to = "") {
  const FakeClock clock;
  const SyntheticWeightSource weights(options.plan.shape, 3);
  Done done;
  auto trainer = Trainer::Create(options, weights, train, eval, run, run, &clock);
  if (!trainer.ok()) {
    done.outcome = trainer.status();
    return done;
  }
  done.outcome = (*trainer)->Run();
  done.master = Values((*trainer)->adapter().master());
  done.moment1 = Values((*trainer)->adapter().moment1());
  done.moment2 = Values((*trainer)->adapter().moment2());
  done.state = (*trainer)->state();
  if (!export_to.empty()) {
    EXPECT_TRUE((*trainer)->Export(export_to, {"tiny", {{"steps", "6"}}}).ok());
  }
  return done;
}

TEST(Trainer, LearnsAndReportsEveryUpdate) {
  TrainerOptions options = Options();
  options.hyper.max_steps = 40;
  FixedBatches train = TrainingBatches();
  FakeRun run;
  const Done done = RunTrainer(options, &run, &train);
  ASSERT_TRUE(done.outcome.ok()) << done.outcome.status();
  EXPECT_EQ(*done.outcome, Outcome::kFinished);
  ASSERT_EQ(run.progress.size(), 40u);
  EXPECT_EQ(run.started.total_steps, 40);
  EXPECT_LT(run.progress.back().loss, 0.7 * run.progress.front().loss);
  EXPECT_EQ(run.progress[4].step, 5);
  EXPECT_DOUBLE_EQ(run.progress[2].epoch, 1.0);
  EXPECT_GT(run.progress[0].grad_norm, 0);
  // Three micro-batch windows of 2, 2, 1 in an epoch of 23-token batches.
  EXPECT_EQ(run.progress[2].trained_tokens, 5 * 23);
}

// Eight documents as one micro-batch, as eight, and as two of four: the window is normalised once, whatever its cut.
TEST(Trainer, AccumulationIsNormalisedOnce) {
  std::vector<TinyBatch> one_each, four_each, together;
  const std::vector<int64_t> lengths = {5, 12, 3, 7, 9, 4, 11, 6};
  together.emplace_back(lengths);
  int64_t first = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    // The same tokens and masks as those of the whole.
    TinyBatch part(std::vector<int64_t>{lengths[i]});
    std::copy_n(together[0].ids.begin() + first, lengths[i], part.ids.begin());
    std::copy_n(together[0].labels.begin() + first, lengths[i], part.labels.begin());
    first += lengths[i];
    if (i % 4 == 0) {
      four_each.push_back(part);
    } else {
      TinyBatch& group = four_each.back();
      group.ids.insert(group.ids.end(), part.ids.begin(), part.ids.end());
      group.labels.insert(group.labels.end(), part.labels.begin(), part.labels.end());
      group.positions.insert(group.positions.end(), part.positions.begin(), part.positions.end());
      group.doc_offsets.push_back(static_cast<int64_t>(group.ids.size()));
    }
    one_each.push_back(std::move(part));
  }
  TrainerOptions options = Options("", ComputeType::kF64);
  options.plan = TinyPlan(TinyShape(), TinyTrain(ComputeType::kF64, 1, first), {1, 9, 8});
  options.hyper.max_steps = 3;
  const auto run = [&](const std::vector<TinyBatch>& batches, double* loss) {
    FixedBatches train(batches, static_cast<int64_t>(batches.size()));
    FakeRun fake;
    const Done done = RunTrainer(options, &fake, &train);
    EXPECT_TRUE(done.outcome.ok()) << done.outcome.status();
    *loss = fake.progress.back().loss;
    return done.master;
  };
  double loss = 0, loss_of_eight = 0, loss_of_two = 0;
  const std::vector<double> whole = run(together, &loss);
  // Double arithmetic in another order; Adam's division by sqrt(v) can enlarge it where a gradient is near 0.
  EXPECT_LT(RelativeError(run(one_each, &loss_of_eight), whole), 1e-9);
  EXPECT_LT(RelativeError(run(four_each, &loss_of_two), whole), 1e-9);
  EXPECT_NEAR(loss_of_eight, loss, 1e-12 * loss);
  EXPECT_NEAR(loss_of_two, loss, 1e-12 * loss);
}

TEST(Trainer, StopAndResumeIsBitIdentical) {
  for (double dropout : {0.0, 0.25}) {
    TempDir dir;
    TrainerOptions options = Options(dir.path());
    if (dropout > 0) {
      TrainShape train = options.plan.train;
      train.lora_dropout = true;
      options.plan = TinyPlan(TinyShape(), train, {1, 9, 8});
      options.hyper.lora_dropout = dropout;
    }
    FixedBatches train = TrainingBatches();
    FakeRun whole_run;
    TrainerOptions no_checkpoints = options;
    no_checkpoints.checkpoint_root = "";
    const Done whole = RunTrainer(no_checkpoints, &whole_run, &train, nullptr, dir.path() + "/whole");
    ASSERT_TRUE(whole.outcome.ok()) << whole.outcome.status();

    // In the middle of an epoch of three updates: a resume that began its epoch anew would show.
    FakeRun first;
    first.stop_after = 2;
    first.at_stop = Control::kStopWithCheckpoint;
    EXPECT_EQ(*RunTrainer(options, &first, &train).outcome, Outcome::kStopped);
    ASSERT_EQ(first.checkpoints.size(), 1u);
    EXPECT_EQ(first.checkpoints[0].step, 2);
    EXPECT_FALSE(first.checkpoints[0].final);

    FakeRun second;
    options.resume_from = first.checkpoints[0].folder;
    const Done resumed = RunTrainer(options, &second, &train, nullptr, dir.path() + "/resumed");
    ASSERT_TRUE(resumed.outcome.ok()) << resumed.outcome.status();
    EXPECT_EQ(second.started.first_step, 2);
    EXPECT_EQ(second.progress.size(), 4u);
    EXPECT_EQ(resumed.master, whole.master);
    EXPECT_EQ(resumed.moment1, whole.moment1);
    EXPECT_EQ(resumed.moment2, whole.moment2);
    EXPECT_EQ(resumed.state.trained_tokens, whole.state.trained_tokens);
    EXPECT_EQ(second.progress.back().loss, whole_run.progress.back().loss);
    for (const char* file : {"adapter_model.safetensors", "adapter_config.json"}) {
      EXPECT_EQ(*ReadFile(dir.path() + "/whole/" + file, 1 << 20), *ReadFile(dir.path() + "/resumed/" + file, 1 << 20));
    }
  }
}

TEST(Trainer, ResumeWithAnotherKeepAllIsStillBitIdentical) {
  TempDir dir;
  TrainerOptions options = Options(dir.path());
  FixedBatches train = TrainingBatches();
  FakeRun whole_run, first, second;
  const Done whole = RunTrainer(Options(), &whole_run, &train);
  first.stop_after = 2;
  first.at_stop = Control::kStopWithCheckpoint;
  RunTrainer(options, &first, &train);
  options.plan = TinyPlan(TinyShape(), options.plan.train, {0, 9, 8});
  options.resume_from = first.checkpoints.at(0).folder;
  const Done resumed = RunTrainer(options, &second, &train);
  ASSERT_TRUE(resumed.outcome.ok()) << resumed.outcome.status();
  EXPECT_EQ(resumed.master, whole.master);
}

TEST(Trainer, RefusesAResumeThatCannotBeIdentical) {
  TempDir dir;
  TrainerOptions options = Options(dir.path());
  FixedBatches train = TrainingBatches();
  FakeRun first;
  first.stop_after = 2;
  first.at_stop = Control::kStopWithCheckpoint;
  RunTrainer(options, &first, &train);
  options.resume_from = first.checkpoints.at(0).folder;

  TrainerOptions other_tiles = options;
  other_tiles.plan = TinyPlan(TinyShape(), options.plan.train, {1, 5, 8});
  FakeRun run;
  EXPECT_EQ(ErrorReason(RunTrainer(other_tiles, &run, &train).outcome.status()), "RESUME_NOT_IDENTICAL");
  other_tiles.hyper.allow_nonidentical_resume = true;
  FakeRun allowed;
  EXPECT_TRUE(RunTrainer(other_tiles, &allowed, &train).outcome.ok());
  ASSERT_EQ(allowed.warnings.size(), 1u);
  EXPECT_THAT(allowed.warnings[0], HasSubstr("not be bit-identical"));

  TrainerOptions other_rate = options;
  other_rate.hyper.learning_rate = 2e-2;
  EXPECT_EQ(ErrorReason(RunTrainer(other_rate, &run, &train).outcome.status()), "INVALID_CHECKPOINT");
  TrainerOptions other_data = options;
  other_data.data_signature = "six batches";
  EXPECT_EQ(ErrorReason(RunTrainer(other_data, &run, &train).outcome.status()), "INVALID_CHECKPOINT");
}

TEST(Trainer, ResumeOfAFinishedRunTrainsNothing) {
  TempDir dir;
  TrainerOptions options = Options(dir.path());
  FixedBatches train = TrainingBatches();
  FakeRun first, second;
  const Done done = RunTrainer(options, &first, &train);
  ASSERT_TRUE(first.checkpoints.back().final);
  options.resume_from = first.checkpoints.back().folder;
  const Done again = RunTrainer(options, &second, &train);
  ASSERT_TRUE(again.outcome.ok());
  EXPECT_TRUE(second.progress.empty());
  EXPECT_EQ(again.master, done.master);
}

TEST(Trainer, KeepsTheLastCheckpoints) {
  TempDir dir;
  TrainerOptions options = Options(dir.path());
  options.hyper.checkpoint_every_steps = 1;
  FixedBatches train = TrainingBatches();
  FakeRun run;
  ASSERT_TRUE(RunTrainer(options, &run, &train).outcome.ok());
  EXPECT_EQ(run.checkpoints.size(), 6u);
  EXPECT_THAT(*ListDir(dir.path()), testing::ElementsAre("step-5", "step-6"));
}

TEST(Trainer, EvaluatesBeforeAfterAndEvery) {
  TrainerOptions options = Options();
  options.hyper.eval_every_steps = 2;
  FixedBatches train = TrainingBatches();
  FixedBatches eval({TinyBatch({9, 3}, 67, 40), TinyBatch({14}, 67, 41)}, 1);
  FakeRun run, plain_run;
  const Done with_eval = RunTrainer(options, &run, &train, &eval);
  ASSERT_TRUE(with_eval.outcome.ok()) << with_eval.outcome.status();
  ASSERT_EQ(run.evals.size(), 4u);
  EXPECT_EQ(run.evals[0].first, 0);
  EXPECT_EQ(run.evals[1].first, 2);
  EXPECT_EQ(run.evals[3].first, 6);
  EXPECT_EQ(with_eval.state.eval_before, run.evals[0].second);
  EXPECT_EQ(with_eval.state.eval_last, run.evals[3].second);
  // Evaluation changes no bit of the training.
  EXPECT_EQ(RunTrainer(Options(), &plain_run, &train).master, with_eval.master);
}

// A stop or a hold at every poll of a run: within evaluations before, between and after the updates, too.
TEST(Trainer, AnEvaluationGivesWayAndIsMadeUpForBitForBit) {
  const auto options_in = [](const TempDir& dir) {
    TrainerOptions options = Options(dir.path());
    options.hyper.max_steps = 2;
    options.hyper.eval_every_steps = 1;
    options.hyper.checkpoint_every_steps = 1;
    return options;
  };
  FixedBatches train = TrainingBatches();
  FixedBatches eval({TinyBatch({9, 3}, 67, 40), TinyBatch({14}, 67, 41)}, 1);
  TempDir whole_dir;
  FakeRun whole;
  const Done expected = RunTrainer(options_in(whole_dir), &whole, &train, &eval);
  ASSERT_TRUE(expected.outcome.ok());
  ASSERT_EQ(whole.evals.size(), 3u);
  int pending = 0;
  for (int poll = 1; poll <= whole.polls; ++poll) {
    SCOPED_TRACE("poll " + std::to_string(poll));
    for (const Control at_poll : {Control::kStopWithCheckpoint, Control::kHold}) {
      TempDir dir;
      FakeRun first;
      first.change_at_poll = poll;
      first.at_poll = at_poll;
      Done done = RunTrainer(options_in(dir), &first, &train, &eval);
      ASSERT_TRUE(done.outcome.ok()) << done.outcome.status();
      std::vector<std::pair<int64_t, double>> evals = first.evals;
      if (at_poll == Control::kStopWithCheckpoint && *done.outcome == Outcome::kStopped) {
        // No evaluation goes on after the stop, nor does one begin.
        EXPECT_EQ(first.evals.size(),
                  static_cast<size_t>(std::count_if(first.eval_polls.begin(), first.eval_polls.end(),
                                                    [&](int at) { return at <= poll; })));
        pending += done.state.eval_pending;
        TrainerOptions rest = options_in(dir);
        if (done.state.step > 0) {
          rest.resume_from = dir.path() + "/step-" + std::to_string(done.state.step);
        } else {
          evals.clear();  // it begins again
        }
        FakeRun second;
        done = RunTrainer(rest, &second, &train, &eval);
        ASSERT_TRUE(done.outcome.ok()) << done.outcome.status();
        evals.insert(evals.end(), second.evals.begin(), second.evals.end());
      }
      EXPECT_EQ(*done.outcome, Outcome::kFinished);
      EXPECT_EQ(done.master, expected.master);
      EXPECT_EQ(done.moment2, expected.moment2);
      EXPECT_EQ(done.state.eval_before, expected.state.eval_before);
      EXPECT_EQ(done.state.eval_last, expected.state.eval_last);
      EXPECT_EQ(evals, whole.evals);
      EXPECT_FALSE(done.state.eval_pending);
    }
  }
  EXPECT_GT(pending, 0);
}

TEST(Trainer, CancelStopsWithinALayer) {
  FixedBatches train = TrainingBatches();
  FakeRun run;
  run.cancel_at_poll = 5;
  const Done done = RunTrainer(Options(), &run, &train);
  ASSERT_TRUE(done.outcome.ok());
  EXPECT_EQ(*done.outcome, Outcome::kCancelled);
  EXPECT_EQ(run.polls, 5);
  EXPECT_TRUE(run.progress.empty());
}

TEST(Trainer, HoldWritesACheckpointAndGoesOnUnchanged) {
  TempDir dir;
  FixedBatches train = TrainingBatches();
  FakeRun held, plain;
  held.stop_after = 2;
  held.at_stop = Control::kHold;
  const Done done = RunTrainer(Options(dir.path()), &held, &train);
  ASSERT_TRUE(done.outcome.ok());
  EXPECT_EQ(*done.outcome, Outcome::kFinished);
  EXPECT_THAT(held.holds, testing::ElementsAre(true, false));
  ASSERT_EQ(held.checkpoints.size(), 2u);
  EXPECT_EQ(held.checkpoints[0].step, 2);
  EXPECT_EQ(RunTrainer(Options(), &plain, &train).master, done.master);
}

// Token 66 has a NaN embedding; the head is its own, so only samples that contain it are poisoned.
class PoisonedWeights final : public WeightSource {
 public:
  explicit PoisonedWeights(const ModelShape& shape) : inner_(shape, 3) {}
  const ModelShape& shape() const override { return inner_.shape(); }
  StoredAs Type(const std::string& name) const override { return inner_.Type(name); }
  absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    const absl::Status status = inner_.ReadRows(name, begin, end, out);
    if (name == "model.embed_tokens.weight" && begin <= 66 && 66 < end) out[(66 - begin) * shape().hidden] = NAN;
    return status;
  }

 private:
  SyntheticWeightSource inner_;
};

Done RunPoisoned(const TrainerOptions& options, FakeRun* run, BatchSource* train, BatchSource* eval = nullptr) {
  const FakeClock clock;
  Done done;
  auto trainer = Trainer::Create(options, PoisonedWeights(options.plan.shape), train, eval, run, run, &clock);
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  done.outcome = (*trainer)->Run();
  done.master = Values((*trainer)->adapter().master());
  done.state = (*trainer)->state();
  return done;
}

TEST(Trainer, NonFiniteLossSkipsTheUpdateAndNamesTheSample) {
  TrainerOptions options = Options();
  options.plan = TinyPlan(TinyShape(false, /*tied=*/false), TinyTrain(ComputeType::kF32, 1, 23), {1, 9, 8});
  std::vector<TinyBatch> batches;
  for (uint64_t i = 0; i < 3; ++i) batches.emplace_back(std::vector<int64_t>{10}, 60, 40 + i);
  batches[1].ids[4] = 66;
  FixedBatches train(batches, 1);
  FakeRun run;
  const Done done = RunPoisoned(options, &run, &train);
  ASSERT_TRUE(done.outcome.ok()) << done.outcome.status();
  EXPECT_EQ(done.state.skipped_updates, 2);
  EXPECT_EQ(done.state.adam_steps, 4);
  ASSERT_EQ(run.warnings.size(), 2u);
  EXPECT_THAT(run.warnings[0], HasSubstr("update 2"));
  EXPECT_THAT(run.warnings[0], HasSubstr("sample 1"));
  for (double value : done.master) ASSERT_TRUE(std::isfinite(value));
}

TEST(Trainer, ANonFiniteEvaluationIsNone) {
  TempDir dir;
  TrainerOptions options = Options(dir.path());
  options.plan = TinyPlan(TinyShape(false, /*tied=*/false), TinyTrain(ComputeType::kF32, 1, 23), {1, 9, 8});
  options.hyper.eval_every_steps = 3;
  FixedBatches train({TinyBatch({10}, 60, 40)}, 1);
  TinyBatch poisoned({10}, 60, 41);
  poisoned.ids[4] = 66;
  FixedBatches eval({poisoned}, 1);
  FakeRun run;
  const Done done = RunPoisoned(options, &run, &train, &eval);
  ASSERT_TRUE(done.outcome.ok()) << done.outcome.status();
  EXPECT_EQ(*done.outcome, Outcome::kFinished);
  EXPECT_TRUE(run.evals.empty());
  EXPECT_FALSE(done.state.eval_before.has_value());
  EXPECT_FALSE(done.state.eval_last.has_value());
  EXPECT_FALSE(done.state.eval_best.has_value());
  ASSERT_EQ(run.warnings.size(), 3u);  // after updates 0, 3 and 6
  EXPECT_THAT(run.warnings[1], HasSubstr("after update 3 is not finite"));
  EXPECT_FALSE(run.checkpoints.back().eval_loss.has_value());
}

TEST(Trainer, TooManyNonFiniteUpdatesInARowFailTheRun) {
  TrainerOptions options = Options();
  options.hyper.max_steps = 50;
  options.plan = TinyPlan(TinyShape(false, /*tied=*/false), TinyTrain(ComputeType::kF32, 1, 23), {1, 9, 8});
  TinyBatch batch({10}, 60);
  batch.ids[0] = 66;
  FixedBatches train({batch}, 1);
  FakeRun run;
  const Done done = RunPoisoned(options, &run, &train);
  ASSERT_FALSE(done.outcome.ok());
  EXPECT_EQ(ErrorReason(done.outcome.status()), "NON_FINITE_LOSS");
  EXPECT_THAT(std::string(done.outcome.status().message()), HasSubstr("sample 0"));
  EXPECT_EQ(run.warnings.size() + 1, static_cast<size_t>(limits::kMaxNonFiniteStepsInARow));
}

TEST(Trainer, RefusesBatchesThatThePlanDoesNotCover) {
  FakeRun run;
  FixedBatches too_long({TinyBatch({24})}, 1);
  EXPECT_EQ(ErrorReason(RunTrainer(Options(), &run, &too_long).outcome.status()), "PLAN_MISMATCH");
  TrainerOptions options = Options();
  options.hyper.lora_dropout = 0.1;
  FixedBatches train = TrainingBatches();
  EXPECT_EQ(RunTrainer(options, &run, &train).outcome.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Trainer, AFailedCheckpointEndsTheRunAndLeavesNothingHalf) {
  TempDir dir;
  FixedBatches train = TrainingBatches();
  FakeRun run;
  ArmFailpoint("checkpoint_between_files", "error");
  const Done done = RunTrainer(Options(dir.path()), &run, &train);
  DisarmFailpoints();
  EXPECT_FALSE(done.outcome.ok());
  EXPECT_TRUE(ListDir(dir.path())->empty());
}

}  // namespace
}  // namespace longhaul::train
