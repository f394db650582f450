#include "base/rate_limiter.h"

#include "gtest/gtest.h"

namespace longhaul {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

int TakenAt(RateLimiter& limiter, const std::string& key, int64_t now, int tries) {
  int taken = 0;
  for (int i = 0; i < tries; ++i) taken += limiter.Take(key, now) == 0 ? 1 : 0;
  return taken;
}

TEST(RateLimiterTest, GivesTheBurstAtOnceAndThenTheRate) {
  RateLimiter limiter(10, 25, 100);
  EXPECT_EQ(TakenAt(limiter, "a", kSecond, 100), 25);
  EXPECT_EQ(TakenAt(limiter, "a", 2 * kSecond, 100), 10);
  EXPECT_EQ(TakenAt(limiter, "a", 2 * kSecond, 1), 0);
  EXPECT_EQ(TakenAt(limiter, "a", 100 * kSecond, 100), 25) << "a bucket holds no more than the burst";
}

TEST(RateLimiterTest, MayBeSlowerThanOneASecond) {
  RateLimiter limiter(RateLimiter::Every{60 * kSecond}, 2, 100);
  EXPECT_EQ(TakenAt(limiter, "a", kSecond, 100), 2);
  EXPECT_EQ(TakenAt(limiter, "a", 60 * kSecond, 100), 0);
  EXPECT_EQ(TakenAt(limiter, "a", 61 * kSecond, 100), 1);
}

TEST(RateLimiterTest, SaysHowLongToWait) {
  RateLimiter limiter(4, 1, 100);
  EXPECT_EQ(limiter.Take("a", kSecond), 0);
  const int64_t wait = limiter.Take("a", kSecond);
  EXPECT_EQ(wait, kSecond / 4);
  EXPECT_GT(limiter.Take("a", kSecond + wait - 1), 0);
  EXPECT_EQ(limiter.Take("a", kSecond + wait), 0);
}

TEST(RateLimiterTest, KeysDoNotKnowEachOther) {
  RateLimiter limiter(1, 2, 100);
  EXPECT_EQ(TakenAt(limiter, "a", kSecond, 10), 2);
  EXPECT_EQ(TakenAt(limiter, "b", kSecond, 10), 2);
}

TEST(RateLimiterTest, KeepsABoundedNumberOfKeysAndForgetsTheIdleOnes) {
  RateLimiter limiter(1, 5, 10);
  EXPECT_EQ(TakenAt(limiter, "busy", kSecond, 10), 5);
  for (int i = 0; i < 1000; ++i) limiter.Take("k" + std::to_string(i), kSecond);
  EXPECT_LE(limiter.keys(), 10u);
  EXPECT_EQ(TakenAt(limiter, "busy", kSecond, 10), 0) << "a busy key must not get a new bucket from a flood of others";
}

TEST(RateLimiterTest, TimeThatStandsStillOrGoesBackGivesNothing) {
  RateLimiter limiter(1000, 3, 10);
  EXPECT_EQ(TakenAt(limiter, "a", kSecond, 10), 3);
  EXPECT_EQ(TakenAt(limiter, "a", kSecond - 500, 10), 0);
}

}  // namespace
}  // namespace longhaul
