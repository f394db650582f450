// longhaul.v1.WorkerAdminService: workers as an operator sees them.
#pragma once

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/rpc/rpc_context.h"

namespace longhaul::server {

// `context` must outlive the server.
std::unique_ptr<grpc::Service> MakeWorkerAdminService(const RpcContext* context);

}  // namespace longhaul::server
