#include "server/rpc/connection_table.h"

#include <utility>
#include <vector>

#include "base/net_address.h"

namespace longhaul::server {

ConnectionTable::Room ConnectionTable::Add(const std::string& peer, SocketId socket) {
  std::lock_guard lock(mutex_);
  // The same port again: the one before has closed.
  if (const auto known = by_peer_.find(peer); known != by_peer_.end()) Erase(known->second);
  const std::string host = HostGroup(peer.substr(0, peer.rfind(':')));
  Room room;
  if (const auto found = hosts_.find(host);
      found != hosts_.end() && found->second.size() >= static_cast<size_t>(most_of_host_)) {
    room.in_its_place = TakeOldestOf(found->second);
    if (!room.in_its_place.has_value()) return room;
  } else if (by_peer_.size() >= static_cast<size_t>(most_)) {
    Host* const most = MostUnproven();
    if (most == nullptr) return room;
    room.in_its_place = TakeOldestOf(*most);
  }
  Connections& unproven = hosts_[host].unproven;
  unproven.push_back({peer, host, socket, false});
  by_peer_[peer] = std::prev(unproven.end());
  room.given = true;
  return room;
}

void ConnectionTable::Prove(const std::string& peer) {
  std::lock_guard lock(mutex_);
  const auto found = by_peer_.find(peer);
  if (found == by_peer_.end() || found->second->proven) return;
  found->second->proven = true;
  Host& host = hosts_.at(found->second->host);
  host.proven.splice(host.proven.end(), host.unproven, found->second);
}

void ConnectionTable::Sweep(const std::function<bool(const SocketId&)>& is_open) {
  std::lock_guard lock(mutex_);
  std::vector<Connections::iterator> closed;
  for (const auto& [peer, connection] : by_peer_) {
    if (!is_open(connection->socket)) closed.push_back(connection);
  }
  for (const Connections::iterator connection : closed) Erase(connection);
}

size_t ConnectionTable::size() const {
  std::lock_guard lock(mutex_);
  return by_peer_.size();
}

void ConnectionTable::Erase(Connections::iterator connection) {
  const auto host = hosts_.find(connection->host);
  by_peer_.erase(connection->peer);
  (connection->proven ? host->second.proven : host->second.unproven).erase(connection);
  if (host->second.size() == 0) hosts_.erase(host);
}

// The host may be gone with it.
std::optional<SocketId> ConnectionTable::TakeOldestOf(Host& host) {
  if (host.unproven.empty()) return std::nullopt;
  const SocketId socket = host.unproven.front().socket;
  Erase(host.unproven.begin());
  return socket;
}

ConnectionTable::Host* ConnectionTable::MostUnproven() {
  Host* most = nullptr;
  for (auto& [name, host] : hosts_) {
    if (!host.unproven.empty() && (most == nullptr || host.unproven.size() > most->unproven.size())) most = &host;
  }
  return most;
}

}  // namespace longhaul::server
