// A TCP proxy on a free loopback port that can turn a connection dead: it stays open, what is sent on it is taken, and
// nothing comes of it, as when the other host has lost its power or a firewall between has forgotten the connection.
#pragma once

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <list>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/unique_fd.h"

namespace longhaul {

// Thread-safe. Carries everything to 127.0.0.1:`port` and back until it ends.
class TcpProxy {
 public:
  explicit TcpProxy(int port) : target_(port), listener_(Socket()), wake_(::eventfd(0, EFD_CLOEXEC)) {
    sockaddr_in address = Loopback(0);
    LH_CHECK(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    LH_CHECK(::listen(listener_.get(), SOMAXCONN) == 0 && wake_.get() >= 0);
    socklen_t size = sizeof(address);
    LH_CHECK(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Carry(); });
  }
  ~TcpProxy() {
    ended_ = true;
    Wake();
    thread_.join();
  }
  int port() const { return port_; }
  // Of the connections that are open now; later ones live.
  void Deaden() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Connection& one : connections_) one.dead = true;
  }

 private:
  struct Connection {
    UniqueFd client;
    UniqueFd server;
    bool dead = false;
  };

  static UniqueFd Socket() {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    LH_CHECK(fd.get() >= 0);
    return fd;
  }
  static sockaddr_in Loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
  }
  void Wake() {
    const uint64_t one = 1;
    LH_CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
  }

  void Carry() {
    while (!ended_) {
      std::vector<pollfd> polled = {{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
      for (const Connection& one : connections_) {
        polled.push_back({one.client.get(), POLLIN, 0});
        polled.push_back({one.server.get(), POLLIN, 0});
      }
      LH_CHECK(::poll(polled.data(), polled.size(), -1) > 0);
      const std::lock_guard<std::mutex> lock(mutex_);
      size_t at = 2;
      for (auto one = connections_.begin(); one != connections_.end(); at += 2) {
        const bool open = (polled[at].revents == 0 || Pass(one->client.get(), one->server.get(), one->dead)) &&
                          (polled[at + 1].revents == 0 || Pass(one->server.get(), one->client.get(), one->dead));
        one = open ? std::next(one) : connections_.erase(one);
      }
      if (polled[1].revents != 0) Accept();
    }
  }
  void Accept() {
    Connection made{UniqueFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)), Socket()};
    const sockaddr_in address = Loopback(target_);
    if (made.client.get() < 0) return;
    if (::connect(made.server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return;
    connections_.push_back(std::move(made));
  }
  // False once either end is closed.
  static bool Pass(int from, int to, bool dead) {
    std::array<char, 65536> bytes;
    const ssize_t got = ::recv(from, bytes.data(), bytes.size(), 0);
    if (got <= 0) return false;
    for (ssize_t sent = 0; !dead && sent < got;) {
      const ssize_t n = ::send(to, bytes.data() + sent, static_cast<size_t>(got - sent), MSG_NOSIGNAL);
      if (n <= 0) return false;
      sent += n;
    }
    return true;
  }

  const int target_;
  int port_ = 0;
  UniqueFd listener_;
  UniqueFd wake_;
  std::atomic<bool> ended_{false};
  std::mutex mutex_;  // guards `dead` of each; the list is the thread's, which changes it locked
  std::list<Connection> connections_;
  std::thread thread_;
};

}  // namespace longhaul
