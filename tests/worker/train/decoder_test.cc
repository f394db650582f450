#include "worker/train/decoder.h"

#include <gtest/gtest.h>

#include "tests/worker/train/rig.h"
#include "worker/train/hyper.h"

namespace longhaul::train {
namespace {

// Full-step gradients in double against central differences. h = 1e-5 gives a truncation error of about h^2 times the
// third derivative, here below 1e-8 of the largest gradient; rounding adds eps * loss / h = 1e-9.
void ExpectGradientsAreCentralDifferences(const MemoryPlan& plan, double dropout) {
  Rig rig(plan);
  rig.ops->SetDropout(dropout, 123);
  const TinyBatch tiny({5, 9, 1, 7});
  const TokenBatch batch = tiny.view();
  rig.Step(batch, 1.0);
  const std::vector<double> gradient = Values(rig.adapter->grad());
  double largest = 0;
  for (double g : gradient) largest = std::max(largest, std::abs(g));
  ASSERT_GT(largest, 1e-3);
  const double h = 1e-5;
  for (const LoraModule& m : rig.adapter->modules()) {
    const std::pair<int64_t, int64_t> ranges[] = {{m.a_offset, m.in * rig.adapter->rank()},
                                                  {m.b_offset, m.out * rig.adapter->rank()}};
    for (const auto& [offset, count] : ranges) {
      double module_norm = 0;
      for (int64_t i = 0; i < count; ++i) module_norm += std::abs(gradient[static_cast<size_t>(offset + i)]);
      EXPECT_GT(module_norm, 0) << m.layer << LoraTargetName(m.target);
      for (int64_t i = 0; i < count; i += count / 3) {
        const double value = Element(rig.adapter->master(), offset + i);
        SetElement(rig.adapter->master(), offset + i, value + h);
        const double up = rig.Loss(batch);
        SetElement(rig.adapter->master(), offset + i, value - h);
        const double down = rig.Loss(batch);
        SetElement(rig.adapter->master(), offset + i, value);
        EXPECT_NEAR(gradient[static_cast<size_t>(offset + i)], (up - down) / (2 * h), 2e-8 * largest + 1e-8)
            << m.layer << LoraTargetName(m.target) << " element " << i;
      }
    }
  }
}

TEST(Decoder, GradientsAreCentralDifferencesLlama) {
  const PlanTweaks tweaks{1, 4, 3};
  ExpectGradientsAreCentralDifferences(TinyPlan(TinyShape(), TinyTrain(ComputeType::kF64), tweaks), 0);
}

TEST(Decoder, GradientsAreCentralDifferencesQwen3Untied) {
  const PlanTweaks tweaks{1, 5, 4};
  ExpectGradientsAreCentralDifferences(TinyPlan(TinyShape(true, false), TinyTrain(ComputeType::kF64), tweaks), 0);
}

TEST(Decoder, GradientsAreCentralDifferencesWithDropout) {
  TrainShape train = TinyTrain(ComputeType::kF64);
  train.lora_dropout = true;
  ExpectGradientsAreCentralDifferences(TinyPlan(TinyShape(), train, {1, 4, 3}), 0.3);
}

TEST(Decoder, GradientsAreCentralDifferencesForEveryTargetAlone) {
  for (uint32_t targets : {1u, 2u, 4u, 8u, 16u, 32u, 64u, 0b0100101u, 0b1010010u}) {
    TrainShape train = TinyTrain(ComputeType::kF64);
    train.lora_targets = targets;
    ExpectGradientsAreCentralDifferences(TinyPlan(TinyShape(), train, {1, 6, 5}), 0);
  }
}

struct StepOutput {
  double nats;
  std::vector<double> gradient;
};

StepOutput RunStep(const ModelShape& shape, const TrainShape& train, const PlanTweaks& tweaks, int threads = 2,
                   double dropout = 0) {
  Rig rig(TinyPlan(shape, train, tweaks, threads));
  rig.ops->SetDropout(dropout, 9);
  const TinyBatch tiny({11, 3, 16, 1});
  StepOutput out;
  out.nats = rig.Step(tiny.view(), 0.25);
  out.gradient = Values(rig.adapter->grad());
  return out;
}

TEST(Decoder, F32FollowsF64) {
  for (bool qwen3 : {false, true}) {
    const StepOutput f64 = RunStep(TinyShape(qwen3), TinyTrain(ComputeType::kF64), {});
    const StepOutput f32 = RunStep(TinyShape(qwen3), TinyTrain(ComputeType::kF32), {});
    // Two layers of products of length <= 48: relative error about sqrt(48 * 20) * 2^-24 = 2e-6.
    EXPECT_NEAR(f32.nats, f64.nats, 1e-5 * f64.nats);
    EXPECT_LT(RelativeError(f32.gradient, f64.gradient), 2e-5);
  }
}

// s = alpha / sqrt(r) = 1.0041 lies between two numbers of bf16: rounded, it would be off by 4e-3, in s B, in dB or in
// both.
TEST(Decoder, TheScaleOfRsLoraIsRoundedInNeitherDirection) {
  Hyper hyper;
  hyper.lora_alpha = 1.42;
  hyper.use_rslora = true;
  const double scale = LoraScale(hyper, 2);
  ASSERT_NEAR(scale, 1.0041, 1e-4);
  const auto run = [scale](ComputeType compute) {
    Rig rig(TinyPlan(TinyShape(), TinyTrain(compute), {}), scale);
    StepOutput out;
    out.nats = rig.Step(TinyBatch({11, 3, 16, 1}).view(), 0.25);
    out.gradient = Values(rig.adapter->grad());
    return out;
  };
  const StepOutput f64 = run(ComputeType::kF64);
  const StepOutput f32 = run(ComputeType::kF32);
  // As for F32FollowsF64.
  EXPECT_NEAR(f32.nats, f64.nats, 1e-5 * f64.nats);
  EXPECT_LT(RelativeError(f32.gradient, f64.gradient), 2e-5);
}

TEST(Decoder, TilesLossTilesAndRecomputeChangeNothingInDouble) {
  for (bool qwen3 : {false, true}) {
    const TrainShape train = TinyTrain(ComputeType::kF64);
    const StepOutput whole = RunStep(TinyShape(qwen3), train, {2, 32, 32});
    for (const PlanTweaks& tweaks :
         {PlanTweaks{0, 32, 32}, {1, 32, 32}, {2, 7, 32}, {0, 7, 5}, {1, 1, 1}, {2, 31, 30}}) {
      const StepOutput other = RunStep(TinyShape(qwen3), train, tweaks);
      EXPECT_NEAR(other.nats, whole.nats, 1e-12 * whole.nats);
      EXPECT_LT(RelativeError(other.gradient, whole.gradient), 1e-12) << tweaks.token_tile_rows;
    }
  }
}

TEST(Decoder, RecomputeAndKeepAllAreBitIdenticalInF32) {
  for (double dropout : {0.0, 0.2}) {
    TrainShape train = TinyTrain(ComputeType::kF32);
    train.lora_dropout = dropout > 0;
    const StepOutput kept = RunStep(TinyShape(true), train, {2, 9, 8}, 2, dropout);
    for (int64_t k : {0, 1}) {
      const StepOutput recomputed = RunStep(TinyShape(true), train, {k, 9, 8}, 2, dropout);
      EXPECT_EQ(recomputed.nats, kept.nats);
      EXPECT_EQ(recomputed.gradient, kept.gradient);
    }
  }
}

TEST(Decoder, ThreadsChangeNothingInF32) {
  const StepOutput one = RunStep(TinyShape(), TinyTrain(ComputeType::kF32), {1, 9, 8}, 1);
  const StepOutput two = RunStep(TinyShape(), TinyTrain(ComputeType::kF32), {1, 9, 8}, 2);
  EXPECT_EQ(one.nats, two.nats);
  EXPECT_EQ(one.gradient, two.gradient);
}

TEST(Decoder, SameStepTwiceIsBitIdentical) {
  Rig rig(TinyPlan(TinyShape(), TinyTrain(ComputeType::kF32), {1, 9, 8}));
  const TinyBatch tiny({11, 3, 16, 1});
  const double first = rig.Step(tiny.view(), 0.25);
  const std::vector<double> gradient = Values(rig.adapter->grad());
  kernels::Zero(*rig.exec, rig.adapter->grad());
  EXPECT_EQ(rig.Step(tiny.view(), 0.25), first);
  EXPECT_EQ(Values(rig.adapter->grad()), gradient);
}

TEST(Decoder, KeepGoingFalseStopsBetweenLayers) {
  Rig rig(TinyPlan(TinyShape(), TinyTrain(ComputeType::kF32)));
  const TinyBatch tiny({4});
  int asked = 0;
  EXPECT_FALSE(rig.decoder->Forward(rig.ops->Bring(tiny.view()), [&] { return ++asked < 2; }));
  EXPECT_EQ(asked, 2);
}

TEST(CutCrossEntropy, RowsWithoutTargetGetZeroGradient) {
  Rig rig(TinyPlan(TinyShape(), TinyTrain(ComputeType::kF64)));
  const TinyBatch tiny({20});
  const TokenBatch batch = tiny.view();
  ASSERT_TRUE(rig.decoder->Forward(rig.ops->Bring(batch), Rig::Go));
  const kernels::Tensor d_x = rig.decoder->DStream(batch.rows);
  for (int64_t i = 0; i < d_x.rows * d_x.cols; ++i) SetElement(d_x, i, NAN);
  const LossSum sum = rig.loss->Run(batch, rig.decoder->Stream(2, batch.rows), 1.0, d_x);
  EXPECT_EQ(sum.targets, tiny.targets());
  for (int64_t i = 0; i < batch.rows; ++i) {
    double norm = 0;
    for (int64_t c = 0; c < d_x.cols; ++c) norm += std::abs(Element(d_x, i * d_x.cols + c));
    EXPECT_EQ(norm > 0, batch.labels[i] != -100) << i;
  }
}

}  // namespace
}  // namespace longhaul::train
