// Accepts the gRPC server's connections and hands them to it, because its own listener has no bound, tells nobody of a
// connection's end, and never accepts again once the process was out of descriptors. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "grpcpp/server_builder.h"
#include "server/listen_address.h"
#include "server/rpc/connection_table.h"

namespace longhaul::server {

class ConnectionAcceptor {
 public:
  // The port is taken when it returns; connections wait until Start. `table` and `clock` must outlive the acceptor.
  // FAILED_PRECONDITION PORT_TAKEN, CANNOT_LISTEN.
  static absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> Listen(const ListenAddress& address,
                                                                    ConnectionTable* table, const Clock* clock);
  ~ConnectionAcceptor() { Stop(); }

  int port() const { return port_; }

  // REQUIRES: the server of `server` runs, and until Stop has returned.
  void Start(std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> server);
  // Accepts nothing any more. What is open stays open.
  void Stop();

 private:
  ConnectionAcceptor(UniqueFd listener, UniqueFd stop, ConnectionTable* table, const Clock* clock);

  void Loop();
  // False: no more for now.
  bool AcceptOne();
  bool TakeRoom(const std::string& peer, SocketId socket);
  void Sweep();

  UniqueFd listener_;
  UniqueFd stop_;  // an eventfd
  ConnectionTable* const table_;
  const Clock* const clock_;
  int port_ = 0;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> server_;
  // The thread's own.
  int64_t swept_boot_nanos_ = 0;
  int64_t told_boot_nanos_ = 0;  // of the last line about refused connections
  std::thread thread_;
};

}  // namespace longhaul::server
