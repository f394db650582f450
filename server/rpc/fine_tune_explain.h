// ExplainFineTuneJob: why a job is where it is, and what would move it. Thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "server/rpc/rpc_context.h"

namespace longhaul::server {

absl::StatusOr<v1::ExplainFineTuneJobResponse> ExplainJob(const RpcContext& context, const Job& job);

}  // namespace longhaul::server
