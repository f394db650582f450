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

TEST(BackoffTest, TheLongestWaitMayBeShortenedAtAnyTime) {
  Backoff backoff(1);
  for (int i = 0; i < 20; ++i) backoff.NextMs();
  backoff.SetLongest(750);
  for (int i = 0; i < 20; ++i) EXPECT_LE(backoff.NextMs(), 750);
  backoff.SetLongest(10 * limits::kMaxBackoffMs);
  int64_t longest = 0;
  for (int i = 0; i < 20; ++i) longest = std::max(longest, backoff.NextMs());
  EXPECT_GT(longest, limits::kMaxBackoffMs / 2);
  EXPECT_LE(longest, limits::kMaxBackoffMs);
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
