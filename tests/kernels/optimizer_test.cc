#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

class OptimizerTest : public FloatTest {};
INSTANTIATE_TEST_SUITE_P(Types, OptimizerTest, testing::Values(DType::kF32, DType::kF64), TypeName);

TEST_P(OptimizerTest, AdamWFollowsTheFormulaOverSeveralSteps) {
  const auto exec = MakeExec(2);
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {3, 5}, {1, 17}, {90, 301}}) {
    Buffer p = Buffer::Random(GetParam(), rows, cols, 1);
    Buffer m(GetParam(), rows, cols), v(GetParam(), rows, cols);
    m.Fill(0);
    v.Fill(0);
    std::vector<double> want_p, want_m(static_cast<size_t>(rows * cols)), want_v(want_m);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) want_p.push_back(p(i, j));
    }
    for (int64_t step = 1; step <= 5; ++step) {
      const AdamWParams params{1e-2, 0.9, 0.999, 1e-8, 0.1, step, 0.5};
      const Buffer g = Buffer::Random(GetParam(), rows, cols, static_cast<uint32_t>(10 + step));
      const Buffer g_before = g;
      AdamW(*exec, params, p.view(), g.view(), m.view(), v.view());
      EXPECT_TRUE(g.bytes() == g_before.bytes());
      for (int64_t i = 0; i < rows * cols; ++i) {
        const auto at = static_cast<size_t>(i);
        const double gradient = 0.5 * g(i / cols, i % cols);
        want_m[at] = 0.9 * want_m[at] + 0.1 * gradient;
        want_v[at] = 0.999 * want_v[at] + 0.001 * gradient * gradient;
        const double bias1 = 1 - std::pow(0.9, step), bias2 = 1 - std::pow(0.999, step);
        want_p[at] *= 1 - 1e-2 * 0.1;
        want_p[at] -= 1e-2 / bias1 * want_m[at] / (std::sqrt(want_v[at]) / std::sqrt(bias2) + 1e-8);
      }
    }
    // m and v: some 4 roundings a step of values below 3. p: the quotient m / sqrt(v) keeps a relative error of a dozen
    // roundings, times a learning rate of 1e-2, and p itself is rounded twice a step.
    const double epsilon = Epsilon(GetParam());
    const auto at = [cols = cols](int64_t i, int64_t j) { return static_cast<size_t>(i * cols + j); };
    ExpectNear(
        m, [&](int64_t i, int64_t j) { return want_m[at(i, j)]; }, 20 * epsilon * 3, "m");
    ExpectNear(
        v, [&](int64_t i, int64_t j) { return want_v[at(i, j)]; },
        [&](int64_t i, int64_t j) { return 40 * epsilon * want_v[at(i, j)]; }, "v");
    ExpectNear(
        p, [&](int64_t i, int64_t j) { return want_p[at(i, j)]; },
        [&](int64_t i, int64_t j) { return 10 * epsilon * (std::abs(want_p[at(i, j)]) + 1); }, "p");
  }
}

TEST_P(OptimizerTest, FirstStepMovesByTheLearningRate) {
  // m / bias1 = g, sqrt(v / bias2) = |g|: p moves by the learning rate against the sign of g.
  const auto exec = MakeExec(1);
  Buffer p(GetParam(), 1, 3), g(GetParam(), 1, 3), m(GetParam(), 1, 3), v(GetParam(), 1, 3);
  p.Fill(1);
  m.Fill(0);
  v.Fill(0);
  const double gradients[] = {0.25, -3, 1e-3};
  for (int64_t j = 0; j < 3; ++j) g.Set(0, j, gradients[j]);
  AdamW(*exec, {0.01, 0.9, 0.999, 0, 0, 1, 1}, p.view(), g.view(), m.view(), v.view());
  ExpectNear(
      p, [&](int64_t, int64_t j) { return gradients[j] > 0 ? 0.99 : 1.01; }, 4 * Epsilon(GetParam()), "p");
}

TEST_P(OptimizerTest, SumOfSquaresIsInFixedChunks) {
  for (const int64_t size : {1, 7, 4095, 4096, 4097, 100'003}) {
    const Buffer x = Buffer::Random(GetParam(), 1, size, 1);
    double want = 0;
    for (int64_t i = 0; i < size; ++i) want += x(0, i) * x(0, i);
    const double one = SumOfSquares(*MakeExec(1), x.view());
    const double two = SumOfSquares(*MakeExec(2), x.view());
    EXPECT_EQ(one, two);
    // Sums in double, in another order.
    EXPECT_NEAR(one, want, static_cast<double>(size) * 0x1p-53 * want);
  }
}

TEST_P(OptimizerTest, SumOfSquaresShowsNonFiniteInput) {
  const auto exec = MakeExec(2);
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    Buffer x = Buffer::Random(GetParam(), 10, 1000, 1);
    x.Set(7, 7, bad);
    EXPECT_FALSE(std::isfinite(SumOfSquares(*exec, x.view())));
  }
}

TEST_P(OptimizerTest, AdamWBitsDoNotDependOnThreads) {
  ExpectSameBits([&](const Exec& exec) {
    Buffer p = Buffer::Random(GetParam(), 97, 301, 1), m = Buffer::Random(GetParam(), 97, 301, 2), v = p;
    const Buffer g = Buffer::Random(GetParam(), 97, 301, 3);
    v.Fill(0.5);
    AdamW(exec, {1e-3, 0.9, 0.999, 1e-8, 0.01, 3, 1}, p.view(), g.view(), m.view(), v.view());
    return std::vector<Buffer>{p, m, v};
  });
}

}  // namespace
}  // namespace longhaul::kernels
