#include "worker/agent/backoff.h"

#include <gtest/gtest.h>

namespace longhaul::agent {
namespace {

TEST(BackoffTest, DoublesToTheLimitWithJitterAndStartsAgain) {
  Backoff backoff(1);
  int64_t wait = limits::kMinBackoffMs;
  for (int i = 0; i < 20; ++i) {
    const int64_t ms = backoff.NextMs();
    EXPECT_GE(ms, wait / 2);
    EXPECT_LE(ms, wait);
    wait = std::min(2 * wait, limits::kMaxBackoffMs);
  }
  EXPECT_EQ(wait, limits::kMaxBackoffMs);
  backoff.Reset();
  EXPECT_LE(backoff.NextMs(), limits::kMinBackoffMs);
}

TEST(BackoffTest, KeysSpread) {
  Backoff a(1);
  Backoff b(2);
  Backoff a_again(1);
  bool differ = false;
  for (int i = 0; i < 8; ++i) {
    const int64_t ms = a.NextMs();
    EXPECT_EQ(ms, a_again.NextMs());
    differ = differ || ms != b.NextMs();
  }
  EXPECT_TRUE(differ);
}

}  // namespace
}  // namespace longhaul::agent
