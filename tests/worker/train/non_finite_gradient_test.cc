#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "tests/worker/train/poisoned_gradient.h"

namespace longhaul::train {
namespace {

struct Warnings final : public TrainerObserver {
  void OnWarning(const std::string& text) override { all.push_back(text); }
  std::vector<std::string> all;
};

constexpr int64_t kMicroBatches = 5;

// Of a run of two updates, whose gradient becomes infinite before micro-batch `poisoned` of the first.
std::string WarningOf(std::vector<TinyBatch> batches, int64_t poisoned) {
  TrainShape train = TinyTrain(ComputeType::kF32, 1, 23);
  train.accumulation_steps = kMicroBatches;
  TrainerOptions options;
  options.plan = TinyPlan(TinyShape(), train, {1, 9, 8});
  options.hyper.max_steps = 2;
  options.hyper.checkpoint_every_steps = 0;
  PoisonedGradient source(FixedBatches(std::move(batches), kMicroBatches), poisoned);
  Warnings warnings;
  RunToEnd control;
  const FakeClock clock;
  auto trainer = Trainer::Create(options, SyntheticWeightSource(options.plan.shape, 3), &source, nullptr, &warnings,
                                 &control, &clock);
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  if (!trainer.ok()) return "";
  source.trainer = trainer->get();
  EXPECT_TRUE((*trainer)->Run().ok());
  EXPECT_EQ((*trainer)->state().skipped_updates, 1);
  EXPECT_EQ(warnings.all.size(), 1u);
  return warnings.all.empty() ? "" : warnings.all[0];
}

std::vector<TinyBatch> Batches() {
  std::vector<TinyBatch> batches;
  for (uint64_t i = 0; i < kMicroBatches; ++i) batches.emplace_back(std::vector<int64_t>{7, 12, 4}, 67, 40 + i);
  return batches;
}

// All losses are finite, and the sum of the gradients is not from one of five micro-batches on.
TEST(NonFiniteGradient, NamesTheMicroBatchThatItCameWith) {
  for (int64_t poisoned : {1, 4}) {
    EXPECT_EQ(WarningOf(Batches(), poisoned), "update 1: the gradient's norm is inf, not finite from sample " +
                                                  std::to_string(poisoned) + " on; the update was skipped");
  }
}

// It came after the last one whose gradient was looked at: the last one trains nothing.
TEST(NonFiniteGradient, NamesNoneWhereNoneIsKnown) {
  std::vector<TinyBatch> batches = Batches();
  batches.back() = TinyBatch({23}, 67, 44, /*trained=*/false);
  EXPECT_EQ(WarningOf(std::move(batches), kMicroBatches - 1),
            "update 1: the gradient's norm is inf; the update was skipped");
}

}  // namespace
}  // namespace longhaul::train
