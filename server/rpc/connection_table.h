// The gRPC server's connections, and which of them makes room for another. No sockets: bookkeeping, thread-safe.
//
// Anybody may connect who has no credentials, so that connections run out before anything else does. A connection is
// proven once a call of it was let in (server/rpc/gate.h). Where there is no room, the oldest that is not proven goes;
// proven ones never go for a new one. A host (an IPv4 address, an IPv6 /64) has a bound of its own, and of all hosts
// the one with the most that are not proven gives first: who opens many pushes out its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

namespace longhaul::server {

// A descriptor that somebody else closes, and the socket that it was: the number may be another's by now.
struct SocketId {
  int fd = -1;
  uint64_t inode = 0;
};

class ConnectionTable {
 public:
  // REQUIRES: both positive.
  ConnectionTable(int most, int most_of_host) : most_(most), most_of_host_(most_of_host) {}

  struct Room {
    bool given = false;
    std::optional<SocketId> in_its_place;  // to be ended: it is out of the table already
  };
  // `peer` is "HOST:PORT", without brackets.
  Room Add(const std::string& peer, SocketId socket);
  // A call of this peer was let in. Unknown peers do nothing.
  void Prove(const std::string& peer);
  // Forgets those that `is_open` denies.
  void Sweep(const std::function<bool(const SocketId&)>& is_open);

  size_t size() const;

 private:
  struct Connection {
    std::string peer;
    std::string host;
    SocketId socket;
    bool proven = false;
  };
  using Connections = std::list<Connection>;
  struct Host {
    Connections unproven;  // oldest first
    Connections proven;
    size_t size() const { return unproven.size() + proven.size(); }
  };

  // Under mutex_.
  void Erase(Connections::iterator connection);
  std::optional<SocketId> TakeOldestOf(Host& host);
  Host* MostUnproven();

  const int most_;
  const int most_of_host_;
  mutable std::mutex mutex_;  // guards all below
  std::map<std::string, Host> hosts_;
  std::unordered_map<std::string, Connections::iterator> by_peer_;
};

}  // namespace longhaul::server
