// Norm and rotation in one op, against their formulas in double.
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

constexpr double kEps = 1e-5;
constexpr int64_t kPositions = 200;

struct Shape {
  int64_t rows, heads, half, gap;
};

// Heads of 2 to 1,024 elements: odd halves, whole vectors with and without a gap, as many as lanes hold and more.
const std::vector<Shape>& Shapes() {
  static const std::vector<Shape> shapes = {{1, 1, 1, 3},   {5, 2, 3, 3},   {7, 3, 8, 8},    {41, 4, 32, 3},
                                            {3, 1, 17, 3},  {90, 9, 32, 0}, {33, 5, 64, 16}, {3, 2, 128, 0},
                                            {2, 2, 512, 8}, {2, 1, 129, 16}};
  return shapes;
}

// A call's operands; the formula of both passes.
class Case {
 public:
  Case(DType dtype, DType w_dtype, const Shape& s)
      : dtype_(dtype),
        s_(s),
        x(Buffer::Random(dtype, s.rows, s.heads * 2 * s.half, 1, s.gap)),
        w(Buffer::Random(w_dtype, 1, 2 * s.half, 2)),
        dy(Buffer::Random(dtype, s.rows, s.heads * 2 * s.half, 3, s.gap)),
        cos_(StatType(dtype), kPositions, s.half),
        sin_(StatType(dtype), kPositions, s.half) {
    for (int64_t p = 0; p < kPositions; ++p) {
      for (int64_t i = 0; i < s.half; ++i) {
        const double angle =
            static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(s.half));
        cos_.Set(p, i, std::cos(angle));
        sin_.Set(p, i, std::sin(angle));
      }
    }
    for (int64_t i = 0; i < s.rows; ++i) positions_.push_back(static_cast<int32_t>((i * 37) % kPositions));
  }

  Rotation rotation() const { return {cos_.view(), sin_.view(), positions_.data()}; }
  Buffer Result() const { return Buffer(dtype_, s_.rows, s_.heads * 2 * s_.half, s_.gap); }
  Buffer Stat() const { return Buffer(StatType(dtype_), s_.rows, s_.heads); }

  double Rstd(int64_t i, int64_t head) const {
    double squares = 0;
    for (int64_t j = 0; j < width(); ++j) squares += x(i, head * width() + j) * x(i, head * width() + j);
    return 1 / std::sqrt(squares / static_cast<double>(width()) + kEps);
  }
  // Element j of a row of `from`, turned (sign 1) or turned back (-1); and the size of its two terms.
  struct Value {
    double value = 0, size = 0;
  };
  template <typename From>
  Value Turned(const From& from, int64_t i, int64_t j, double sign) const {
    const int64_t in_head = j % width(), p = positions_[static_cast<size_t>(i)];
    const bool is_first = in_head < s_.half;
    const double c = cos_(p, in_head % s_.half), t = sign * (is_first ? -1 : 1) * sin_(p, in_head % s_.half);
    const double own = from(j) * c, other = from(is_first ? j + s_.half : j - s_.half) * t;
    return {own + other, std::abs(own) + std::abs(other)};
  }
  Value Forward(int64_t i, int64_t j) const {
    const double r = Rstd(i, j / width());
    return Turned([&](int64_t k) { return x(i, k) * r * w(0, k % width()); }, i, j, 1);
  }
  // g of the norm's backward pass.
  Value Gradient(int64_t i, int64_t j) const {
    const Value turned = Turned([&](int64_t k) { return dy(i, k); }, i, j, -1);
    const double weight = w(0, j % width());
    return {turned.value * weight, turned.size * std::abs(weight)};
  }
  Value Backward(int64_t i, int64_t j) const {
    const int64_t head = j / width();
    const double r = Rstd(i, head);
    Value mean;
    for (int64_t k = head * width(); k < (head + 1) * width(); ++k) {
      const Value g = Gradient(i, k);
      mean.value += g.value * x(i, k) * r / static_cast<double>(width());
      mean.size += g.size * std::abs(x(i, k)) * r / static_cast<double>(width());
    }
    const Value g = Gradient(i, j);
    return {r * (g.value - x(i, j) * r * mean.value), r * (g.size + std::abs(x(i, j)) * r * mean.size)};
  }
  int64_t width() const { return 2 * s_.half; }

 private:
  DType dtype_;
  Shape s_;

 public:
  const Buffer x, w, dy;

 private:
  Buffer cos_, sin_;
  TestVector<int32_t> positions_;
};

class NormRopeTest : public FloatTest {
 protected:
  static void ForEachCase(const std::function<void(const Shape&, const Case&)>& body) {
    for (const Shape& shape : Shapes()) {
      SCOPED_TRACE("half a head of " + std::to_string(shape.half));
      std::vector<DType> weights = {GetParam()};
      if (GetParam() == DType::kBF16) weights.push_back(DType::kF32);
      for (const DType w_dtype : weights) body(shape, Case(GetParam(), w_dtype, shape));
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Types, NormRopeTest, testing::ValuesIn(TestedTypes()), TypeName);

// The sum of squares has its error, of which the root takes half; rstd, two products of the norm, and those and the sum
// of the rotation. Of bf16 the result alone is rounded: a second rounding in between would be 2^-9 of a term's size, on
// average over what is allowed here.
TEST_P(NormRopeTest, ForwardRoundsOnceAndKeepsItsInput) {
  const auto exec = MakeExec(2);
  ForEachCase([&](const Shape& s, const Case& c) {
    Buffer raw = c.Result(), y = c.Result(), rstd = c.Stat();
    HeadRmsNormRope(*exec, c.x.view(), c.w.view(), s.heads, kEps, c.rotation(), raw.view(), y.view(), rstd.view());
    const double sum_error = SumError(GetParam(), c.width());
    ExpectNear(
        rstd, [&](int64_t i, int64_t h) { return c.Rstd(i, h); },
        [&](int64_t i, int64_t h) { return (sum_error + 2 * Epsilon(GetParam())) * c.Rstd(i, h); }, "rstd");
    ExpectNear(
        y, [&](int64_t i, int64_t j) { return c.Forward(i, j).value; },
        [&](int64_t i, int64_t j) {
          const Case::Value want = c.Forward(i, j);
          return (sum_error + 9 * Epsilon(GetParam())) * want.size + Stored(GetParam(), want.value);
        },
        "y");
    ExpectNear(
        raw, [&](int64_t i, int64_t j) { return c.x(i, j); }, 0, "raw");
    Buffer in_place = c.x;
    HeadRmsNormRope(*exec, in_place.view(), c.w.view(), s.heads, kEps, c.rotation(), {}, in_place.view(), {});
    ExpectNear(
        in_place, [&](int64_t i, int64_t j) { return y(i, j); }, 0, "in place, nothing kept");
  });
}

TEST_P(NormRopeTest, BackwardRoundsOnce) {
  const auto exec = MakeExec(2);
  ForEachCase([&](const Shape& s, const Case& c) {
    Buffer y = c.Result(), rstd = c.Stat(), dx = c.Result();
    HeadRmsNormRope(*exec, c.x.view(), c.w.view(), s.heads, kEps, c.rotation(), {}, y.view(), rstd.view());
    HeadRmsNormRopeBackward(*exec, c.dy.view(), c.x.view(), c.w.view(), s.heads, rstd.view(), c.rotation(), dx.view());
    const double sum_error = SumError(GetParam(), c.width());
    ExpectNear(
        dx, [&](int64_t i, int64_t j) { return c.Backward(i, j).value; },
        [&](int64_t i, int64_t j) {
          const Case::Value want = c.Backward(i, j);
          return (3 * sum_error + 20 * Epsilon(GetParam())) * want.size + Stored(GetParam(), want.value);
        },
        "dx");
    Buffer in_place = c.dy;
    HeadRmsNormRopeBackward(*exec, in_place.view(), c.x.view(), c.w.view(), s.heads, rstd.view(), c.rotation(),
                            in_place.view());
    ExpectNear(
        in_place, [&](int64_t i, int64_t j) { return dx(i, j); }, 0, "over dy");
  });
}

TEST_P(NormRopeTest, BitsDependOnNeitherThreadsNorCuts) {
  const Shape s{101, 3, 32, 0};
  const Case c(GetParam(), GetParam(), s);
  Buffer whole = c.Result();
  ExpectSameBits([&](const Exec& exec) {
    Buffer y = c.Result(), rstd = c.Stat(), dx = c.Result();
    HeadRmsNormRope(exec, c.x.view(), c.w.view(), s.heads, kEps, c.rotation(), {}, y.view(), rstd.view());
    HeadRmsNormRopeBackward(exec, c.dy.view(), c.x.view(), c.w.view(), s.heads, rstd.view(), c.rotation(), dx.view());
    whole = y;
    return std::vector<Buffer>{y, rstd, dx};
  });
  const auto exec = MakeExec(2);
  Buffer parts = c.Result();
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 40}, {40, 101}}) {
    Rotation rotation = c.rotation();
    rotation.positions += begin;
    HeadRmsNormRope(*exec, c.x.view().Rows(begin, end), c.w.view(), s.heads, kEps, rotation, {},
                    parts.view().Rows(begin, end), {});
  }
  EXPECT_TRUE(parts.bytes() == whole.bytes());
}

}  // namespace
}  // namespace longhaul::kernels
