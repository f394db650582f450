#include "server/rpc/connection_table.h"

#include <string>

#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

// A connection of the host's, whose descriptor is its port.
ConnectionTable::Room AddFrom(ConnectionTable& table, const std::string& host, int port) {
  return table.Add(host + ":" + std::to_string(port), {port, static_cast<uint64_t>(port)});
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
