#include "server/rpc/rpc_server.h"

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "grpc/support/log.h"
#include "grpcpp/grpcpp.h"
#include "server/rpc/blob_service.h"
#include "server/rpc/connection_acceptor.h"
#include "server/rpc/fine_tune_service.h"
#include "server/rpc/health_service.h"
#include "server/rpc/reflection_service.h"
#include "server/rpc/worker_admin_service.h"
#include "server/rpc/worker_service.h"
#include "spdlog/spdlog.h"

namespace longhaul::server {
namespace {

// gRPC writes to stderr by itself. What matters of it comes back as a status, so its own lines are for debugging.
void LogOfGrpc(gpr_log_func_args* args) { spdlog::debug("gRPC {}:{}: {}", args->file, args->line, args->message); }

constexpr const char* kServiceNames[] = {"longhaul.v1.FineTuneService", "longhaul.v1.BlobService",
                                         "longhaul.v1.WorkerService", "longhaul.v1.WorkerAdminService"};

std::vector<std::string> OwnServices() { return {std::begin(kServiceNames), std::end(kServiceNames)}; }

std::vector<std::string> ReflectedServices() {
  std::vector<std::string> names = OwnServices();
  names.insert(names.end(), {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"});
  return names;
}

// Whose end is gone, or who asks nothing, keeps no connection; and none outlives what its credentials were checked for.
// Clients go on over a new one (clients/cli/watch.h, blob_transfer.h; worker/agent/transfers.h).
void SetConnectionTimes(const RpcServer::Options& options, grpc::ServerBuilder* builder) {
  const auto set = [builder](const char* name, int64_t value) {
    builder->AddChannelArgument(name, static_cast<int>(value));
  };
  set(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, limits::kHandshakeMs);
  set(GRPC_ARG_MAX_CONNECTION_IDLE_MS, options.connection_idle_ms);
  set(GRPC_ARG_MAX_CONNECTION_AGE_MS, options.connection_age_ms);
  set(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, options.connection_age_grace_ms);
  set(GRPC_ARG_KEEPALIVE_TIME_MS, limits::kServerPingMs);
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, limits::kServerPingTimeoutMs);
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // ours; otherwise the third is never sent
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, limits::kMinClientPingMs);
}

void SetLimits(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(limits::kMaxGrpcMessageBytes);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, limits::kMaxGrpcMetadataBytes);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits::kMaxStreamsPerConnection);
  grpc::ResourceQuota quota("longhauld");
  quota.SetMaxThreads(limits::kMaxRpcThreads);
  quota.Resize(limits::kMaxRpcMemoryBytes);
  builder->SetResourceQuota(quota);
}

}  // namespace

struct RpcServer::Impl {
  // These outlive the server.
  std::shared_ptr<grpc::ServerCredentials> credentials;
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<HealthService> health;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<ConnectionAcceptor> acceptor;
};

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const ListenAddress& address, const Options& options,
                                                            const RpcContext* context, ConnectionTable* connections,
                                                            TlsReloader* tls) {
  gpr_set_log_function(LogOfGrpc);
  grpc::EnableDefaultHealthCheckService(false);  // ours has limits

  auto impl = std::make_unique<Impl>();
  impl->services.push_back(MakeFineTuneService(context));
  impl->services.push_back(MakeBlobService(context));
  impl->services.push_back(MakeWorkerService(context));
  impl->services.push_back(MakeWorkerAdminService(context));
  impl->services.push_back(MakeReflectionService(context, ReflectedServices()));
  impl->health = std::make_unique<HealthService>(context, OwnServices());

  LH_ASSIGN_OR_RETURN(impl->acceptor, ConnectionAcceptor::Listen(address, connections, context->gate.clock()));
  grpc::ServerBuilder builder;
  impl->credentials =
      tls == nullptr ? grpc::InsecureServerCredentials() : ReloadingTlsCredentials(tls, options.clients);
  auto connector = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, impl->credentials);
  SetConnectionTimes(options, &builder);
  SetLimits(&builder);
  for (const auto& service : impl->services) builder.RegisterService(service.get());
  builder.RegisterService(impl->health->service());
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "CANNOT_LISTEN", "gRPC does not start its server");
  }
  impl->health->SetServing(true);
  impl->acceptor->Start(std::move(connector));
  return std::unique_ptr<RpcServer>(new RpcServer(std::move(impl)));
}

RpcServer::RpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

RpcServer::~RpcServer() { Shutdown(0); }

int RpcServer::port() const { return impl_->acceptor->port(); }

void RpcServer::Drain() { impl_->health->SetServing(false); }

void RpcServer::Shutdown(int64_t grace_ms) {
  if (impl_->server == nullptr) return;
  impl_->acceptor->Stop();
  impl_->health->Shutdown();
  impl_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(grace_ms));
  impl_->server->Wait();
  impl_->server.reset();
}

}  // namespace longhaul::server
