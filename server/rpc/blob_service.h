// longhaul.v1.BlobService: bytes by their SHA-256, streamed in chunks of at most limits::kBlobChunkBytes, verified by
// the server and durable before the answer.
#pragma once

#include <memory>

#include "grpcpp/impl/service_type.h"
#include "server/rpc/rpc_context.h"

namespace longhaul::server {

// `context` must outlive the server.
std::unique_ptr<grpc::Service> MakeBlobService(const RpcContext* context);

}  // namespace longhaul::server
