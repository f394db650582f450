// longhaul.v1.FineTuneService. Handlers parse, make one domain call, convert. Watch and ReadLogs are callback streams:
// a reader that waits costs no thread; the rest is synchronous.
#pragma once

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/rpc/rpc_context.h"

namespace longhaul::server {

// `context` must outlive the server.
std::unique_ptr<grpc::Service> MakeFineTuneService(const RpcContext* context);

}  // namespace longhaul::server
