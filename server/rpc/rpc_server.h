// The gRPC server: the four services of longhaul.v1, grpc.health.v1 and reflection, on one address.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "base/limits.h"
#include "server/listen_address.h"
#include "server/rpc/connection_table.h"
#include "server/rpc/rpc_context.h"
#include "server/rpc/server_credentials.h"

namespace longhaul::server {

class RpcServer {
 public:
  struct Options {
    ClientCertificates clients = ClientCertificates::kNone;
    int64_t connection_idle_ms = limits::kConnectionIdleMs;
    int64_t connection_age_ms = limits::kConnectionAgeMs;
    int64_t connection_age_grace_ms = limits::kConnectionAgeGraceMs;
  };

  // Serving when it returns. `context`, `connections` and `tls` must outlive the server. `tls` null: plaintext.
  // FAILED_PRECONDITION PORT_TAKEN, CANNOT_LISTEN.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const ListenAddress& address, const Options& options,
                                                          const RpcContext* context, ConnectionTable* connections,
                                                          TlsReloader* tls = nullptr);
  ~RpcServer();

  int port() const;

  // Health says NOT_SERVING: balancers and waiting clients go elsewhere.
  void Drain();
  // Ends what still runs after `grace_ms`, then waits until every handler has returned. Watches, parked Syncs and log
  // readers must be told before (EventHub::Shutdown, Dispatcher::Stop), or they last the grace time. Once.
  void Shutdown(int64_t grace_ms);

 private:
  struct Impl;
  explicit RpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::server
