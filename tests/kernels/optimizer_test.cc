#include <algorithm>

#include "kernels/dynamic_map.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

class OptimizerTest : public FloatTest {
 protected:
  // Masters and moments are of the statistics' type.
  DType type() const { return StatType(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Types, OptimizerTest, testing::ValuesIn(TestedTypes()), TypeName);

// The state before an update, given what the updates before it left.
UpdateState Prepared(const Exec& exec, const AdamWConfig& config, double learning_rate, int64_t steps_before,
                     double sum_of_squares) {
  Shared<UpdateState> state;
  state.value().learning_rate = learning_rate;
  state.value().steps = steps_before;
  Shared<double> sum(sum_of_squares);
  PrepareUpdate(exec, config, sum.get(), nullptr, state.get());
  return state.value();
}

// AdamW by its formula in double, over flat values.
struct Oracle {
  explicit Oracle(const Buffer& p) {
    for (int64_t i = 0; i < p.rows(); ++i) {
      for (int64_t j = 0; j < p.cols(); ++j) want_p.push_back(p(i, j));
    }
    want_m.resize(want_p.size());
    want_v.resize(want_p.size());
  }
  void Step(const AdamWConfig& c, double learning_rate, int64_t step, double grad_scale, const Buffer& g) {
    for (size_t at = 0; at < want_p.size(); ++at) {
      const auto i = static_cast<int64_t>(at);
      const double gradient = grad_scale * g(i / g.cols(), i % g.cols());
      want_m[at] = c.beta1 * want_m[at] + (1 - c.beta1) * gradient;
      want_v[at] = c.beta2 * want_v[at] + (1 - c.beta2) * gradient * gradient;
      const double bias1 = 1 - std::pow(c.beta1, step), bias2 = 1 - std::pow(c.beta2, step);
      want_p[at] *= 1 - learning_rate * c.weight_decay;
      want_p[at] -= learning_rate / bias1 * want_m[at] / (std::sqrt(want_v[at]) / std::sqrt(bias2) + c.epsilon);
    }
  }
  std::vector<double> want_p, want_m, want_v;
};

TEST_P(OptimizerTest, AdamWFollowsTheFormulaOverSeveralSteps) {
  const auto exec = MakeExec(2);
  const AdamWConfig config{0.9, 0.999, 1e-8, 0.1, 0};
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {3, 5}, {1, 17}, {90, 301}}) {
    Buffer p = Buffer::Random(type(), rows, cols, 1);
    Buffer m(type(), rows, cols), v(type(), rows, cols);
    m.Fill(0);
    v.Fill(0);
    Oracle oracle(p);
    for (int64_t step = 1; step <= 5; ++step) {
      UpdateState prepared = Prepared(*exec, config, 1e-2, step - 1, 1);
      EXPECT_EQ(prepared.steps, step);
      prepared.grad_scale = 0.5;
      Shared<UpdateState> state(prepared);
      const Buffer g = Buffer::Random(type(), rows, cols, static_cast<uint32_t>(10 + step));
      const Buffer g_before = g;
      AdamW(*exec, config, state.get(), p.view(), g.view(), m.view(), v.view());
      EXPECT_TRUE(g.bytes() == g_before.bytes());
      oracle.Step(config, 1e-2, step, 0.5, g);
    }
    // m and v: some 4 roundings a step of values below 3. p: the quotient m / sqrt(v) keeps a relative error of a dozen
    // roundings, times a learning rate of 1e-2, and p itself is rounded twice a step.
    const double epsilon = Epsilon(type());
    const auto at = [cols = cols](int64_t i, int64_t j) { return static_cast<size_t>(i * cols + j); };
    ExpectNear(
        m, [&](int64_t i, int64_t j) { return oracle.want_m[at(i, j)]; }, 20 * epsilon * 3, "m");
    ExpectNear(
        v, [&](int64_t i, int64_t j) { return oracle.want_v[at(i, j)]; },
        [&](int64_t i, int64_t j) { return 40 * epsilon * oracle.want_v[at(i, j)]; }, "v");
    ExpectNear(
        p, [&](int64_t i, int64_t j) { return oracle.want_p[at(i, j)]; },
        [&](int64_t i, int64_t j) { return 10 * epsilon * (std::abs(oracle.want_p[at(i, j)]) + 1); }, "p");
  }
}

TEST_P(OptimizerTest, FirstStepMovesByTheLearningRate) {
  // m / bias1 = g, sqrt(v / bias2) = |g|: p moves by the learning rate against the sign of g.
  const auto exec = MakeExec(1);
  const AdamWConfig config{0.9, 0.999, 0, 0, 0};
  Buffer p(type(), 1, 3), g(type(), 1, 3), m(type(), 1, 3), v(type(), 1, 3);
  p.Fill(1);
  m.Fill(0);
  v.Fill(0);
  const double gradients[] = {0.25, -3, 1e-3};
  for (int64_t j = 0; j < 3; ++j) g.Set(0, j, gradients[j]);
  Shared<UpdateState> state(Prepared(*exec, config, 0.01, 0, 1));
  AdamW(*exec, config, state.get(), p.view(), g.view(), m.view(), v.view());
  ExpectNear(
      p, [&](int64_t, int64_t j) { return gradients[j] > 0 ? 0.99 : 1.01; }, 4 * Epsilon(type()), "p");
}

TEST_P(OptimizerTest, PrepareUpdateClipsByTheNorm) {
  const auto exec = MakeExec(1);
  const UpdateState free = Prepared(*exec, {0.9, 0.999, 1e-8, 0.1, 0}, 1e-3, 7, 25);
  EXPECT_EQ(free.grad_norm, 5);
  EXPECT_EQ(free.grad_scale, 1);
  EXPECT_EQ(free.steps, 8);
  EXPECT_EQ(free.skip, 0);
  EXPECT_DOUBLE_EQ(free.keep, 1 - 1e-4);
  // pow and sqrt in double on either backend: a few units of the last place.
  EXPECT_NEAR(free.step_size, 1e-3 / (1 - std::pow(0.9, 8)), 1e-17);
  EXPECT_NEAR(free.inverse_sqrt_bias2, 1 / std::sqrt(1 - std::pow(0.999, 8)), 1e-11);
  EXPECT_DOUBLE_EQ(Prepared(*exec, {0.9, 0.999, 1e-8, 0, 2}, 1e-3, 0, 25).grad_scale, 2 / (5 + 1e-6));
  EXPECT_EQ(Prepared(*exec, {0.9, 0.999, 1e-8, 0, 6}, 1e-3, 0, 25).grad_scale, 1);
}

TEST_P(OptimizerTest, NonFiniteNormOrLossSkipsTheUpdateAndCountsIt) {
  const auto exec = MakeExec(1);
  const AdamWConfig config{0.9, 0.999, 1e-8, 0.1, 1};
  const double infinity = std::numeric_limits<double>::infinity();
  for (const auto& [sum, loss, skipped] : std::vector<std::tuple<double, double, bool>>{{1, 2, false},
                                                                                        {std::nan(""), 2, true},
                                                                                        {infinity, 2, true},
                                                                                        {1, std::nan(""), true},
                                                                                        {1, -infinity, true}}) {
    Shared<UpdateState> state;
    state.value().learning_rate = 0.1;
    state.value().steps = 3;
    state.value().skipped = 10;
    Shared<double> sum_of_squares(sum), nats(loss);
    PrepareUpdate(*exec, config, sum_of_squares.get(), nats.get(), state.get());
    EXPECT_EQ(state.value().skip, skipped);
    EXPECT_EQ(state.value().steps, skipped ? 3 : 4);
    EXPECT_EQ(state.value().skipped, skipped ? 11 : 10);
    Buffer p = Buffer::Random(type(), 5, 77, 1), m = Buffer::Random(type(), 5, 77, 2), v = p;
    v.Fill(0.5);
    const Buffer g = Buffer::Random(type(), 5, 77, 3), p_before = p, m_before = m, v_before = v;
    AdamW(*exec, config, state.get(), p.view(), g.view(), m.view(), v.view());
    EXPECT_EQ(p.bytes() == p_before.bytes(), skipped);
    EXPECT_EQ(m.bytes() == m_before.bytes(), skipped);
    EXPECT_EQ(v.bytes() == v_before.bytes(), skipped);
  }
}

TEST_P(OptimizerTest, SumOfSquaresIsInFixedChunks) {
  for (const int64_t size : {1, 7, 4095, 4096, 4097, 100'003}) {
    const Buffer x = Buffer::Random(type(), 1, size, 1);
    double want = 0;
    for (int64_t i = 0; i < size; ++i) want += x(0, i) * x(0, i);
    const auto first = MakeExec(1), second = MakeExec(2);
    Shared<double> one(-1), two(-1);
    SumOfSquares(*first, x.view(), one.get());
    SumOfSquares(*second, x.view(), two.get());
    EXPECT_EQ(one.value(), two.value());
    // Sums in double, in another order.
    EXPECT_NEAR(one.value(), want, static_cast<double>(size) * 0x1p-53 * want);
  }
}

TEST_P(OptimizerTest, SumOfSquaresShowsNonFiniteInput) {
  const auto exec = MakeExec(2);
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    Buffer x = Buffer::Random(type(), 10, 1000, 1);
    x.Set(7, 7, bad);
    Shared<double> sum;
    SumOfSquares(*exec, x.view(), sum.get());
    EXPECT_FALSE(std::isfinite(sum.value()));
  }
}

TEST_P(OptimizerTest, AdamWBitsDoNotDependOnThreads) {
  const AdamWConfig config{0.9, 0.999, 1e-8, 0.01, 0};
  ExpectSameBits([&](const Exec& exec) {
    Buffer p = Buffer::Random(type(), 97, 301, 1), m = Buffer::Random(type(), 97, 301, 2), v = p;
    const Buffer g = Buffer::Random(type(), 97, 301, 3);
    v.Fill(0.5);
    Shared<UpdateState> state(Prepared(exec, config, 1e-3, 2, 1));
    AdamW(exec, config, state.get(), p.view(), g.view(), m.view(), v.view());
    return std::vector<Buffer>{p, m, v};
  });
}

TEST(DynamicMapTest, MapsAscendFromTheirEndsOverSevenDecades) {
  for (const std::array<float, 256>* map : {&kSignedDynamicMap, &kUnsignedDynamicMap}) {
    EXPECT_TRUE(std::is_sorted(map->begin(), map->end()));
    EXPECT_TRUE(std::adjacent_find(map->begin(), map->end()) == map->end()) << "no value twice";
    EXPECT_EQ(map->back(), 1.0f);
  }
  EXPECT_EQ(kUnsignedDynamicMap[0], 0.0f);
  EXPECT_FLOAT_EQ(kUnsignedDynamicMap[1], 3.25e-7f);
  EXPECT_FLOAT_EQ(kUnsignedDynamicMap[254], 1 - 0.45f / 128);
}

struct Moments {
  explicit Moments(int64_t size)
      : m(static_cast<size_t>(size)),
        v(m),
        m_scale(DType::kF32, 1, (size + kMomentBlock - 1) / kMomentBlock),
        v_scale(m_scale) {
    m_scale.Fill(0);
    v_scale.Fill(0);
  }
  Moments8bit view() {
    const auto size = static_cast<int64_t>(m.size());
    return {MakeTensor(m.data(), DType::kU8, 1, size), MakeTensor(v.data(), DType::kU8, 1, size), m_scale.view(),
            v_scale.view()};
  }
  // Values as the next step reads them. The scales' access waits for the op.
  double Mean(int64_t i) const {
    const double scale = m_scale(0, i / kMomentBlock);
    return static_cast<double>(kSignedDynamicMap[m[static_cast<size_t>(i)]]) * scale;
  }
  double Square(int64_t i) const {
    const double scale = v_scale(0, i / kMomentBlock);
    return static_cast<double>(kUnsignedDynamicMap[v[static_cast<size_t>(i)]]) * scale;
  }
  TestVector<uint8_t> m, v;
  Buffer m_scale, v_scale;
};

double DistanceToNearest(const std::array<float, 256>& map, double x) {
  double best = 2;
  for (const float entry : map) best = std::min(best, std::abs(static_cast<double>(entry) - x));
  return best;
}

// The scale of a block is its largest magnitude and no other code is nearer than the stored one, but for the rounding
// of the values themselves: `error`.
void ExpectNearestCodes(const std::array<float, 256>& map, const std::vector<double>& want,
                        const std::function<double(int64_t)>& stored, double scale, int64_t begin, int64_t end,
                        double error) {
  double largest = 0;
  for (int64_t i = begin; i < end; ++i) largest = std::max(largest, std::abs(want[static_cast<size_t>(i)]));
  EXPECT_NEAR(scale, largest, error);
  for (int64_t i = begin; i < end; ++i) {
    const double value = want[static_cast<size_t>(i)];
    EXPECT_LE(std::abs(stored(i) - value), largest * DistanceToNearest(map, value / largest) + 3 * error) << i;
  }
}

// A step of AdamW8bit from given 8-bit moments is a step of AdamW from their values; what it stores is the nearest
// code.
void CheckAdamW8bit(const Exec& exec, int64_t size) {
  const AdamWConfig config{0.9, 0.999, 1e-8, 0.1, 0};
  constexpr double kEpsilon = 0x1p-24;
  Buffer p = Buffer::Random(DType::kF32, 1, size, 1);
  Moments moments(size);
  for (int64_t step = 1; step <= 4; ++step) {
    Oracle oracle(p);
    // Gradients over four decades, so that the small codes are used.
    Buffer g = Buffer::Random(DType::kF32, 1, size, static_cast<uint32_t>(step));
    std::vector<double> terms;  // what m is a sum of, in size
    for (int64_t i = 0; i < size; ++i) {
      const auto at = static_cast<size_t>(i);
      g.Set(0, i, g(0, i) * std::pow(10, -static_cast<double>(i % 5)));
      oracle.want_m[at] = moments.Mean(i);
      oracle.want_v[at] = moments.Square(i);
      terms.push_back(0.9 * std::abs(oracle.want_m[at]) + 0.1 * std::abs(g(0, i)));
    }
    Shared<UpdateState> state(Prepared(exec, config, 1e-2, step - 1, 1));
    AdamW8bit(exec, config, state.get(), p.view(), g.view(), moments.view());
    oracle.Step(config, 1e-2, step, 1, g);
    // m / sqrt(v) with v's error halved: a dozen roundings of what m is a sum of, times the learning rate over the bias
    // correction (at most 10, and 1 / sqrt(bias2) at most 32 in the divisor's favour); p itself is rounded twice.
    ExpectNear(
        p, [&](int64_t, int64_t j) { return oracle.want_p[static_cast<size_t>(j)]; },
        [&](int64_t, int64_t j) {
          const auto at = static_cast<size_t>(j);
          const double bias2 = std::sqrt(1 - std::pow(0.999, static_cast<double>(step)));
          const double quotient = terms[at] / (std::sqrt(oracle.want_v[at]) / bias2 + 1e-8);
          return kEpsilon * (4 * std::abs(oracle.want_p[at]) + 16 * 1e-2 * 10 * quotient);
        },
        "p");
    for (int64_t begin = 0; begin < size; begin += kMomentBlock) {
      const int64_t end = std::min(size, begin + kMomentBlock);
      const double m_size = *std::max_element(terms.begin() + begin, terms.begin() + end);
      const double v_size = *std::max_element(oracle.want_v.begin() + begin, oracle.want_v.begin() + end);
      ExpectNearestCodes(
          kSignedDynamicMap, oracle.want_m, [&](int64_t i) { return moments.Mean(i); },
          moments.m_scale(0, begin / kMomentBlock), begin, end, 4 * kEpsilon * m_size);
      ExpectNearestCodes(
          kUnsignedDynamicMap, oracle.want_v, [&](int64_t i) { return moments.Square(i); },
          moments.v_scale(0, begin / kMomentBlock), begin, end, 6 * kEpsilon * v_size);
    }
  }
}

TEST(AdamW8bitTest, EqualsAdamWOnTheValuesThatItHolds) {
  const auto exec = MakeExec(2);
  for (const int64_t size : {1, 255, 256, 257, 5000}) CheckAdamW8bit(*exec, size);
}

TEST(AdamW8bitTest, RepeatsItsBitsAndSkips) {
  const AdamWConfig config{0.9, 0.999, 1e-8, 0.1, 1};
  const Buffer g = Buffer::Random(DType::kF32, 1, 3000, 3);
  ExpectSameBits([&](const Exec& exec) {
    Buffer p = Buffer::Random(DType::kF32, 1, 3000, 1);
    Moments moments(3000);
    Shared<UpdateState> state(Prepared(exec, config, 1e-2, 0, 1));
    AdamW8bit(exec, config, state.get(), p.view(), g.view(), moments.view());
    const Buffer p_once = p, scale_once = moments.m_scale;
    const TestVector<uint8_t> codes_once = moments.m;
    state.value().skip = 1;
    AdamW8bit(exec, config, state.get(), p.view(), g.view(), moments.view());
    EXPECT_TRUE(p.bytes() == p_once.bytes() && scale_once.bytes() == moments.m_scale.bytes());
    EXPECT_TRUE(codes_once == moments.m);
    return std::vector<Buffer>{p, moments.m_scale, moments.v_scale};
  });
}

}  // namespace
}  // namespace longhaul::kernels
