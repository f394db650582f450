// The gRPC server's connections, and which of them makes room for another. No sockets: bookkeeping, thread-safe.
//
// Anybody may connect who has no credentials, so that connections run out before anything else does. A connection is
// proven once a call of it was let in (server/rpc/gate.h). Where there is no room, the oldest that is not proven goes.
// A host (an IPv4 address, an IPv6 /64) has a bound of its own, and of all hosts the one with the most that are not
// proven gives first: who opens many pushes out its own. Where all are proven, the host with the most connections gives
// its oldest, but to none that has as many: so one token fills no table, and a fleet whose hosts have one each does not
// take turns. The loopback (probes, the operator, a proxy) has a share that others cannot take.
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
  // REQUIRES: both positive; 0 <= of_loopback < most.
  ConnectionTable(int most, int most_of_host, int of_loopback = 0)
      : most_(most), most_of_host_(most_of_host), most_remote_(most - of_loopback) {}

  struct Room {
    bool given = false;
    std::optional<SocketId> in_its_place;  // to be ended: it is out of the table already
  };
  // `peer` is "HOST:PORT", without brackets. A proven one goes only where `proven_too`: first Sweep, because what has
  // closed makes room, too.
  Room Add(const std::string& peer, SocketId socket, bool proven_too);
  // A call of this peer was let in. Unknown peers do nothing.
  void Prove(const std::string& peer);
  // Forgets those that `is_open` denies. It is asked without the lock: calls need not wait for thousands of answers.
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
    bool loopback = false;
    size_t size() const { return unproven.size() + proven.size(); }
  };

  // Under mutex_.
  void Erase(Connections::iterator connection);
  // The oldest of the host's that are not proven, or of those that are. REQUIRES: there is one.
  SocketId TakeOldest(Connections& connections);
  // Whose oldest goes for one that is not proven itself; null = nobody's. The loopback's only where `loopback_too`.
  Connections* UnprovenThatGive(bool loopback_too);
  // The same of proven ones, for one more of a host that has `size`.
  Connections* ProvenThatGive(size_t size, bool loopback_too);

  const int most_;
  const int most_of_host_;
  const int most_remote_;     // of all hosts but the loopback
  mutable std::mutex mutex_;  // guards all below
  std::map<std::string, Host> hosts_;
  std::unordered_map<std::string, Connections::iterator> by_peer_;
  size_t remote_ = 0;  // of by_peer_, those that are not from the loopback
};

}  // namespace longhaul::server
