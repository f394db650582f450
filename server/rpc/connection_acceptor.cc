#include "server/rpc/connection_acceptor.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "base/limits.h"
#include "base/net_address.h"
#include "spdlog/spdlog.h"

namespace longhaul::server {
namespace {

// 0 where `fd` is none.
uint64_t InodeOf(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 ? status.st_ino : 0;
}

bool IsOpen(const SocketId& socket) { return InodeOf(socket.fd) == socket.inode; }

// gRPC owns the descriptor and may close it meanwhile, whose number then is another's: a copy cannot become another.
void EndConnection(const SocketId& socket) {
  const UniqueFd copy(::fcntl(socket.fd, F_DUPFD_CLOEXEC, 0));
  if (copy.get() >= 0 && InodeOf(copy.get()) == socket.inode) ::shutdown(copy.get(), SHUT_RDWR);
}

// As gRPC sets up what it accepts itself.
void SetOptions(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  const auto timeout_ms = static_cast<unsigned>(limits::kServerPingTimeoutMs);
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> ConnectionAcceptor::Listen(const ListenAddress& address,
                                                                               ConnectionTable* table,
                                                                               const Clock* clock) {
  int error = 0;
  UniqueFd listener = ListenOn(address, SOMAXCONN, &error);
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  if (listener.get() < 0 || stop.get() < 0) return CannotListen(address);
  return std::unique_ptr<ConnectionAcceptor>(
      new ConnectionAcceptor(std::move(listener), std::move(stop), table, clock));
}

ConnectionAcceptor::ConnectionAcceptor(UniqueFd listener, UniqueFd stop, ConnectionTable* table, const Clock* clock)
    : listener_(std::move(listener)), stop_(std::move(stop)), table_(table), clock_(clock) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0) {
    port_ = SocketPeerOf(address).port;
  }
}

void ConnectionAcceptor::Start(std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> server) {
  server_ = std::move(server);
  thread_ = std::thread([this] { Loop(); });
}

void ConnectionAcceptor::Stop() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  if (::write(stop_.get(), &one, sizeof(one)) != sizeof(one)) spdlog::error("gRPC: cannot stop accepting");
  thread_.join();
  server_.reset();
  listener_.Reset();
}

void ConnectionAcceptor::Loop() {
  while (true) {
    pollfd polled[] = {{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    const int timeout_ms = table_->size() == 0 ? -1 : static_cast<int>(limits::kConnectionSweepMs);
    if (::poll(polled, 2, timeout_ms) < 0 && errno != EINTR) {
      spdlog::critical("gRPC: poll fails; no more connections until the next start");
      return;
    }
    if (polled[0].revents != 0) return;
    if (clock_->BootNanos() - swept_boot_nanos_ >= limits::kConnectionSweepMs * 1'000'000) Sweep();
    for (int i = 0; polled[1].revents != 0 && i < limits::kMaxAcceptsAtOnce && AcceptOne(); ++i) {
    }
  }
}

bool ConnectionAcceptor::AcceptOne() {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  UniqueFd fd(::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.get() < 0) {
    if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM) return errno == ECONNABORTED;
    // The listener stays readable: without a pause it would be asked again and again.
    spdlog::error("gRPC: cannot accept a connection: error {}", errno);
    pollfd stop{stop_.get(), POLLIN, 0};
    ::poll(&stop, 1, static_cast<int>(limits::kNoDescriptorPauseMs));
    return false;
  }
  const SocketPeer peer = SocketPeerOf(address);
  if (!TakeRoom(peer.host + ":" + std::to_string(peer.port), {fd.get(), InodeOf(fd.get())})) return true;
  SetOptions(fd.get());
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
  connection.listener_fd = listener_.get();
  connection.fd = fd.Release();
  server_->HandleNewConnection(&connection);
  return true;
}

bool ConnectionAcceptor::TakeRoom(const std::string& peer, SocketId socket) {
  ConnectionTable::Room room = table_->Add(peer, socket, false);
  if (!room.given) {
    if (clock_->BootNanos() - swept_boot_nanos_ >= limits::kEarlySweepMs * 1'000'000) Sweep();
    room = table_->Add(peer, socket, true);
  }
  if (room.in_its_place.has_value()) EndConnection(*room.in_its_place);
  if (room.given && !room.in_its_place.has_value()) return true;
  if (const int64_t now = clock_->BootNanos();
      told_boot_nanos_ == 0 || now - told_boot_nanos_ >= limits::kConnectionsFullLineMs * 1'000'000) {
    told_boot_nanos_ = now;
    spdlog::warn("gRPC: no room for {} beside {} connections, its host's or all that there may be: it {}", peer,
                 table_->size(), room.given ? "takes the place of another" : "is refused");
  }
  return room.given;
}

void ConnectionAcceptor::Sweep() {
  table_->Sweep(IsOpen);
  swept_boot_nanos_ = clock_->BootNanos();
}

}  // namespace longhaul::server
