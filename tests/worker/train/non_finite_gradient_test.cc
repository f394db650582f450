#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/clock.h"
#include "tests/worker/train/poisoned_gradient.h"

namespace longhaul::train {
namespace {

struct Warnings final : public TrainerObserver {
  void OnWarning(const std::string& text) override { all.push_back(text); }
  std::vector<std::string> all;
};

// All losses are finite, and the sum of the gradients is not from one of five micro-batches on.
TEST(NonFiniteGradient, NamesTheMicroBatchThatItCameWith) {
  for (int64_t poisoned : {1, 4}) {
    std::vector<TinyBatch> batches;
    for (uint64_t i = 0; i < 5; ++i) batches.emplace_back(std::vector<int64_t>{7, 12, 4}, 67, 40 + i);
    TrainShape train = TinyTrain(ComputeType::kF32, 1, 23);
    train.accumulation_steps = 5;
    TrainerOptions options;
    options.plan = TinyPlan(TinyShape(), train, {1, 9, 8});
    options.hyper.max_steps = 2;
    options.hyper.checkpoint_every_steps = 0;
    PoisonedGradient source(FixedBatches(std::move(batches), 5), poisoned);
    Warnings warnings;
    RunToEnd control;
    const FakeClock clock;
    auto trainer = Trainer::Create(options, SyntheticWeightSource(options.plan.shape, 3), &source, nullptr, &warnings,
                                   &control, &clock);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    source.trainer = trainer->get();
    ASSERT_TRUE((*trainer)->Run().ok());
    EXPECT_EQ((*trainer)->state().skipped_updates, 1);
    ASSERT_EQ(warnings.all.size(), 1u);
    EXPECT_THAT(warnings.all[0], testing::HasSubstr("update 1: the gradient's norm is inf, not finite from sample " +
                                                    std::to_string(poisoned) + " on"));
  }
}

}  // namespace
}  // namespace longhaul::train
