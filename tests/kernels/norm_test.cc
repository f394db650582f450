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

struct Shape {
  int64_t rows, heads, width, gap;
};

// 1, odd, around the vector widths, whole vectors with and without a gap between rows, wider than one group of lanes.
const std::vector<Shape>& Shapes() {
  static const std::vector<Shape> shapes = {{1, 1, 1, 0},    {3, 1, 7, 3},     {2, 1, 8, 0},    {5, 1, 17, 3},
                                            {7, 1, 64, 8},   {150, 1, 129, 3}, {4, 3, 16, 8},   {7, 2, 9, 3},
                                            {9, 5, 128, 16}, {33, 3, 64, 0},   {3, 1, 1032, 8}, {2, 1, 4096, 0}};
  return shapes;
}

class NormTest : public FloatTest {
 protected:
  // Weights of the activations' type and, where that is not f32 or f64, of f32 too.
  static std::vector<DType> WeightTypes() {
    if (GetParam() == DType::kBF16) return {DType::kBF16, DType::kF32};
    return {GetParam()};
  }
  static Buffer Stat(int64_t rows, int64_t cols) { return Buffer(StatType(GetParam()), rows, cols); }
};
INSTANTIATE_TEST_SUITE_P(Types, NormTest, testing::ValuesIn(TestedTypes()), TypeName);

void CheckForward(DType dtype, DType w_dtype, const Shape& s) {
  const auto exec = MakeExec(2);
  const Buffer x = Buffer::Random(dtype, s.rows, s.heads * s.width, 1, s.gap);
  const Buffer w = Buffer::Random(w_dtype, 1, s.width, 2);
  Buffer y(dtype, s.rows, s.heads * s.width, s.gap), rstd(StatType(dtype), s.rows, s.heads);
  const auto run = [&](const Tensor& from, const Tensor& to, const Tensor& factors) {
    if (s.heads == 1) {
      RmsNorm(*exec, from, w.view(), kEps, to, factors);
    } else {
      HeadRmsNorm(*exec, from, w.view(), s.heads, kEps, to, factors);
    }
  };
  run(x.view(), y.view(), rstd.view());
  // The sum of squares has its error, of which the root takes half; rstd is rounded once to the type, y three times.
  const double sum_error = SumError(dtype, s.width);
  ExpectNear(
      rstd, [&](int64_t i, int64_t h) { return Rstd(x, i, h, s.width); },
      [&](int64_t i, int64_t h) { return (sum_error + 2 * Epsilon(dtype)) * Rstd(x, i, h, s.width); }, "rstd");
  const auto want = [&](int64_t i, int64_t j) {
    return x(i, j) * Rstd(x, i, j / s.width, s.width) * w(0, j % s.width);
  };
  ExpectNear(
      y, want,
      [&](int64_t i, int64_t j) {
        return (sum_error + 6 * Epsilon(dtype)) * std::abs(want(i, j)) + Stored(dtype, want(i, j));
      },
      "y");
  Buffer in_place = x;
  run(in_place.view(), in_place.view(), {});
  ExpectNear(
      in_place, [&](int64_t i, int64_t j) { return y(i, j); }, 0, "in place, without rstd");
}

TEST_P(NormTest, ForwardEqualsTheDefinitionAlsoInPlace) {
  for (const Shape& shape : Shapes()) {
    for (const DType w_dtype : WeightTypes()) CheckForward(GetParam(), w_dtype, shape);
  }
}

TEST_P(NormTest, AddRmsNormIsTheSumThenTheNorm) {
  const auto exec = MakeExec(2);
  for (const Shape& s : Shapes()) {
    if (s.heads != 1) continue;
    const Buffer before = Buffer::Random(GetParam(), s.rows, s.width, 1, s.gap);
    const Buffer delta = Buffer::Random(GetParam(), s.rows, s.width, 3, s.gap);
    const Buffer w = Buffer::Random(GetParam(), 1, s.width, 2);
    Buffer x = before, y(GetParam(), s.rows, s.width, s.gap), rstd = Stat(s.rows, 1);
    AddRmsNorm(*exec, delta.view(), w.view(), kEps, x.view(), y.view(), rstd.view());
    const auto sum = [&](int64_t i, int64_t j) { return before(i, j) + delta(i, j); };
    ExpectNear(
        x, sum,
        [&](int64_t i, int64_t j) { return Epsilon(GetParam()) * std::abs(sum(i, j)) + Stored(GetParam(), sum(i, j)); },
        "x");
    Buffer y_of_sum(GetParam(), s.rows, s.width, s.gap), rstd_of_sum = Stat(s.rows, 1);
    RmsNorm(*exec, x.view(), w.view(), kEps, y_of_sum.view(), rstd_of_sum.view());
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return y_of_sum(i, j); }, 0, "y");
    EXPECT_TRUE(rstd.bytes() == rstd_of_sum.bytes());
  }
}

void CheckBackward(DType dtype, DType w_dtype, const Shape& s) {
  const auto exec = MakeExec(2);
  const int64_t cols = s.heads * s.width;
  const Buffer x = Buffer::Random(dtype, s.rows, cols, 1, s.gap), w = Buffer::Random(w_dtype, 1, s.width, 2);
  const Buffer dy = Buffer::Random(dtype, s.rows, cols, 3, s.gap);
  Buffer y(dtype, s.rows, cols, s.gap), rstd(StatType(dtype), s.rows, s.heads), dx(dtype, s.rows, cols, s.gap);
  HeadRmsNorm(*exec, x.view(), w.view(), s.heads, kEps, y.view(), rstd.view());
  HeadRmsNormBackward(*exec, dy.view(), x.view(), w.view(), s.heads, rstd.view(), dx.view());

  // mean(dy w xhat) and the mean of its terms' sizes, of every head.
  Buffer mean(DType::kF64, s.rows, s.heads), size(DType::kF64, s.rows, s.heads);
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t h = 0; h < s.heads; ++h) {
      double sum = 0, absolute = 0;
      for (int64_t l = 0; l < s.width; ++l) {
        const int64_t j = h * s.width + l;
        const double term = dy(i, j) * w(0, l) * x(i, j) * Rstd(x, i, h, s.width) / static_cast<double>(s.width);
        sum += term;
        absolute += std::abs(term);
      }
      mean.Set(i, h, sum);
      size.Set(i, h, absolute);
    }
  }
  const auto want = [&](int64_t i, int64_t j) {
    const double r = Rstd(x, i, j / s.width, s.width);
    return r * (dy(i, j) * w(0, j % s.width) - x(i, j) * r * mean(i, j / s.width));
  };
  // rstd's own error and some products: 16 roundings of both terms. The mean's sum: its error times its terms' size.
  const auto tolerance = [&](int64_t i, int64_t j) {
    const double r = Rstd(x, i, j / s.width, s.width), sum_error = SumError(dtype, s.width);
    const double first = r * std::abs(dy(i, j) * w(0, j % s.width));
    const double second = r * r * std::abs(x(i, j)) * size(i, j / s.width);
    return (16 * Epsilon(dtype) + 3 * sum_error) * (first + second) + Stored(dtype, want(i, j));
  };
  ExpectNear(dx, want, tolerance, "dx");

  Buffer in_place = dy;
  HeadRmsNormBackward(*exec, in_place.view(), x.view(), w.view(), s.heads, rstd.view(), in_place.view());
  ExpectNear(
      in_place, [&](int64_t i, int64_t j) { return dx(i, j); }, 0, "over dy");
  if (s.heads != 1) return;

  const Buffer before = Buffer::Random(dtype, s.rows, cols, 5, s.gap);
  Buffer sum = before;
  RmsNormBackward(*exec, dy.view(), x.view(), w.view(), rstd.view(), true, sum.view());
  ExpectNear(
      sum, [&](int64_t i, int64_t j) { return before(i, j) + want(i, j); },
      [&](int64_t i, int64_t j) {
        return tolerance(i, j) + 2 * Epsilon(dtype) * std::abs(before(i, j)) + Stored(dtype, before(i, j) + want(i, j));
      },
      "accumulated");
  Buffer alone(dtype, s.rows, cols, s.gap);
  RmsNormBackward(*exec, dy.view(), x.view(), w.view(), rstd.view(), false, alone.view());
  EXPECT_TRUE(alone.bytes() == dx.bytes()) << "a row is a row of one head";
}

TEST_P(NormTest, BackwardAgreesWithDoubleAndAccumulates) {
  for (const Shape& shape : Shapes()) {
    for (const DType w_dtype : WeightTypes()) CheckBackward(GetParam(), w_dtype, shape);
  }
}

// What comes in is not rounded to the type: where that is bf16, the whole difference from the formula is what storing
// the result once makes.
void CheckBackwardRows(DType dtype, DType w_dtype, const Shape& s) {
  const auto exec = MakeExec(2);
  const int64_t all = 2 * s.rows + 1;  // rows of x, from the last one down: every other, and the first again and again
  const Buffer x = Buffer::Random(dtype, all, s.width, 1, s.gap), w = Buffer::Random(w_dtype, 1, s.width, 2);
  TestVector<int32_t> ids;
  for (int64_t i = 0; i < s.rows; ++i) ids.push_back(static_cast<int32_t>(all - 1 - 2 * i));
  Buffer dy = Buffer::Random(StatType(dtype), s.rows + 2, s.width, 3, s.gap);
  for (int64_t i = s.rows; i < dy.rows(); ++i) {
    ids.push_back(0);
    for (int64_t j = 0; j < s.width; ++j) dy.Set(i, j, 0);
  }
  Buffer gathered(dtype, dy.rows(), s.width), y = gathered, rstd(StatType(dtype), dy.rows(), 1);
  GatherRows(*exec, x.view(), ids.data(), gathered.view());
  RmsNorm(*exec, gathered.view(), w.view(), kEps, y.view(), rstd.view());
  const Buffer before = Buffer::Random(dtype, all, s.width, 5, s.gap);
  Buffer dx = before;
  RmsNormBackwardRows(*exec, dy.view(), x.view(), w.view(), rstd.view(), ids.data(), dx.view());

  std::vector<int64_t> row_of(static_cast<size_t>(all), -1);
  for (size_t i = 0; i < ids.size(); ++i) row_of[static_cast<size_t>(ids[i])] = static_cast<int64_t>(i);
  struct Sums {
    double mean = 0, size = 0;
  };
  std::vector<Sums> sums(static_cast<size_t>(dy.rows()));
  for (int64_t i = 0; i < dy.rows(); ++i) {
    const int64_t at = ids[static_cast<size_t>(i)];
    for (int64_t j = 0; j < s.width; ++j) {
      const double term = dy(i, j) * w(0, j) * x(at, j) * Rstd(x, at, 0, s.width) / static_cast<double>(s.width);
      sums[static_cast<size_t>(i)].mean += term;
      sums[static_cast<size_t>(i)].size += std::abs(term);
    }
  }
  const auto want = [&](int64_t at, int64_t j) {
    const int64_t i = row_of[static_cast<size_t>(at)];
    if (i < 0) return before(at, j);
    const double r = Rstd(x, at, 0, s.width);
    return r * (dy(i, j) * w(0, j) - x(at, j) * r * sums[static_cast<size_t>(i)].mean);
  };
  // As for the other backward passes.
  const auto tolerance = [&](int64_t at, int64_t j) {
    const int64_t i = row_of[static_cast<size_t>(at)];
    if (i < 0) return 0.0;
    const double r = Rstd(x, at, 0, s.width), sum_error = SumError(dtype, s.width);
    const double first = r * std::abs(dy(i, j) * w(0, j));
    const double second = r * r * std::abs(x(at, j)) * sums[static_cast<size_t>(i)].size;
    return (16 * Epsilon(dtype) + 3 * sum_error) * (first + second) + Stored(dtype, want(at, j));
  };
  ExpectNear(dx, want, tolerance, "dx");
}

TEST_P(NormTest, BackwardOfGatheredRowsRoundsOnce) {
  for (const Shape& shape : Shapes()) {
    if (shape.heads != 1) continue;
    for (const DType w_dtype : WeightTypes()) CheckBackwardRows(GetParam(), w_dtype, shape);
  }
}

TEST_P(NormTest, BitsDependOnNeitherThreadsNorCutsNorAddresses) {
  for (const int64_t cols : {333, 336}) {
    const Buffer x = Buffer::Random(GetParam(), 101, cols, 1);
    const Buffer w = Buffer::Random(GetParam(), 1, cols, 2);
    const Buffer dy = Buffer::Random(GetParam(), 101, cols, 3);
    Buffer whole(GetParam(), 101, cols);
    ExpectSameBits([&](const Exec& exec) {
      Buffer y(GetParam(), 101, cols), rstd = Stat(101, 1), dx = y;
      RmsNorm(exec, x.view(), w.view(), kEps, y.view(), rstd.view());
      RmsNormBackward(exec, dy.view(), x.view(), w.view(), rstd.view(), false, dx.view());
      whole = y;
      return std::vector<Buffer>{y, rstd, dx};
    });
    const auto exec = MakeExec(2);
    // The same values, further on in memory: by any number of elements where no vectors are used, else by a vector.
    const std::vector<int64_t> shifts = cols % 16 == 0 ? std::vector<int64_t>{16} : std::vector<int64_t>{1, 2, 3, 5};
    for (const int64_t shift : shifts) {
      const int64_t stride = cols + 48;
      Buffer moved_x(GetParam(), 101, stride), moved_y(GetParam(), 101, stride), y(GetParam(), 101, cols);
      Copy(*exec, x.view(), moved_x.view().Cols(shift, shift + cols));
      for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 40}, {40, 101}}) {
        RmsNorm(*exec, moved_x.view().Rows(begin, end).Cols(shift, shift + cols), w.view(), kEps,
                moved_y.view().Rows(begin, end).Cols(shift, shift + cols), {});
      }
      Copy(*exec, moved_y.view().Cols(shift, shift + cols), y.view());
      EXPECT_TRUE(y.bytes() == whole.bytes()) << "shift " << shift;
    }
  }
}

}  // namespace
}  // namespace longhaul::kernels
