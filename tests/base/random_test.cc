#include "base/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <set>

#include "base/clock.h"

namespace longhaul {
namespace {

TEST(EpochOrder, KnownVector) {
  EXPECT_EQ(EpochOrder(10, 42, 0), (std::vector<int64_t>{2, 6, 1, 8, 4, 5, 0, 9, 3, 7}));
}

TEST(EpochOrder, IsAPermutationOfItsOwn) {
  for (const int64_t n : {0, 1, 2, 3, 1000}) {
    std::vector<int64_t> order = EpochOrder(n, 7, 1);
    EXPECT_EQ(order, EpochOrder(n, 7, 1));
    EXPECT_EQ(order, EpochOrder(n, 8, 0));  // seed + epoch
    std::sort(order.begin(), order.end());
    ASSERT_EQ(order.size(), static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
  }
  EXPECT_NE(EpochOrder(1000, 7, 0), EpochOrder(1000, 7, 1));
}

TEST(CounterBits, SameInSameOut) {
  EXPECT_EQ(CounterBits(1, 2), CounterBits(1, 2));
  std::set<uint64_t> seen;
  for (uint64_t key = 0; key < 50; ++key) {
    for (uint64_t counter = 0; counter < 50; ++counter) seen.insert(CounterBits(key, counter));
  }
  EXPECT_EQ(seen.size(), 2500u);
}

TEST(CounterBits, KeysAStrideApartAreNotTheSameStreamShifted) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
  for (uint64_t counter = 0; counter < 100; ++counter) {
    EXPECT_NE(CounterBits(5 + kGolden, counter), CounterBits(5, counter + 1));
  }
}

TEST(CounterBits, FlipsHalfOfTheBits) {
  int flipped = 0;
  constexpr int kDraws = 10'000;
  for (uint64_t i = 0; i < kDraws; ++i) flipped += std::popcount(CounterBits(9, i) ^ CounterBits(9, i + 1));
  // 32 a draw; the standard deviation of the mean is 4 / sqrt(10^4) = 0.04, and five of them never happen.
  EXPECT_NEAR(static_cast<double>(flipped) / kDraws, 32, 0.2);
}

TEST(CounterUniform, InRangeAndCentred) {
  double sum = 0;
  constexpr int kDraws = 10'000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = CounterUniform(3, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
  }
  // The standard deviation of the mean is sqrt(1/12) / 100 = 0.0029.
  EXPECT_NEAR(sum / kDraws, 0.5, 0.0145);
}

TEST(RandomId, ShapeAndUniqueness) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = RandomId();
    ASSERT_EQ(id.size(), 20u);
    ASSERT_TRUE(std::all_of(id.begin(), id.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= '2' && c <= '7');
    })) << id;
    seen.insert(id);
  }
  EXPECT_EQ(seen.size(), 1000u);
}

TEST(IdBurst, NeighboursInABurstAndApartBetweenBursts) {
  IdBurst burst;
  std::set<std::string> beginnings;
  std::set<std::string> randoms;
  std::string last;
  for (int round = 0; round < 3; ++round) {
    // A burst that is longer than two characters can count begins again by itself.
    for (int i = 0; i < 1500; ++i) {
      const std::string id = burst.Next();
      ASSERT_EQ(id.size(), 20u);
      ASSERT_TRUE(std::all_of(id.begin(), id.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '2' && c <= '7');
      })) << id;
      if (i != 0 && i != 1024) {
        ASSERT_EQ(id.substr(0, 4), last.substr(0, 4));
        ASSERT_LT(last, id);
      }
      last = id;
      beginnings.insert(id.substr(0, 4));
      randoms.insert(id.substr(6));
    }
    burst.End();
  }
  EXPECT_EQ(beginnings.size(), 6u) << "two of six are the same in one of 70,000 runs";
  EXPECT_EQ(randoms.size(), 4500u);
}

TEST(Clock, RealAndFake) {
  const RealClock real;
  const int64_t before = real.BootNanos();
  EXPECT_GT(before, 0);
  EXPECT_GE(real.BootNanos(), before);
  EXPECT_GT(real.WallMicros(), int64_t{1'700'000'000'000'000});  // after 2023
  FakeClock fake(5, 7);
  fake.AdvanceMillis(2);
  EXPECT_EQ(fake.BootNanos(), 2'000'005);
  EXPECT_EQ(fake.WallMicros(), 2'007);
}

}  // namespace
}  // namespace longhaul
