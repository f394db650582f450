// Backward passes against central differences, in f64 on the CPU; and what only the CPU backend checks.
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

constexpr double kEps = 1e-5;

TEST(RmsNormTest, BackwardMatchesCentralDifferences) {
  const auto exec = MakeExec(1);
  Buffer x = Buffer::Random(DType::kF64, 3, 7, 1);
  const Buffer w = Buffer::Random(DType::kF64, 1, 7, 2), dy = Buffer::Random(DType::kF64, 3, 7, 3);
  Buffer y(DType::kF64, 3, 7), rstd(DType::kF64, 3, 1), dx(DType::kF64, 3, 7);
  const auto f = [&] {
    RmsNorm(*exec, x.view(), w.view(), kEps, y.view(), rstd.view());
    return WeightedSum(dy, y);
  };
  f();
  RmsNormBackward(*exec, dy.view(), x.view(), w.view(), rstd.view(), false, dx.view());
  ExpectGradient(x, dx, f, "x");
}

TEST(HeadRmsNormTest, BackwardMatchesCentralDifferencesAlsoOverDy) {
  const auto exec = MakeExec(1);
  constexpr int64_t kHeads = 3;
  Buffer x = Buffer::Random(DType::kF64, 2, 12, 1);
  const Buffer w = Buffer::Random(DType::kF64, 1, 4, 2), dy = Buffer::Random(DType::kF64, 2, 12, 3);
  Buffer y(DType::kF64, 2, 12), rstd(DType::kF64, 2, kHeads);
  const auto f = [&] {
    HeadRmsNorm(*exec, x.view(), w.view(), kHeads, kEps, y.view(), rstd.view());
    return WeightedSum(dy, y);
  };
  f();
  Buffer dx = dy;
  HeadRmsNormBackward(*exec, dx.view(), x.view(), w.view(), kHeads, rstd.view(), dx.view());
  ExpectGradient(x, dx, f, "x");
}

TEST(HeadRmsNormRopeTest, BackwardMatchesCentralDifferencesAlsoOverDy) {
  const auto exec = MakeExec(1);
  constexpr int64_t kHeads = 3;
  Buffer x = Buffer::Random(DType::kF64, 2, 12, 1);
  const Buffer w = Buffer::Random(DType::kF64, 1, 4, 2), dy = Buffer::Random(DType::kF64, 2, 12, 3);
  // Any tables: the gradient of a turn is the transposed matrix, not its inverse.
  const Buffer cos = Buffer::Random(DType::kF64, 5, 2, 4), sin = Buffer::Random(DType::kF64, 5, 2, 5);
  const TestVector<int32_t> positions = {4, 1};
  const Rotation rotation{cos.view(), sin.view(), positions.data()};
  Buffer y(DType::kF64, 2, 12), rstd(DType::kF64, 2, kHeads);
  const auto f = [&] {
    HeadRmsNormRope(*exec, x.view(), w.view(), kHeads, kEps, rotation, {}, y.view(), rstd.view());
    return WeightedSum(dy, y);
  };
  f();
  Buffer dx = dy;
  HeadRmsNormRopeBackward(*exec, dx.view(), x.view(), w.view(), kHeads, rstd.view(), rotation, dx.view());
  ExpectGradient(x, dx, f, "x");
}

void CheckGated(decltype(&SwiGlu) forward, decltype(&SwiGluBackward) backward) {
  const auto exec = MakeExec(1);
  Buffer gate = Buffer::Random(DType::kF64, 3, 5, 1), up = Buffer::Random(DType::kF64, 3, 5, 2);
  const Buffer dy = Buffer::Random(DType::kF64, 3, 5, 3);
  Buffer dgate(DType::kF64, 3, 5), dup(DType::kF64, 3, 5), y(DType::kF64, 3, 5);
  backward(*exec, dy.view(), gate.view(), up.view(), dgate.view(), dup.view(), {});
  const auto f = [&] {
    forward(*exec, gate.view(), up.view(), y.view());
    return WeightedSum(dy, y);
  };
  ExpectGradient(gate, dgate, f, "gate");
  ExpectGradient(up, dup, f, "up");
}

TEST(SwiGluTest, BackwardMatchesCentralDifferences) { CheckGated(SwiGlu, SwiGluBackward); }
TEST(GeGluTest, BackwardMatchesCentralDifferences) { CheckGated(GeGlu, GeGluBackward); }

TEST(LossTileTest, GradientMatchesCentralDifferences) {
  const auto exec = MakeExec(1);
  Buffer logits = Buffer::Random(DType::kF64, 4, 9, 1);
  const TestVector<int32_t> labels = {2, kNotTrained, 8, 0};
  Buffer gradient = logits;
  Shared<double> scale(0.5);
  Shared<LossTotals> ignored;
  LossTile(*exec, gradient.view(), labels.data(), scale.get(), {}, ignored.get());
  ExpectGradient(
      logits, gradient,
      [&] {
        Shared<LossTotals> totals;
        LossTile(*exec, logits.view(), labels.data(), nullptr, {}, totals.get());
        return 0.5 * totals.value().nats;
      },
      "logits");
}

TEST(GatherRowsDeathTest, AnIdPastTheTableIsABug) {
  const auto exec = MakeExec(1);
  const Buffer table(DType::kF32, 4, 2), y(DType::kF32, 1, 2);
  const int32_t id = 4;
  EXPECT_DEATH(GatherRows(*exec, table.view(), &id, y.view()), "ids");
}

TEST(LossTileDeathTest, ALabelPastTheVocabularyIsABug) {
  const auto exec = MakeExec(1);
  const Buffer logits(DType::kF32, 1, 4);
  const int32_t label = 4;
  LossTotals totals;
  EXPECT_DEATH(LossTile(*exec, logits.view(), &label, nullptr, {}, &totals), "labels");
}

}  // namespace
}  // namespace longhaul::kernels
