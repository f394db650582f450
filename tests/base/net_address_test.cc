#include "base/net_address.h"

#include <gtest/gtest.h>

namespace longhaul {
namespace {

TEST(NetAddressTest, LoopbackIsToldByNumber) {
  for (const char* target : {"127.0.0.1:7070", "127.8.9.10:1", "localhost:7070", "[::1]:7070"}) {
    EXPECT_TRUE(IsLoopbackTarget(target)) << target;
  }
  for (const char* target : {"10.0.0.1:7070", "127.example.org:7070", "localhost.example.org:1", "[::2]:7070",
                             "scheduler:7070", "dns:///127.0.0.1:7070", "", ":", "[]:1"}) {
    EXPECT_FALSE(IsLoopbackTarget(target)) << target;
  }
  EXPECT_TRUE(IsLoopbackHost("::1"));
  EXPECT_FALSE(IsLoopbackHost("128.0.0.1"));
}

}  // namespace
}  // namespace longhaul
