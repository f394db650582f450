// Hosts of this machine, told by number: "127.example.org" is somebody else's.
#pragma once

#include <sys/socket.h>

#include <string>

#include "absl/status/status.h"

namespace longhaul {

// "localhost", 127.0.0.0/8 or ::1, without brackets and port.
bool IsLoopbackHost(const std::string& host);

// The same of "HOST:PORT", with a bracketed IPv6 address: what a client connects to.
bool IsLoopbackTarget(const std::string& target);

// The other end of a TCP connection, or this one. An IPv4 address that came as an IPv6 one ("::ffff:10.0.0.1") is IPv4.
struct SocketPeer {
  std::string host;  // without brackets and without a link-local address's zone ("%eth0"); "" = no internet address
  int port = 0;
};
SocketPeer SocketPeerOf(const sockaddr_storage& address);

// Whom a host's limits are of: an IPv4 address itself, of an IPv6 address its /64 ("2001:db8:0:1::/64"), because one
// host may use any of that network. Anything else is itself.
std::string HostGroup(const std::string& host);

// INVALID_FIELD of `field` unless `target` is "HOST:PORT" with a port of 1 to 65,535, or has a scheme of gRPC's
// ("unix:PATH", "dns:///NAME").
absl::Status CheckTarget(const std::string& field, const std::string& target);

}  // namespace longhaul
