#include "server/rpc/rpc_server.h"

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "grpc/support/log.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "server/rpc/blob_service.h"
#include "server/rpc/fine_tune_service.h"
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

std::vector<std::string> ReflectedServices() {
  std::vector<std::string> names(std::begin(kServiceNames), std::end(kServiceNames));
  names.insert(names.end(), {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"});
  return names;
}

void SetLimits(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(limits::kMaxGrpcMessageBytes);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, limits::kMaxGrpcMetadataBytes);
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, limits::kHandshakeMs);
  // Without this a second scheduler would share the port, and each get a part of the calls.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Clients may ask every 10 s whether an idle watch is still alive.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  grpc::ResourceQuota quota("longhauld");
  quota.SetMaxThreads(limits::kMaxRpcThreads);
  builder->SetResourceQuota(quota);
}

}  // namespace

struct RpcServer::Impl {
  // Both outlive the server.
  std::shared_ptr<grpc::ServerCredentials> credentials;
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<grpc::Server> server;
  int port = 0;

  void SetServing(bool serving) {
    server->GetHealthCheckService()->SetServingStatus("", serving);
    for (const char* name : kServiceNames) server->GetHealthCheckService()->SetServingStatus(name, serving);
  }
};

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const ListenAddress& address, const RpcContext* context,
                                                            TlsReloader* tls, ClientCertificates clients) {
  gpr_set_log_function(LogOfGrpc);
  grpc::EnableDefaultHealthCheckService(true);

  auto impl = std::make_unique<Impl>();
  impl->services.push_back(MakeFineTuneService(context));
  impl->services.push_back(MakeBlobService(context));
  impl->services.push_back(MakeWorkerService(context));
  impl->services.push_back(MakeWorkerAdminService(context));
  impl->services.push_back(MakeReflectionService(context, ReflectedServices()));

  grpc::ServerBuilder builder;
  impl->credentials = tls == nullptr ? grpc::InsecureServerCredentials() : ReloadingTlsCredentials(tls, clients);
  builder.AddListeningPort(address.ToString(), impl->credentials, &impl->port);
  SetLimits(&builder);
  for (const auto& service : impl->services) builder.RegisterService(service.get());
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || impl->port == 0) return CannotListen(address);
  impl->SetServing(true);
  return std::unique_ptr<RpcServer>(new RpcServer(std::move(impl)));
}

RpcServer::RpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

RpcServer::~RpcServer() { Shutdown(0); }

int RpcServer::port() const { return impl_->port; }

void RpcServer::Drain() {
  if (impl_->server != nullptr) impl_->SetServing(false);
}

void RpcServer::Shutdown(int64_t grace_ms) {
  if (impl_->server == nullptr) return;
  impl_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(grace_ms));
  impl_->server->Wait();
  impl_->server.reset();
}

}  // namespace longhaul::server
