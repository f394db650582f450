// CreateFineTuneJob and EstimateFineTuneJob, and the estimate that a job is shown with. Thread-safe.
#pragma once

#include <functional>
#include <optional>

#include "absl/status/statusor.h"
#include "longhaul/v1/fine_tune_service.pb.h"
#include "server/rpc/rpc_context.h"

namespace longhaul::server {

// Every synchronous check, then durable. Nothing is stored where a check fails, or with validate_only.
absl::StatusOr<v1::Job> CreateJob(const RpcContext& context, const Caller& caller,
                                  const v1::CreateFineTuneJobRequest& request, Audit* audit);

// The answer's forecast is for the caller's project, and left out where the scheduler cannot tell it soon
// (Dispatcher::Forecast). `cancelled`: as there.
absl::StatusOr<v1::EstimateFineTuneJobResponse> EstimateJob(const RpcContext& context, const Caller& caller,
                                                            const v1::EstimateFineTuneJobRequest& request,
                                                            const std::function<bool()>& cancelled);

// The job with its queue position and its estimate: on the class it runs on, else on the first that it fits on.
v1::Job ShowJob(const RpcContext& context, const Job& job);
// The same where it is known what the job waits for.
v1::Job ShowJob(const RpcContext& context, const Job& job, const std::optional<WaitInfo>& wait);

}  // namespace longhaul::server
