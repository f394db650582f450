// The vectorised exponential, bf16 rounding, and the row passes that use them.
#include "kernels/cpu/simd.h"
#include "kernels/cpu/softmax.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels::cpu {
namespace {

TEST(ExpTest, IsWithinTheStatedRelativeError) {
  // Through the vectorised loop, and so with the instructions that runs use.
  std::vector<float> x;
  for (double value = -87.3; value < 88.7; value += 1.0 / 1024) x.push_back(static_cast<float>(value));
  std::vector<float> e = x;
  ExpSumInPlace(e.data(), static_cast<int64_t>(e.size()), 0.0f);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double truth = std::exp(static_cast<double>(x[i]));
    worst = std::max(worst, std::abs(static_cast<double>(e[i]) - truth) / truth);
    const double scalar = static_cast<double>(Exp(x[i]));
    worst = std::max(worst, std::abs(scalar - truth) / truth);
  }
  EXPECT_LT(worst, 0x1p-22);
}

TEST(ExpTest, HandlesTheEndsOfTheRange) {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> x = {0.0f, -0.0f, -88.0f, -1e30f, -infinity, 89.0f, infinity, std::nanf(""), 88.7f, -87.3f};
  x.resize(33, 1.0f);
  ExpSumInPlace(x.data(), 33, 0.0f);
  EXPECT_EQ(x[0], 1.0f);
  EXPECT_EQ(x[1], 1.0f);
  EXPECT_EQ(x[2], 0.0f);
  EXPECT_EQ(x[3], 0.0f);
  EXPECT_EQ(x[4], 0.0f);
  EXPECT_EQ(x[5], infinity);
  EXPECT_EQ(x[6], infinity);
  EXPECT_TRUE(std::isnan(x[7]));
  EXPECT_TRUE(std::isfinite(x[8]));
  EXPECT_GT(x[9], 0.0f);
}

TEST(SoftmaxRowTest, SumsAndMaximaAtEveryLengthAroundTheVectorWidth) {
  for (int64_t n = 1; n <= 40; ++n) {
    const Buffer x = Buffer::Random(DType::kF32, 1, n, static_cast<uint32_t>(n));
    double largest = -1e300, sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      largest = std::max(largest, x(0, i));
      sum += std::exp(x(0, i) - 0.5);
    }
    const float* const data = x.view().as<float>();
    EXPECT_EQ(static_cast<double>(RowMax(data, n)), largest);
    // Positive terms: each is within 2^-22 and the sum adds n roundings.
    EXPECT_NEAR(ExpSum(data, n, 0.5f), sum, sum * (0x1p-21 + static_cast<double>(n) * 0x1p-24));
    Buffer copy = x;
    EXPECT_EQ(ExpSumInPlace(copy.view().as<float>(), n, 0.5f), ExpSum(data, n, 0.5f));
  }
}

TEST(SoftmaxRowTest, OneNanMakesTheSumNan) {
  for (const int64_t at : {0, 7, 30}) {
    Buffer x = Buffer::Random(DType::kF32, 1, 31, 1);
    x.Set(0, at, std::nan(""));
    const float largest = RowMax(x.view().as<float>(), 31);
    EXPECT_TRUE(std::isnan(ExpSum(x.view().as<float>(), 31, largest)));
  }
}

TEST(Bf16Test, RoundsToNearestEven) {
  EXPECT_EQ(ToBf16(1.0f), 0x3F80);
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3F808000u)), 0x3F80);  // a tie, down to even
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3F818000u)), 0x3F82);  // a tie, up to even
  EXPECT_EQ(ToBf16(std::bit_cast<float>(0x3F808001u)), 0x3F81);
  EXPECT_EQ(ToBf16(std::numeric_limits<float>::max()), 0x7F80);  // past the largest: infinity
  EXPECT_EQ(ToBf16(-std::numeric_limits<float>::infinity()), 0xFF80);
  EXPECT_TRUE(std::isnan(FromBf16(ToBf16(std::bit_cast<float>(0x7F800001u)))));  // its low bits alone say NaN
}

}  // namespace
}  // namespace longhaul::kernels::cpu
