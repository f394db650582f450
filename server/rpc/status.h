// The one place that builds a grpc::Status: canonical code, message, and google.rpc.Status details with ErrorInfo
// (domain "longhaul.v1") and, where fields are at fault, BadRequest. Pure, thread-safe.
#pragma once

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace longhaul::server {

inline constexpr char kErrorDomain[] = "longhaul.v1";

// Message and violations are cut to limits::kMaxErrorMessageBytes and kMaxErrorDetailBytes, because gRPC clients drop
// answers whose trailing metadata passes 8 KiB; the last violation then says how many more there are.
grpc::Status ToGrpcStatus(const absl::Status& status);

// What a client is told of an error of the scheduler's own files, which is never the client's fault nor its business
// where: RESOURCE_EXHAUSTED where something has run out (DISK_FULL, TOO_MANY_OPEN_FILES, HOST_OOM), else
// UNAVAILABLE STORE_IO, with the system's words and no path. Any other status as it is.
absl::Status HideOwnFiles(const absl::Status& status);

}  // namespace longhaul::server
