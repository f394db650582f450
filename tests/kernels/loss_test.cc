#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

double LogSumExp(const Buffer& x, int64_t row) {
  double largest = x(row, 0), sum = 0;
  for (int64_t j = 0; j < x.cols(); ++j) largest = std::max(largest, x(row, j));
  for (int64_t j = 0; j < x.cols(); ++j) sum += std::exp(x(row, j) - largest);
  return largest + std::log(sum);
}

double NaiveLoss(const Buffer& x, const TestVector<int32_t>& labels) {
  double loss = 0;
  for (int64_t i = 0; i < x.rows(); ++i) {
    const int32_t label = labels[static_cast<size_t>(i)];
    if (label != -100) loss += LogSumExp(x, i) - x(i, label);
  }
  return loss;
}

class LossTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, LossTest, testing::ValuesIn(TestedTypes()), TypeName);

// Trained and not trained rows, labels all over the vocabulary.
TestVector<int32_t> Labels(int64_t rows, int64_t vocab) {
  TestVector<int32_t> labels;
  for (int64_t i = 0; i < rows; ++i) labels.push_back(i % 3 == 1 ? kNotTrained : static_cast<int32_t>((i * 7) % vocab));
  return labels;
}

Buffer RandomLogits(DType dtype, int64_t rows, int64_t vocab, int64_t gap, double deviation, double offset) {
  Buffer logits = Buffer::Random(dtype, rows, vocab, 1, gap, deviation);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < vocab; ++j) logits.Set(i, j, logits(i, j) + offset);
  }
  return logits;
}

// The exponentials are relative to the largest logit, so the error is that of x - max, a rounding of |x|, and of a few
// operations, in every row.
double RowError(DType dtype, double deviation, double offset) {
  return Epsilon(dtype) * (16 + 4 * (5 * deviation + std::abs(offset)));
}

constexpr double kScale = 0.125;

void ExpectGradient(const Buffer& gradient, const Buffer& before, const TestVector<int32_t>& labels, int64_t first_col,
                    const std::vector<double>& lse, double row_error) {
  const auto want = [&](int64_t i, int64_t j) {
    const int32_t label = labels[static_cast<size_t>(i)];
    if (label == kNotTrained) return 0.0;
    return kScale * (std::exp(before(i, j) - lse[static_cast<size_t>(i)]) - (first_col + j == label ? 1 : 0));
  };
  ExpectNear(
      gradient, want, [&](int64_t i, int64_t j) { return kScale * row_error + Stored(gradient.dtype(), want(i, j)); },
      "gradient");
}

void CheckTile(DType dtype, int64_t rows, int64_t vocab, int64_t gap, double deviation, double offset) {
  const auto exec = MakeExec(2);
  Buffer logits = RandomLogits(dtype, rows, vocab, gap, deviation, offset);
  const Buffer before = logits;
  const TestVector<int32_t> labels = Labels(rows, vocab);
  double trained = 0;
  for (const int32_t label : labels) trained += label != kNotTrained;

  const double row_error = RowError(dtype, deviation, offset);
  Shared<LossTotals> totals({0.5, 100});
  Buffer lse(StatType(dtype), rows, 1);
  LossTile(*exec, logits.view(), labels.data(), nullptr, lse.view(), totals.get());
  const double loss = totals.value().nats;
  EXPECT_NEAR(loss, 0.5 + NaiveLoss(before, labels), row_error * trained + 1e-14 * loss);
  EXPECT_TRUE(logits.bytes() == before.bytes()) << "without a gradient the logits stay";
  std::vector<double> want_lse;
  for (int64_t i = 0; i < rows; ++i) want_lse.push_back(LogSumExp(before, i));
  ExpectNear(
      lse,
      [&](int64_t i, int64_t) {
        return labels[static_cast<size_t>(i)] == kNotTrained ? 0 : want_lse[static_cast<size_t>(i)];
      },
      row_error, "lse");

  int64_t want_correct = 100;
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t label = labels[static_cast<size_t>(i)];
    bool largest = label != kNotTrained;
    for (int64_t j = 0; largest && j < vocab; ++j) largest = before(i, j) <= before(i, label);
    want_correct += largest;
  }
  EXPECT_EQ(totals.value().correct, want_correct);

  Shared<LossTotals> again({0.5, 100});
  Shared<double> scale(kScale);
  LossTile(*exec, logits.view(), labels.data(), scale.get(), {}, again.get());
  EXPECT_EQ(loss, again.value().nats);
  EXPECT_EQ(want_correct, again.value().correct);
  ExpectGradient(logits, before, labels, 0, want_lse, row_error);
}

TEST_P(LossTest, EqualsTheDefinition) {
  struct Shape {
    int64_t rows, vocab, gap;
  };
  for (const auto& [rows, vocab, gap] : std::vector<Shape>{{1, 1, 0},
                                                           {1, 2, 3},
                                                           {4, 7, 3},
                                                           {5, 16, 8},
                                                           {7, 33, 3},
                                                           {40, 3001, 3},
                                                           {9, 2048, 0},
                                                           {9, 16'392, 8},
                                                           {3, 128'256, 0}}) {
    CheckTile(GetParam(), rows, vocab, gap, 3, 0);
  }
}

TEST_P(LossTest, FlatAndHugeLogits) {
  for (const int64_t vocab : {1025, 1032}) {
    CheckTile(GetParam(), 5, vocab, 8, 0, 0);     // flat: loss is log(vocab) exactly
    CheckTile(GetParam(), 5, vocab, 8, 0, 1000);  // flat and far from zero: e^1000 is no number
    CheckTile(GetParam(), 5, vocab, 8, 200, 0);   // one column has everything
    CheckTile(GetParam(), 5, vocab, 8, 50, -500);
  }
}

// What UpdateLoss leaves over tiles of columns, which are views of one matrix or matrices of their own.
struct OverTiles {
  Buffer largest, sum, label_logit, lse;
  Buffer weights;  // [rows, vocab], of the logits' type or bf16
  Buffer sums;     // [rows, 3]: 1 before the first tile but one
  LossTotals totals;
};

using Tiles = std::vector<std::pair<int64_t, int64_t>>;

OverTiles RunOverTiles(const Exec& exec, const Buffer& logits, const TestVector<int32_t>& labels, const Tiles& tiles,
                       DType weights_type, bool in_place) {
  const DType stat = StatType(logits.dtype());
  const Buffer column(stat, logits.rows(), 1);
  OverTiles out{column,
                column,
                column,
                column,
                Buffer(weights_type, logits.rows(), logits.cols(), 8),
                Buffer(stat, logits.rows(), 3),
                {}};
  for (int64_t i = 0; i < logits.rows(); ++i) {
    for (int64_t j = 0; j < 3; ++j) out.sums.Set(i, j, 1);
  }
  const LossRows running{out.largest.view(), out.sum.view(), out.label_logit.view()};
  Buffer values = logits;
  BeginLoss(exec, running);
  for (const auto& [begin, end] : tiles) {
    const Tensor tile = values.view().Cols(begin, end), weights = out.weights.view().Cols(begin, end);
    UpdateLoss(exec, tile, begin, labels.data(), running, in_place ? tile : weights,
               begin > 0 ? out.sums.view() : Tensor{});
    if (in_place) Copy(exec, tile, weights);
  }
  Shared<LossTotals> totals;
  FinishLoss(exec, running, labels.data(), out.lse.view(), totals.get());
  out.totals = totals.value();
  return out;
}

TEST_P(LossTest, OnePassOverTilesOfTheVocabularyGivesTheSame) {
  const auto exec = MakeExec(2);
  constexpr int64_t kRows = 7;
  for (const Tiles& tiles :
       {Tiles{{0, 400}, {400, 417}, {417, 1000}}, Tiles{{0, 33}}, Tiles{{0, 24'576}, {24'576, 40'000}}}) {
    const int64_t vocab = tiles.back().second;
    SCOPED_TRACE(vocab);
    const Buffer before = RandomLogits(GetParam(), kRows, vocab, 8, 3, 0);
    const TestVector<int32_t> labels = Labels(kRows, vocab);
    const double row_error = 2 * RowError(GetParam(), 3, 0);  // the sum is scaled from tile to tile
    const OverTiles out = RunOverTiles(*exec, before, labels, tiles, GetParam(), /*in_place=*/true);
    EXPECT_NEAR(out.totals.nats, NaiveLoss(before, labels), row_error * kRows);

    Buffer whole = before;
    Shared<LossTotals> of_whole;
    LossTile(*exec, whole.view(), labels.data(), nullptr, {}, of_whole.get());
    EXPECT_EQ(out.totals.correct, of_whole.value().correct);
    EXPECT_NEAR(out.totals.nats, of_whole.value().nats, row_error * kRows);

    // The largest logit before each column's tile ends, which weights are relative to.
    Buffer largest(DType::kF64, kRows, vocab);
    for (int64_t i = 0; i < kRows; ++i) {
      double so_far = -INFINITY;
      for (const auto& [begin, end] : tiles) {
        for (int64_t j = begin; j < end; ++j) so_far = std::max(so_far, before(i, j));
        for (int64_t j = begin; j < end; ++j) largest.Set(i, j, so_far);
      }
    }
    const auto want = [&](int64_t i, int64_t j) {
      const int32_t label = labels[static_cast<size_t>(i)];
      return label == kNotTrained || label == j ? 0.0 : std::exp(before(i, j) - largest(i, j));
    };
    ExpectNear(
        out.weights, want,
        [&](int64_t i, int64_t j) { return row_error * want(i, j) + Stored(out.weights.dtype(), want(i, j)); },
        "weights");
    ExpectNear(
        out.sums,
        [&](int64_t i, int64_t) {
          if (labels[static_cast<size_t>(i)] == kNotTrained) return 1.0;
          return std::exp(largest(i, 0) - largest(i, largest.cols() - 1));
        },
        row_error, "sums");
  }
}

TEST_P(LossTest, WeightsMayLieApartAndBitsStay) {
  const auto exec = MakeExec(1);
  // Rows of 1,008 elements, as the weights': what is aligned otherwise is added in another order.
  const Buffer logits = Buffer::Random(GetParam(), 5, 1000, 1, 8, 5);
  const TestVector<int32_t> labels = Labels(5, 1000);
  const Tiles tiles = {{0, 512}, {512, 1000}};
  const OverTiles in_place = RunOverTiles(*exec, logits, labels, tiles, GetParam(), true);
  const OverTiles apart = RunOverTiles(*exec, logits, labels, tiles, GetParam(), false);
  EXPECT_TRUE(in_place.weights.bytes() == apart.weights.bytes());
  EXPECT_TRUE(in_place.sum.bytes() == apart.sum.bytes());
  EXPECT_EQ(in_place.totals.nats, apart.totals.nats);
}

TEST_P(LossTest, NothingButMinusInfinityInATile) {
  const auto exec = MakeExec(1);
  Buffer logits = Buffer::Random(GetParam(), 2, 80, 1);
  for (int64_t j = 0; j < 40; ++j) logits.Set(0, j, -std::numeric_limits<double>::infinity());
  for (int64_t j = 40; j < 80; ++j) logits.Set(1, j, -std::numeric_limits<double>::infinity());
  const TestVector<int32_t> labels = {50, 3};
  const OverTiles out = RunOverTiles(*exec, logits, labels, {{0, 40}, {40, 80}}, GetParam(), true);
  EXPECT_NEAR(out.totals.nats, NaiveLoss(logits, labels), 2 * RowError(GetParam(), 1, 0));
  for (int64_t j = 0; j < 40; ++j) {
    EXPECT_EQ(out.weights(0, j), 0);
    EXPECT_EQ(out.weights(1, 40 + j), 0);
  }
}

TEST_P(LossTest, RowsThatAreNotTrainedMayHoldAnything) {
  const auto exec = MakeExec(1);
  for (const int64_t vocab : {9, 64}) {
    Buffer logits(GetParam(), 2, vocab);  // NaN
    const TestVector<int32_t> labels = {kNotTrained, kNotTrained};
    Shared<LossTotals> totals;
    Shared<double> scale(1);
    LossTile(*exec, logits.view(), labels.data(), scale.get(), {}, totals.get());
    EXPECT_EQ(totals.value().nats, 0);
    EXPECT_EQ(totals.value().correct, 0);
    ExpectNear(
        logits, [](int64_t, int64_t) { return 0.0; }, 0, "gradient");
  }
}

TEST_P(LossTest, NonFiniteLogitsGiveANonFiniteLoss) {
  const auto exec = MakeExec(1);
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const int64_t vocab : {40, 41}) {
      Buffer logits = Buffer::Random(GetParam(), 1, vocab, 1);
      logits.Set(0, 11, bad);
      const TestVector<int32_t> labels = {3};
      Shared<LossTotals> totals;
      LossTile(*exec, logits.view(), labels.data(), nullptr, {}, totals.get());
      EXPECT_FALSE(std::isfinite(totals.value().nats));
    }
  }
}

TEST_P(LossTest, ColumnsOfMinusInfinityHaveNoProbability) {
  const auto exec = MakeExec(1);
  Buffer logits = Buffer::Random(GetParam(), 1, 64, 1);
  for (int64_t j = 0; j < 40; ++j) logits.Set(0, j, -std::numeric_limits<double>::infinity());
  const Buffer before = logits;
  const TestVector<int32_t> labels = {50};
  Shared<LossTotals> totals;
  Shared<double> scale(kScale);
  LossTile(*exec, logits.view(), labels.data(), scale.get(), {}, totals.get());
  EXPECT_NEAR(totals.value().nats, NaiveLoss(before, labels), RowError(GetParam(), 1, 0));
  ExpectGradient(logits, before, labels, 0, {LogSumExp(before, 0)}, RowError(GetParam(), 1, 0));
}

TEST_P(LossTest, BitsDependOnNeitherThreadsNorTiles) {
  const Buffer logits = Buffer::Random(GetParam(), 30, 2504, 1);
  TestVector<int32_t> labels;
  for (int32_t i = 0; i < 30; ++i) labels.push_back(i * 11);
  Shared<double> scale(0.1);
  double whole = 0;
  ExpectSameBits([&](const Exec& exec) {
    Buffer gradient = logits, lse(StatType(GetParam()), 30, 1);
    Shared<LossTotals> totals;
    LossTile(exec, gradient.view(), labels.data(), scale.get(), lse.view(), totals.get());
    whole = totals.value().nats;
    Buffer loss(DType::kF64, 1, 1);
    loss.Set(0, 0, whole);
    return std::vector<Buffer>{gradient, lse, loss};
  });
  const auto exec = MakeExec(2);
  Shared<LossTotals> parts;
  LossTile(*exec, logits.view().Rows(0, 11), labels.data(), nullptr, {}, parts.get());
  LossTile(*exec, logits.view().Rows(11, 30), labels.data() + 11, nullptr, {}, parts.get());
  EXPECT_EQ(parts.value().nats, whole);
}

}  // namespace
}  // namespace longhaul::kernels
