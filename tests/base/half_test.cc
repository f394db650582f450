#include "base/half.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

// The value of a half by its definition, in double.
double HalfValue(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(HalfTest, EveryHalfIsItsValueAndComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = F16ToFloat(half);
    if (std::isnan(HalfValue(half))) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(value)))) << bits;
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), HalfValue(half)) << bits;
    ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
    ASSERT_EQ(FloatToF16(value), half) << bits;
  }
}

TEST(HalfTest, RoundsToNearestEvenBetweenNeighbours) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const auto low = static_cast<uint16_t>(bits);
    const auto high = static_cast<uint16_t>(bits + 1);
    const auto middle = static_cast<float>((HalfValue(low) + HalfValue(high)) / 2);  // exact in float
    const uint16_t even = bits % 2 == 0 ? low : high;
    ASSERT_EQ(FloatToF16(middle), even) << bits;
    ASSERT_EQ(FloatToF16(std::nextafter(middle, 0.0f)), low) << bits;
    ASSERT_EQ(FloatToF16(std::nextafter(middle, 1e9f)), high) << bits;
    ASSERT_EQ(FloatToF16(-middle), even | 0x8000) << bits;
  }
  EXPECT_EQ(FloatToF16(65519.99f), 0x7bff);
  EXPECT_EQ(FloatToF16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToF16(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_EQ(FloatToF16(-0.0f), 0x8000);
}

TEST(HalfTest, Bf16RoundsToNearestEven) {
  for (uint32_t high = 0; high < 0x7f80; ++high) {
    const float middle = std::bit_cast<float>(high << 16 | 0x8000u);
    ASSERT_EQ(FloatToBf16(middle), high + (high & 1)) << high;
    ASSERT_EQ(FloatToBf16(std::bit_cast<float>(high << 16 | 0x7fffu)), high);
    ASSERT_EQ(FloatToBf16(std::bit_cast<float>(high << 16 | 0x8001u)), high + 1);
    ASSERT_EQ(FloatToBf16(Bf16ToFloat(static_cast<uint16_t>(high))), high);
  }
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::infinity()), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(FloatToBf16(-0.0f), 0x8000);
}

}  // namespace
}  // namespace longhaul
