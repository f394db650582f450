#include "base/net_address.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <utility>

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

TEST(NetAddressTest, AHostsGroupIsItsNetworkInIpv6) {
  EXPECT_EQ(HostGroup("10.0.0.1"), "10.0.0.1");
  EXPECT_EQ(HostGroup("::ffff:10.0.0.1"), "10.0.0.1");
  EXPECT_EQ(HostGroup("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
  EXPECT_EQ(HostGroup("2001:DB8:1:2::1"), "2001:db8:1:2::/64");
  EXPECT_NE(HostGroup("2001:db8:1:3::1"), HostGroup("2001:db8:1:2::1"));
  EXPECT_EQ(HostGroup("fe80::1%eth0"), "fe80::/64");
  for (const char* other : {"", "unix", "a%b", "scheduler", "[::1]"}) EXPECT_EQ(HostGroup(other), other);
}

TEST(NetAddressTest, ASocketsPeerIsReadFromItsAddress) {
  sockaddr_storage address{};
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address);
  v4->sin_family = AF_INET;
  v4->sin_port = htons(7070);
  ASSERT_EQ(::inet_pton(AF_INET, "10.0.0.1", &v4->sin_addr), 1);
  EXPECT_EQ(SocketPeerOf(address).host, "10.0.0.1");
  EXPECT_EQ(SocketPeerOf(address).port, 7070);
  const std::pair<const char*, const char*> cases[] = {{"2001:db8::1", "2001:db8::1"}, {"::ffff:10.0.0.2", "10.0.0.2"}};
  for (const auto& [text, host] : cases) {
    address = {};
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&address);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(8080);
    ASSERT_EQ(::inet_pton(AF_INET6, text, &v6->sin6_addr), 1);
    EXPECT_EQ(SocketPeerOf(address).host, host);
    EXPECT_EQ(SocketPeerOf(address).port, 8080);
  }
  address = {};
  address.ss_family = AF_UNIX;
  EXPECT_EQ(SocketPeerOf(address).host, "");
}

}  // namespace
}  // namespace longhaul
