#include "worker/train/hyper.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/limits.h"

namespace longhaul::train {
namespace {

TEST(Hyper, LinearWithWarmupAsHuggingFace) {
  Hyper hyper;
  hyper.learning_rate = 1.0;
  hyper.warmup_steps = 4;
  // get_linear_schedule_with_warmup(4, 10) at 0..10.
  const double expected[] = {0, 0.25, 0.5, 0.75, 1, 5.0 / 6, 4.0 / 6, 3.0 / 6, 2.0 / 6, 1.0 / 6, 0};
  for (int64_t t = 0; t <= 10; ++t) EXPECT_DOUBLE_EQ(LearningRateAt(hyper, 10, t), expected[t]) << t;
}

TEST(Hyper, CosineAndConstant) {
  Hyper hyper;
  hyper.learning_rate = 2.0;
  hyper.schedule = Schedule::kCosine;
  hyper.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(LearningRateAt(hyper, 10, 0), 2.0);
  EXPECT_DOUBLE_EQ(LearningRateAt(hyper, 10, 5), 1.0);
  EXPECT_NEAR(LearningRateAt(hyper, 10, 9), 1 + std::cos(0.9 * M_PI), 1e-15);
  hyper.schedule = Schedule::kConstant;
  hyper.warmup_steps = 2;
  EXPECT_DOUBLE_EQ(LearningRateAt(hyper, 10, 1), 1.0);
  EXPECT_DOUBLE_EQ(LearningRateAt(hyper, 10, 9), 2.0);
}

TEST(Hyper, TotalAndWarmupStepsRoundUp) {
  Hyper hyper;
  hyper.epochs = 1.5;
  EXPECT_EQ(TotalSteps(hyper, 7), 11);
  hyper.max_steps = 3;
  EXPECT_EQ(TotalSteps(hyper, 7), 3);
  hyper.warmup_ratio = 0.03;
  EXPECT_EQ(WarmupSteps(hyper, 60), 2);
  hyper.warmup_steps = 0;
  EXPECT_EQ(WarmupSteps(hyper, 60), 0);
}

TEST(Hyper, ARunHasNoMoreUpdatesThanACheckpointTells) {
  Hyper hyper;
  hyper.epochs = 1000;
  EXPECT_TRUE(CheckTotalSteps(hyper, 100'000).ok());
  EXPECT_EQ(TotalSteps(hyper, 100'000), limits::kMaxSteps);
  const absl::Status status = CheckTotalSteps(hyper, 100'001);
  EXPECT_EQ(ErrorReason(status), "INVALID_FIELD");
  EXPECT_NE(status.message().find("epochs is 1000"), std::string::npos) << status;
  hyper.max_steps = 3;  // it decides alone
  EXPECT_TRUE(CheckTotalSteps(hyper, 100'001).ok());
}

TEST(Hyper, MessagesShowTheNumbersThatMatter) {
  Hyper hyper;
  hyper.learning_rate = 1e-9;
  hyper.adam_epsilon = -1e-9;
  EXPECT_EQ(ValidateHyper(hyper).message(), "adam_epsilon is -1e-09; must be above 0 and at most 1");
}

TEST(Hyper, ScaleOfLoraAndRsLora) {
  Hyper hyper;
  hyper.lora_alpha = 32;
  EXPECT_DOUBLE_EQ(LoraScale(hyper, 16), 2);
  hyper.use_rslora = true;
  EXPECT_DOUBLE_EQ(LoraScale(hyper, 16), 8);
}

TEST(Hyper, EveryRangeIsChecked) {
  EXPECT_TRUE(ValidateHyper(Hyper{}).ok());
  const auto bad = [](auto change) {
    Hyper hyper;
    change(&hyper);
    return !ValidateHyper(hyper).ok();
  };
  EXPECT_TRUE(bad([](Hyper* h) { h->learning_rate = 0; }));
  EXPECT_TRUE(bad([](Hyper* h) { h->learning_rate = NAN; }));
  EXPECT_TRUE(bad([](Hyper* h) { h->lora_alpha = -1; }));
  EXPECT_TRUE(bad([](Hyper* h) { h->lora_dropout = 1; }));
  EXPECT_TRUE(bad([](Hyper* h) { h->adam_beta2 = 1; }));
  EXPECT_TRUE(bad([](Hyper* h) { h->epochs = 0; }));
  EXPECT_TRUE(bad([](Hyper* h) { h->max_steps = -1; }));
  EXPECT_TRUE(bad([](Hyper* h) { h->warmup_ratio = 1.5; }));
}

}  // namespace
}  // namespace longhaul::train
