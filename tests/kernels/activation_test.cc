#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

double Logistic(double x) { return 1 / (1 + std::exp(-x)); }

struct Activation {
  const char* name;
  decltype(&SwiGlu) forward;
  decltype(&SwiGluBackward) backward;
  double (*value)(double);
  double (*slope)(double);
};

double Silu(double x) { return x * Logistic(x); }
double SiluSlope(double x) { return Logistic(x) + x * Logistic(x) * (1 - Logistic(x)); }
// As it is defined, with tanh; the kernels use the logistic function.
double GeluTanh(double x) {
  return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}
double GeluSlope(double x) {
  const double c = std::sqrt(2 / std::acos(-1.0));
  const double t = std::tanh(c * (x + 0.044715 * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
}

const Activation kActivations[] = {{"swiglu", SwiGlu, SwiGluBackward, Silu, SiluSlope},
                                   {"geglu", GeGlu, GeGluBackward, GeluTanh, GeluSlope}};

struct Shape {
  int64_t rows, cols, gap;
};
// 1, odd, around the vector widths of 4, 8 and 16, whole vectors with a gap between rows, enough to go parallel.
const std::vector<Shape>& Shapes() {
  static const std::vector<Shape> shapes = {{1, 1, 3},  {3, 7, 0},  {2, 8, 8},   {5, 9, 3},     {1, 15, 0},
                                            {4, 16, 0}, {3, 17, 3}, {2, 127, 1}, {150, 129, 3}, {70, 256, 8}};
  return shapes;
}

class ActivationTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, ActivationTest, testing::ValuesIn(TestedTypes()), TypeName);

// The logistic function's argument z has a rounding of its terms, at most 4 |z| units of error, which is relative where
// the function is small; the exponential adds 4 (2^-22 in f32), then a few operations.
double RelativeError(DType dtype, double gate, const Activation& activation) {
  const double z = activation.value == Silu ? gate : 1.6 * (std::abs(gate) + 0.045 * std::abs(gate * gate * gate));
  return Epsilon(dtype) * (8 + (activation.value == Silu ? 0 : 4 * std::abs(z)));
}

TEST_P(ActivationTest, ForwardEqualsTheDefinition) {
  const auto exec = MakeExec(2);
  for (const Activation& a : kActivations) {
    for (const Shape& s : Shapes()) {
      const Buffer gate = Buffer::Random(GetParam(), s.rows, s.cols, 1, s.gap, a.value == Silu ? 4 : 1.5);
      const Buffer up = Buffer::Random(GetParam(), s.rows, s.cols, 2, s.gap);
      Buffer y(GetParam(), s.rows, s.cols, s.gap);
      a.forward(*exec, gate.view(), up.view(), y.view());
      const auto want = [&](int64_t i, int64_t j) { return a.value(gate(i, j)) * up(i, j); };
      ExpectNear(
          y, want,
          [&](int64_t i, int64_t j) {
            // The definition itself cancels near -1 + 1 in double.
            return RelativeError(GetParam(), gate(i, j), a) * (std::abs(want(i, j)) + 1e-30) +
                   Stored(GetParam(), want(i, j)) + (a.value == Silu ? 0 : 1e-15 * std::abs(gate(i, j) * up(i, j)));
          },
          a.name);
    }
  }
}

void CheckBackward(DType dtype, const Activation& a, const Shape& s) {
  const auto exec = MakeExec(2);
  const Buffer gate = Buffer::Random(dtype, s.rows, s.cols, 1, s.gap, a.value == Silu ? 4 : 1.5);
  const Buffer up = Buffer::Random(dtype, s.rows, s.cols, 2, s.gap);
  const Buffer dy = Buffer::Random(dtype, s.rows, s.cols, 3, s.gap);
  Buffer y(dtype, s.rows, s.cols, s.gap), forward(dtype, s.rows, s.cols, s.gap);
  a.forward(*exec, gate.view(), up.view(), forward.view());
  Buffer dgate = gate, dup = up;
  a.backward(*exec, dy.view(), dgate.view(), dup.view(), dgate.view(), dup.view(), y.view());
  ExpectNear(
      y, [&](int64_t i, int64_t j) { return forward(i, j); }, 0, "the recomputed product is the forward's");
  // s + g s (1 - s) z': |g| s (1 - s) z' <= 1.3, so a dozen roundings of the factors' size.
  const auto dgate_want = [&](int64_t i, int64_t j) { return dy(i, j) * up(i, j) * a.slope(gate(i, j)); };
  ExpectNear(
      dgate, dgate_want,
      [&](int64_t i, int64_t j) {
        return 4 * RelativeError(dtype, gate(i, j), a) * std::abs(dy(i, j) * up(i, j)) +
               Stored(dtype, dgate_want(i, j));
      },
      a.name);
  const auto dup_want = [&](int64_t i, int64_t j) { return dy(i, j) * a.value(gate(i, j)); };
  ExpectNear(
      dup, dup_want,
      [&](int64_t i, int64_t j) {
        return 2 * RelativeError(dtype, gate(i, j), a) * std::abs(dy(i, j) * gate(i, j)) +
               Stored(dtype, dup_want(i, j));
      },
      a.name);
  Buffer separate(dtype, s.rows, s.cols, s.gap), dup_separate(dtype, s.rows, s.cols, s.gap);
  a.backward(*exec, dy.view(), gate.view(), up.view(), separate.view(), dup_separate.view(), {});
  ExpectNear(
      separate, [&](int64_t i, int64_t j) { return dgate(i, j); }, 0, "without aliasing, without y");
}

TEST_P(ActivationTest, BackwardInPlaceEqualsTheDefinition) {
  for (const Activation& a : kActivations) {
    for (const Shape& s : Shapes()) CheckBackward(GetParam(), a, s);
  }
}

TEST_P(ActivationTest, SaturatedGatesStayFinite) {
  const auto exec = MakeExec(1);
  for (const Activation& a : kActivations) {
    Buffer gate(GetParam(), 1, 4), up(GetParam(), 1, 4), dy(GetParam(), 1, 4);
    up.Fill(1);
    dy.Fill(1);
    const double values[] = {-8192, -90, 90, 8192};  // exact in bf16
    for (int64_t j = 0; j < 4; ++j) gate.Set(0, j, values[j]);
    Buffer y(GetParam(), 1, 4), dgate(GetParam(), 1, 4), dup(GetParam(), 1, 4);
    a.backward(*exec, dy.view(), gate.view(), up.view(), dgate.view(), dup.view(), y.view());
    const double slopes[] = {0, 0, 1, 1};
    ExpectNear(
        y, [&](int64_t, int64_t j) { return std::max(0.0, values[j]); }, 1e-30, "product");
    ExpectNear(
        dgate, [&](int64_t, int64_t j) { return slopes[j]; }, 1e-30, "slope");
  }
}

TEST_P(ActivationTest, BitsDoNotDependOnThreads) {
  for (const Activation& a : kActivations) {
    ExpectSameBits([&](const Exec& exec) {
      const Buffer gate = Buffer::Random(GetParam(), 200, 131, 1);
      const Buffer up = Buffer::Random(GetParam(), 200, 131, 2);
      const Buffer dy = Buffer::Random(GetParam(), 200, 131, 3);
      Buffer y(GetParam(), 200, 131), dgate = y, dup = y;
      a.forward(exec, gate.view(), up.view(), y.view());
      a.backward(exec, dy.view(), gate.view(), up.view(), dgate.view(), dup.view(), {});
      return std::vector<Buffer>{y, dgate, dup};
    });
  }
}

}  // namespace
}  // namespace longhaul::kernels
