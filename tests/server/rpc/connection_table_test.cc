#include "server/rpc/connection_table.h"

#include <netinet/in.h>

#include <cstring>
#include <string>

#include "base/net_address.h"
#include "gtest/gtest.h"
#include "server/rpc/gate.h"

namespace longhaul::server {
namespace {

// A connection of the host's, whose descriptor is its port.
ConnectionTable::Room AddFrom(ConnectionTable& table, const std::string& host, int port, bool proven_too = false) {
  return table.Add(host + ":" + std::to_string(port), {port, static_cast<uint64_t>(port)}, proven_too);
}
void AddProven(ConnectionTable& table, const std::string& host, int port) {
  ASSERT_TRUE(AddFrom(table, host, port).given);
  table.Prove(host + ":" + std::to_string(port));
}
// The port of the connection that went; 0 = none did, -1 = there was no room.
int PushedOut(const ConnectionTable::Room& room) {
  if (!room.given) return -1;
  return room.in_its_place.has_value() ? room.in_its_place->fd : 0;
}

TEST(ConnectionTableTest, AHostThatIsFullPushesOutItsOwnOldest) {
  ConnectionTable table(100, 3);
  for (int port = 1; port <= 3; ++port) EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", port)), 0);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.2", 9)), 0);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 4)), 1);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 5)), 2);
  EXPECT_EQ(table.size(), 4u);
}

TEST(ConnectionTableTest, WhoWasLetInStays) {
  ConnectionTable table(100, 2);
  AddFrom(table, "10.0.0.1", 1);
  table.Prove("10.0.0.1:1");
  table.Prove("10.0.0.1:1");
  table.Prove("10.0.0.1:77");  // nobody
  AddFrom(table, "10.0.0.1", 2);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 3)), 2);
  table.Prove("10.0.0.1:3");
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 4)), -1) << "nothing but proven ones: the new one is refused";
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 4, true)), -1) << "a host that is full takes none of its own";
  EXPECT_EQ(table.size(), 2u);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.2", 4)), 0);
}

TEST(ConnectionTableTest, WhereAllIsFullTheHostWithTheMostGivesFirst) {
  ConnectionTable table(4, 4);
  AddFrom(table, "10.0.0.1", 1);
  AddFrom(table, "10.0.0.2", 2);
  AddFrom(table, "10.0.0.2", 3);
  AddFrom(table, "10.0.0.2", 4);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.3", 5)), 2);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.4", 6)), 3);
  EXPECT_EQ(table.size(), 4u);
}

TEST(ConnectionTableTest, WhereAllAreProvenTheHostWithTheMostGives) {
  ConnectionTable table(6, 6);
  for (int port = 1; port <= 3; ++port) AddProven(table, "10.0.0.1", port);
  for (int port = 4; port <= 5; ++port) AddProven(table, "10.0.0.2", port);
  AddProven(table, "10.0.0.3", 6);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.4", 7)), -1);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 7, true)), -1) << "not to the host that has the most itself";
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.4", 7, true)), 1);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.5", 8, true)), 7) << "who is not proven goes before who is";
  table.Prove("10.0.0.5:8");
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.6", 9, true)), 2);
  table.Prove("10.0.0.6:9");
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.7", 10, true)), 4);
  table.Prove("10.0.0.7:10");
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.8", 11, true)), -1) << "hosts that have one each do not take turns";
  EXPECT_EQ(table.size(), 6u);
}

TEST(ConnectionTableTest, TheLoopbackHasAShareOfItsOwn) {
  ConnectionTable table(6, 6, 2);
  for (int port = 1; port <= 3; ++port) AddProven(table, "10.0.0.1", port);
  AddProven(table, "10.0.0.2", 4);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.2", 5)), -1) << "two places are not theirs";
  EXPECT_EQ(PushedOut(AddFrom(table, "127.0.0.1", 6)), 0);
  EXPECT_EQ(PushedOut(AddFrom(table, "::1", 7)), 0);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.3", 8)), -1) << "nor is what is not proven there";
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.3", 8, true)), 1);
  table.Prove("10.0.0.3:8");
  EXPECT_EQ(PushedOut(AddFrom(table, "::1", 9)), 6) << "one of its own";
  EXPECT_EQ(table.size(), 6u);
  // What the loopback has beyond its share is as everybody's.
  table.Sweep([](const SocketId& socket) { return socket.fd >= 7; });
  for (int port = 10; port <= 12; ++port) EXPECT_EQ(PushedOut(AddFrom(table, "127.0.0.1", port)), 0);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.4", 13)), 10);
}

TEST(ConnectionTableTest, AnIpv6HostIsItsNetwork) {
  ConnectionTable table(100, 2);
  AddFrom(table, "2001:db8::1", 1);
  AddFrom(table, "2001:db8::2", 2);
  EXPECT_EQ(PushedOut(AddFrom(table, "2001:db8::ffff:1", 3)), 1);
  EXPECT_EQ(PushedOut(AddFrom(table, "2001:db8:0:1::1", 4)), 0) << "the network beside it";
}

TEST(ConnectionTableTest, WhatHasClosedMakesRoom) {
  ConnectionTable table(100, 2);
  for (int port = 1; port <= 2; ++port) {
    AddFrom(table, "10.0.0.1", port);
    table.Prove("10.0.0.1:" + std::to_string(port));
  }
  table.Sweep([](const SocketId& socket) { return socket.fd != 1; });
  EXPECT_EQ(table.size(), 1u);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 3)), 0);
  table.Sweep([](const SocketId&) { return false; });
  EXPECT_EQ(table.size(), 0u);
}

TEST(ConnectionTableTest, CallsGoOnWhileItIsLookedWhichHaveClosed) {
  ConnectionTable table(100, 2);
  AddFrom(table, "10.0.0.1", 1);
  AddFrom(table, "10.0.0.2", 2);
  AddFrom(table, "10.0.0.3", 3);
  table.Sweep([&table](const SocketId& socket) {
    table.Prove("10.0.0.1:1");  // would wait for ever
    // Closed, and meanwhile there again, with the number of before.
    if (socket.fd == 2) table.Add("10.0.0.2:2", {2, 22}, false);
    return socket.fd == 1;
  });
  EXPECT_EQ(table.size(), 2u);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 4)), 0);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 5)), 4) << "the other one is proven";
  table.Sweep([](const SocketId& socket) { return socket.inode != 22; });
  EXPECT_EQ(table.size(), 2u);
}

TEST(ConnectionTableTest, APeerOfALinkIsProvenByTheNameThatGrpcHasOfIt) {
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_addr.s6_addr[0] = 0xfe;
  v6.sin6_addr.s6_addr[1] = 0x80;
  v6.sin6_addr.s6_addr[15] = 1;
  v6.sin6_port = htons(40'000);
  v6.sin6_scope_id = 2;
  sockaddr_storage address{};
  std::memcpy(&address, &v6, sizeof(v6));
  const SocketPeer peer = SocketPeerOf(address);
  EXPECT_EQ(peer.host, "fe80::1");
  EXPECT_EQ(HostAndPortOfPeer("ipv6:%5Bfe80::1%25eth0%5D:40000"), peer.host + ":" + std::to_string(peer.port));
  EXPECT_EQ(HostAndPortOfPeer("ipv6:[fe80::1%eth0]:40000"), peer.host + ":" + std::to_string(peer.port));
  EXPECT_EQ(HostAndPortOfPeer("ipv4:10.0.0.1:40000"), "10.0.0.1:40000");
}

TEST(ConnectionTableTest, APortThatComesAgainIsTheNewConnection) {
  ConnectionTable table(100, 2);
  AddFrom(table, "10.0.0.1", 1);
  table.Prove("10.0.0.1:1");
  AddFrom(table, "10.0.0.1", 2);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 1)), 0);
  EXPECT_EQ(table.size(), 2u);
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 3)), 2) << "the oldest";
  EXPECT_EQ(PushedOut(AddFrom(table, "10.0.0.1", 4)), 1) << "and the one that came again is not proven";
}

}  // namespace
}  // namespace longhaul::server
