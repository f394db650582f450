#include "server/core/usage.h"

#include <cmath>

#include "base/limits.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

constexpr int64_t kHour = limits::kUsageHalfLifeSeconds * 1'000'000;
constexpr ResourceVector kCapacity = {100, 1000, 0, 10};

TEST(UsageTest, HalfOfEverythingForEverIsAShareOfAHalf) {
  UsageLedger ledger;
  ledger.SetHeld({{"a", {50, 0, 0, 0}}}, 0);
  EXPECT_EQ(ledger.Share("a", kCapacity), 0);
  ledger.SetHeld({{"a", {50, 0, 0, 0}}}, kHour);
  EXPECT_NEAR(ledger.Share("a", kCapacity), 0.25, 1e-12) << "half of the way in one half-life";
  ledger.SetHeld({{"a", {50, 0, 0, 0}}}, 40 * kHour);
  EXPECT_NEAR(ledger.Share("a", kCapacity), 0.5, 1e-9);
}

TEST(UsageTest, ItHalvesInAHalfLife) {
  UsageLedger ledger;
  ledger.SetHeld({{"a", {0, 0, 0, 10}}}, 0);
  ledger.SetHeld({}, kHour);
  const double share = ledger.Share("a", kCapacity);
  EXPECT_NEAR(share, 0.5, 1e-12);
  ledger.SetHeld({}, 2 * kHour);
  EXPECT_NEAR(ledger.Share("a", kCapacity), share / 2, 1e-12);
  ledger.SetHeld({}, 500 * kHour);
  EXPECT_EQ(ledger.Share("a", kCapacity), 0) << "forgotten";
}

TEST(UsageTest, HowOftenItIsAskedChangesNothing) {
  UsageLedger often;
  UsageLedger seldom;
  often.SetHeld({{"a", {7, 20, 0, 3}}}, 0);
  seldom.SetHeld({{"a", {7, 20, 0, 3}}}, 0);
  for (int64_t i = 1; i <= 1000; ++i) often.SetHeld({{"a", {7, 20, 0, 3}}}, i * kHour / 100);
  seldom.SetHeld({}, 10 * kHour);
  EXPECT_NEAR(often.Share("a", kCapacity), seldom.Share("a", kCapacity), 1e-9);
}

TEST(UsageTest, TheDominantResourceCountsAndAbsentOnesDoNot) {
  UsageLedger ledger;
  ledger.SetHeld({{"a", {10, 500, 99, 1}}}, 0);
  ledger.SetHeld({{"b", {1, 1, 1, 1}}}, kHour);
  EXPECT_NEAR(ledger.Share("a", kCapacity), 0.25, 1e-12)
      << "half of the RAM, a tenth of the rest; disk has no capacity";
  EXPECT_EQ(ledger.Share("nobody", kCapacity), 0);
  EXPECT_EQ(ledger.Share("a", {}), 0);
}

TEST(UsageTest, ThePastIsWhatHoldingItThenWouldHaveLeft) {
  UsageLedger lived;
  lived.SetHeld({{"a", {30, 0, 0, 0}}}, 0);
  lived.SetHeld({}, 2 * kHour);
  lived.SetHeld({}, 3 * kHour);
  UsageLedger told;
  told.SetHeld({}, 3 * kHour);
  told.AddPast("a", {30, 0, 0, 0}, 2.0 * limits::kUsageHalfLifeSeconds, 1.0 * limits::kUsageHalfLifeSeconds);
  EXPECT_NEAR(told.Share("a", kCapacity), lived.Share("a", kCapacity), 1e-12);
  told.AddPast("a", {30, 0, 0, 0}, -5, 0);
  told.AddPast("a", {30, 0, 0, 0}, 5, -1);
  EXPECT_NEAR(told.Share("a", kCapacity), lived.Share("a", kCapacity), 1e-12) << "nonsense is left out";
}

}  // namespace
}  // namespace longhaul::server
