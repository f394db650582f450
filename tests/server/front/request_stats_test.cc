#include "server/request_stats.h"

#include "base/limits.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

TEST(RequestStatsTest, ALineAboutAFaultComesNowAndThenAndOfEachServer) {
  constexpr int64_t kEveryNanos = limits::kServerFaultLineMs * 1'000'000;
  RequestStats stats;
  EXPECT_TRUE(stats.TakeFaultLine(5));
  EXPECT_FALSE(stats.TakeFaultLine(5));
  EXPECT_FALSE(stats.TakeFaultLine(4 + kEveryNanos));
  EXPECT_TRUE(stats.TakeFaultLine(5 + kEveryNanos));
  EXPECT_FALSE(stats.TakeFaultLine(6 + kEveryNanos));
  RequestStats other;
  EXPECT_TRUE(other.TakeFaultLine(6 + kEveryNanos));
}

}  // namespace
}  // namespace longhaul::server
