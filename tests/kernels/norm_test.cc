#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

constexpr double kEps = 1e-5;

// 1 / sqrt(mean square + eps) of one head of a row.
double Rstd(const Buffer& x, int64_t row, int64_t head, int64_t width) {
  double squares = 0;
  for (int64_t j = 0; j < width; ++j) squares += x(row, head * width + j) * x(row, head * width + j);
  return 1 / std::sqrt(squares / static_cast<double>(width) + kEps);
}

class NormTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, NormTest, testing::Values(DType::kF32, DType::kF64), TypeName);

TEST_P(NormTest, ForwardEqualsTheDefinitionAlsoInPlace) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, heads, width] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 1}, {3, 1, 7}, {2, 1, 8}, {5, 1, 17}, {150, 1, 129}, {4, 3, 16}, {7, 2, 9}}) {
    const Buffer x = Buffer::Random(GetParam(), rows, heads * width, 1, 3);
    const Buffer w = Buffer::Random(GetParam(), 1, width, 2);
    Buffer y(GetParam(), rows, heads * width, 1), rstd(GetParam(), rows, heads);
    const auto run = [&](const Tensor& from, const Tensor& to, const Tensor& factors) {
      if (heads == 1) {
        RmsNorm(*exec, from, w.view(), kEps, to, factors);
      } else {
        HeadRmsNorm(*exec, from, w.view(), heads, kEps, to, factors);
      }
    };
    run(x.view(), y.view(), rstd.view());
    // The squares are summed in double, here and there, in another order: `width` roundings of 2^-53 each at most. Then
    // rstd is rounded once to the type, y three times.
    const double sum_error = static_cast<double>(2 * width) * 0x1p-53;
    ExpectNear(
        rstd, [&](int64_t i, int64_t h) { return Rstd(x, i, h, width); },
        [&](int64_t i, int64_t h) { return (sum_error + 2 * Epsilon(GetParam())) * Rstd(x, i, h, width); }, "rstd");
    const auto want = [&](int64_t i, int64_t j) { return x(i, j) * Rstd(x, i, j / width, width) * w(0, j % width); };
    ExpectNear(
        y, want, [&](int64_t i, int64_t j) { return (sum_error + 6 * Epsilon(GetParam())) * std::abs(want(i, j)); },
        "y");
    Buffer in_place = x;
    run(in_place.view(), in_place.view(), {});
    ExpectNear(
        in_place, [&](int64_t i, int64_t j) { return y(i, j); }, 0, "in place, without rstd");
  }
}

TEST_P(NormTest, BackwardAgreesWithDoubleAndAccumulates) {
  const auto exec = MakeExec(2);
  constexpr int64_t kRows = 70, kCols = 257;
  const Buffer x = Buffer::Random(GetParam(), kRows, kCols, 1, 2), w = Buffer::Random(GetParam(), 1, kCols, 2);
  const Buffer dy = Buffer::Random(GetParam(), kRows, kCols, 3, 1);
  Buffer y(GetParam(), kRows, kCols), rstd(GetParam(), kRows, 1);
  RmsNorm(*exec, x.view(), w.view(), kEps, y.view(), rstd.view());
  Buffer dx(GetParam(), kRows, kCols, 4);
  RmsNormBackward(*exec, dy.view(), x.view(), w.view(), rstd.view(), false, dx.view());
  const auto want = [&](int64_t i, int64_t j) {
    const double r = Rstd(x, i, 0, kCols);
    double mean = 0;
    for (int64_t l = 0; l < kCols; ++l) mean += dy(i, l) * w(0, l) * x(i, l) * r / kCols;
    return r * (dy(i, j) * w(0, j) - x(i, j) * r * mean);
  };
  // Terms of size |dy w| and |x| times a mean below 1 for these inputs; rstd is near 1. Products inside the mean are
  // rounded, their sum is in double: 16 roundings of the terms' size.
  const auto size = [&](int64_t i, int64_t j) {
    return 16 * Epsilon(GetParam()) * (std::abs(dy(i, j) * w(0, j)) + std::abs(x(i, j)));
  };
  ExpectNear(dx, want, size, "dx");

  const Buffer before = Buffer::Random(GetParam(), kRows, kCols, 5);
  Buffer sum = before;
  RmsNormBackward(*exec, dy.view(), x.view(), w.view(), rstd.view(), true, sum.view());
  ExpectNear(
      sum, [&](int64_t i, int64_t j) { return before(i, j) + want(i, j); },
      [&](int64_t i, int64_t j) { return size(i, j) + 2 * Epsilon(GetParam()) * std::abs(before(i, j)); },
      "accumulated");

  Buffer in_place = dy;
  RmsNormBackward(*exec, in_place.view(), x.view(), w.view(), rstd.view(), false, in_place.view());
  ExpectNear(
      in_place, [&](int64_t i, int64_t j) { return dx(i, j); }, 0, "over dy");
}

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

TEST_P(NormTest, BitsDependOnNeitherThreadsNorCutsNorAddresses) {
  const Buffer x = Buffer::Random(GetParam(), 101, 333, 1);
  const Buffer w = Buffer::Random(GetParam(), 1, 333, 2);
  const Buffer dy = Buffer::Random(GetParam(), 101, 333, 3);
  Buffer whole(GetParam(), 101, 333);
  ExpectSameBits([&](const Exec& exec) {
    Buffer y(GetParam(), 101, 333), rstd(GetParam(), 101, 1), dx = y;
    RmsNorm(exec, x.view(), w.view(), kEps, y.view(), rstd.view());
    RmsNormBackward(exec, dy.view(), x.view(), w.view(), rstd.view(), false, dx.view());
    whole = y;
    return std::vector<Buffer>{y, rstd, dx};
  });
  const auto exec = MakeExec(2);
  for (const int64_t shift : {1, 2, 3, 5}) {
    // The same values, one or more elements further on in memory.
    Buffer moved_x(GetParam(), 101, 340), moved_y(GetParam(), 101, 340), y(GetParam(), 101, 333);
    Copy(*exec, x.view(), moved_x.view().Cols(shift, shift + 333));
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 40}, {40, 101}}) {
      RmsNorm(*exec, moved_x.view().Rows(begin, end).Cols(shift, shift + 333), w.view(), kEps,
              moved_y.view().Rows(begin, end).Cols(shift, shift + 333), {});
    }
    Copy(*exec, moved_y.view().Cols(shift, shift + 333), y.view());
    EXPECT_TRUE(y.bytes() == whole.bytes()) << "shift " << shift;
  }
}

}  // namespace
}  // namespace longhaul::kernels
