#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

double LogSumExp(const Buffer& x, int64_t row) {
  double largest = x(row, 0), sum = 0;
  for (int64_t j = 0; j < x.cols(); ++j) largest = std::max(largest, x(row, j));
  for (int64_t j = 0; j < x.cols(); ++j) sum += std::exp(x(row, j) - largest);
  return largest + std::log(sum);
}

double NaiveLoss(const Buffer& x, const std::vector<int32_t>& labels) {
  double loss = 0;
  for (int64_t i = 0; i < x.rows(); ++i) {
    const int32_t label = labels[static_cast<size_t>(i)];
    if (label != -100) loss += LogSumExp(x, i) - x(i, label);
  }
  return loss;
}

class LossTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, LossTest, testing::Values(DType::kF32, DType::kF64), TypeName);

void CheckTile(DType dtype, int64_t rows, int64_t vocab, double deviation, double offset) {
  const auto exec = MakeExec(2);
  Buffer logits = Buffer::Random(dtype, rows, vocab, 1, 3, deviation);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < vocab; ++j) logits.Set(i, j, logits(i, j) + offset);
  }
  const Buffer before = logits;
  std::vector<int32_t> labels;
  int64_t trained = 0;
  for (int64_t i = 0; i < rows; ++i) labels.push_back(i % 3 == 1 ? -100 : static_cast<int32_t>((i * 7) % vocab));
  for (const int32_t label : labels) trained += label != -100;

  // The exponentials are relative to the largest logit, so the error is that of x - max, a rounding of |x|, and of a
  // few operations, in every row.
  const double row_error = Epsilon(dtype) * (16 + 4 * (5 * deviation + std::abs(offset)));
  double loss = 0.5;
  LossTile(*exec, logits.view(), labels.data(), 0, &loss, nullptr);
  EXPECT_NEAR(loss, 0.5 + NaiveLoss(before, labels), row_error * static_cast<double>(trained) + 1e-14 * loss);
  EXPECT_TRUE(logits.bytes() == before.bytes()) << "without a gradient the logits stay";

  constexpr double kScale = 0.125;
  double loss_again = 0.5;
  int64_t correct = 100, want_correct = 100;
  LossTile(*exec, logits.view(), labels.data(), kScale, &loss_again, &correct);
  EXPECT_EQ(loss, loss_again);
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t label = labels[static_cast<size_t>(i)];
    bool largest = label != -100;
    for (int64_t j = 0; largest && j < vocab; ++j) largest = before(i, j) <= before(i, label);
    want_correct += largest;
  }
  EXPECT_EQ(correct, want_correct);
  std::vector<double> lse;
  for (int64_t i = 0; i < rows; ++i) lse.push_back(LogSumExp(before, i));
  ExpectNear(
      logits,
      [&](int64_t i, int64_t j) {
        const int32_t label = labels[static_cast<size_t>(i)];
        if (label == -100) return 0.0;
        return kScale * (std::exp(before(i, j) - lse[static_cast<size_t>(i)]) - (j == label ? 1 : 0));
      },
      kScale * row_error, "gradient");
}

TEST_P(LossTest, EqualsTheDefinition) {
  for (const auto& [rows, vocab] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 2}, {4, 7}, {5, 16}, {7, 33}, {40, 3001}}) {
    CheckTile(GetParam(), rows, vocab, 3, 0);
  }
}

TEST_P(LossTest, FlatAndHugeLogits) {
  CheckTile(GetParam(), 5, 1025, 0, 0);     // flat: loss is log(vocab) exactly
  CheckTile(GetParam(), 5, 1025, 0, 1000);  // flat and far from zero: e^1000 is no number
  CheckTile(GetParam(), 5, 1025, 200, 0);   // one column has everything
  CheckTile(GetParam(), 5, 1025, 50, -500);
}

TEST_P(LossTest, RowsThatAreNotTrainedMayHoldAnything) {
  const auto exec = MakeExec(1);
  Buffer logits(GetParam(), 2, 9);  // NaN
  const std::vector<int32_t> labels = {-100, -100};
  double loss = 0;
  int64_t correct = 0;
  LossTile(*exec, logits.view(), labels.data(), 1, &loss, &correct);
  EXPECT_EQ(loss, 0);
  EXPECT_EQ(correct, 0);
  ExpectNear(
      logits, [](int64_t, int64_t) { return 0.0; }, 0, "gradient");
}

TEST_P(LossTest, NonFiniteLogitsGiveANonFiniteLoss) {
  const auto exec = MakeExec(1);
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    Buffer logits = Buffer::Random(GetParam(), 1, 40, 1);
    logits.Set(0, 11, bad);
    const int32_t label = 3;
    double loss = 0;
    LossTile(*exec, logits.view(), &label, 0, &loss, nullptr);
    EXPECT_FALSE(std::isfinite(loss));
  }
}

TEST(LossTileTest, GradientMatchesCentralDifferences) {
  const auto exec = MakeExec(1);
  Buffer logits = Buffer::Random(DType::kF64, 4, 9, 1);
  const std::vector<int32_t> labels = {2, -100, 8, 0};
  Buffer gradient = logits;
  double ignored = 0;
  LossTile(*exec, gradient.view(), labels.data(), 0.5, &ignored, nullptr);
  ExpectGradient(
      logits, gradient,
      [&] {
        double loss = 0;
        LossTile(*exec, logits.view(), labels.data(), 0, &loss, nullptr);
        return 0.5 * loss;
      },
      "logits");
}

TEST_P(LossTest, BitsDependOnNeitherThreadsNorTiles) {
  const Buffer logits = Buffer::Random(GetParam(), 30, 2500, 1);
  std::vector<int32_t> labels;
  for (int32_t i = 0; i < 30; ++i) labels.push_back(i * 11);
  double whole = 0;
  ExpectSameBits([&](const Exec& exec) {
    Buffer gradient = logits, loss(DType::kF64, 1, 1);
    loss.Set(0, 0, 0);
    LossTile(exec, gradient.view(), labels.data(), 0.1, loss.view().as<double>(), nullptr);
    whole = loss(0, 0);
    return std::vector<Buffer>{gradient, loss};
  });
  const auto exec = MakeExec(2);
  double parts = 0;
  LossTile(*exec, logits.view().Rows(0, 11), labels.data(), 0, &parts, nullptr);
  LossTile(*exec, logits.view().Rows(11, 30), labels.data() + 11, 0, &parts, nullptr);
  EXPECT_EQ(parts, whole);
}

}  // namespace
}  // namespace longhaul::kernels
