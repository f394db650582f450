// grpc.reflection.v1alpha: what clients like grpcurl learn the API from. gRPC's own one takes a thread a stream and
// asks nobody who it is; this one takes neither.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "grpc/reflection/v1alpha/reflection.pb.h"
#include "grpcpp/impl/service_type.h"
#include "server/rpc/rpc_context.h"

namespace longhaul::server {

// What reflection says of the protos that this program has. Pure, thread-safe. A file comes with all that it imports.
// Errors are answers, too: NOT_FOUND, INVALID_ARGUMENT.
grpc::reflection::v1alpha::ServerReflectionResponse Reflect(
    const std::vector<std::string>& services, const grpc::reflection::v1alpha::ServerReflectionRequest& request);

// `context` must outlive the server. `services`: full names of what the server answers.
std::unique_ptr<grpc::Service> MakeReflectionService(const RpcContext* context, std::vector<std::string> services);

}  // namespace longhaul::server
