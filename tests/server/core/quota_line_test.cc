#include "server/core/quota_line.h"

#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

Need Host(int64_t bytes) { return {0, bytes, 0, 1, 1}; }

TEST(QuotaLineTest, OneAfterAnotherWhereOneMayRun) {
  Quota quota;
  quota.jobs = 1;
  QuotaLine line(quota, 100);
  EXPECT_EQ(line.Earliest(Host(1)), 100);
  line.Take(Host(1), 150);
  EXPECT_EQ(line.Earliest(Host(1)), 150);
  line.Take(Host(1), 180);
  EXPECT_EQ(line.Earliest(Host(1)), 180);
}

TEST(QuotaLineTest, TheFirstEndsThatMakeEnoughRoom) {
  Quota quota;
  quota.host_bytes = 10;
  QuotaLine line(quota, 100);
  line.Take(Host(4), 300);
  line.Take(Host(4), 200);
  line.Take(Host(2), 150);
  EXPECT_EQ(line.Earliest(Host(1)), 150);
  EXPECT_EQ(line.Earliest(Host(3)), 200);
  EXPECT_EQ(line.Earliest(Host(10)), 300);
  EXPECT_EQ(line.Earliest(Host(1)), 300) << "nobody is told a start before one that is ahead";
  EXPECT_EQ(line.Earliest(Host(11)), kNeverMicros);
}

TEST(QuotaLineTest, EveryFigureCountsAndZeroIsNoLimit) {
  Quota quota;
  quota.cpu_threads = 2;
  QuotaLine threads(quota, 0);
  threads.Take({0, 0, 0, 2, 1}, 50);
  EXPECT_EQ(threads.Earliest({0, 1 << 30, 0, 1, 1}), 50);
  quota = Quota();
  quota.device_bytes = 8;
  QuotaLine device(quota, 0);
  device.Take({8, 0, 0, 1, 1}, 60);
  EXPECT_EQ(device.Earliest({1, 0, 0, 1, 1}), 60);
  QuotaLine none(Quota(), 7);
  for (int i = 0; i < 5; ++i) none.Take({8, 8, 8, 8, 1}, 1'000);
  EXPECT_EQ(none.Earliest({8, 8, 8, 8, 1}), 7);
}

}  // namespace
}  // namespace longhaul::server
