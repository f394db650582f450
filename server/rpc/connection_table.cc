#include "server/rpc/connection_table.h"

#include <utility>
#include <vector>

#include "base/net_address.h"

namespace longhaul::server {

ConnectionTable::Room ConnectionTable::Add(const std::string& peer, SocketId socket, bool proven_too) {
  const std::string address = peer.substr(0, peer.rfind(':'));
  const bool loopback = IsLoopbackHost(address);
  const std::string host = HostGroup(address);
  std::lock_guard lock(mutex_);
  // The same port again: the one before has closed.
  if (const auto known = by_peer_.find(peer); known != by_peer_.end()) Erase(known->second);
  const auto found = hosts_.find(host);
  const size_t size = found == hosts_.end() ? 0 : found->second.size();
  const bool remote_full = !loopback && remote_ >= static_cast<size_t>(most_remote_);
  Room room;
  if (size >= static_cast<size_t>(most_of_host_)) {
    if (found->second.unproven.empty()) return room;
    room.in_its_place = TakeOldest(found->second.unproven);
  } else if (remote_full || by_peer_.size() >= static_cast<size_t>(most_)) {
    Connections* giving = UnprovenThatGive(!remote_full);
    if (giving == nullptr && proven_too) giving = ProvenThatGive(size, !remote_full);
    if (giving == nullptr) return room;
    room.in_its_place = TakeOldest(*giving);
  }
  Host& place = hosts_[host];
  place.loopback = loopback;
  place.unproven.push_back({peer, host, socket, false});
  by_peer_[peer] = std::prev(place.unproven.end());
  if (!loopback) ++remote_;
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
  std::vector<std::pair<std::string, SocketId>> looked_at;
  {
    std::lock_guard lock(mutex_);
    looked_at.reserve(by_peer_.size());
    for (const auto& [peer, connection] : by_peer_) looked_at.emplace_back(peer, connection->socket);
  }
  std::erase_if(looked_at, [&is_open](const auto& connection) { return is_open(connection.second); });
  std::lock_guard lock(mutex_);
  for (const auto& [peer, closed] : looked_at) {
    const auto found = by_peer_.find(peer);
    // The same port may be another connection's by now.
    if (found == by_peer_.end()) continue;
    const SocketId& socket = found->second->socket;
    if (socket.fd == closed.fd && socket.inode == closed.inode) Erase(found->second);
  }
}

size_t ConnectionTable::size() const {
  std::lock_guard lock(mutex_);
  return by_peer_.size();
}

void ConnectionTable::Erase(Connections::iterator connection) {
  const auto host = hosts_.find(connection->host);
  by_peer_.erase(connection->peer);
  if (!host->second.loopback) --remote_;
  (connection->proven ? host->second.proven : host->second.unproven).erase(connection);
  if (host->second.size() == 0) hosts_.erase(host);
}

// The host may be gone with it.
SocketId ConnectionTable::TakeOldest(Connections& connections) {
  const SocketId socket = connections.front().socket;
  Erase(connections.begin());
  return socket;
}

ConnectionTable::Connections* ConnectionTable::UnprovenThatGive(bool loopback_too) {
  Connections* most = nullptr;
  for (auto& [name, host] : hosts_) {
    if (host.unproven.empty() || (host.loopback && !loopback_too)) continue;
    if (most == nullptr || host.unproven.size() > most->size()) most = &host.unproven;
  }
  return most;
}

ConnectionTable::Connections* ConnectionTable::ProvenThatGive(size_t size, bool loopback_too) {
  Host* most = nullptr;
  for (auto& [name, host] : hosts_) {
    if (host.proven.empty() || (host.loopback && !loopback_too)) continue;
    if (most == nullptr || host.size() > most->size()) most = &host;
  }
  return most != nullptr && most->size() > size + 1 ? &most->proven : nullptr;
}

}  // namespace longhaul::server
