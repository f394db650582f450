// longhaul.v1.WorkerService, for agents only. Sync is a callback method parked in the dispatcher: a worker costs no
// thread.
#pragma once

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/rpc/rpc_context.h"

namespace longhaul::server {

// `context` must outlive the server.
std::unique_ptr<grpc::Service> MakeWorkerService(const RpcContext* context);

}  // namespace longhaul::server
