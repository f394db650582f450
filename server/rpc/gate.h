// What every handler goes through: authentication, the count of the call, the conversion of its error. Thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "grpcpp/server_context.h"
#include "server/request_stats.h"
#include "server/rpc/caller.h"
#include "server/rpc/status.h"

namespace longhaul::server {

class Gate {
 public:
  // Does not own.
  Gate(RequestStats* stats, const Clock* clock) : stats_(stats), clock_(clock) {}

  // `body` is absl::Status(const Caller&). `method` is "FineTuneService/GetFineTuneJob".
  template <typename Body>
  grpc::Status Unary(const grpc::ServerContextBase& context, const char* method, Scope scope, Body body) const {
    const int64_t begin_nanos = clock_->BootNanos();
    absl::Status status;
    if (absl::StatusOr<Caller> caller = Admit(context, scope); caller.ok()) {
      status = body(*caller);
    } else {
      status = caller.status();
    }
    stats_->CountUnary(method, absl::StatusCodeToString(status.code()),
                       static_cast<double>(clock_->BootNanos() - begin_nanos) * 1e-9);
    return ToGrpcStatus(status);
  }

  // The two halves, for streams and parked calls.
  absl::StatusOr<Caller> Admit(const grpc::ServerContextBase& context, Scope scope) const {
    absl::StatusOr<Caller> caller = CallerOf(context.peer(), scope);
    if (!caller.ok()) stats_->CountAuthFailure();
    return caller;
  }
  grpc::Status End(const char* method, const absl::Status& status) const {
    stats_->CountCall(method, absl::StatusCodeToString(status.code()));
    return ToGrpcStatus(status);
  }

  RequestStats* stats() const { return stats_; }
  const Clock* clock() const { return clock_; }

 private:
  RequestStats* stats_;
  const Clock* clock_;
};

}  // namespace longhaul::server
