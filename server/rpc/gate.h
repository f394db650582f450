// What every call goes through, and the only way to a Caller: credentials, the method's row of the table
// (server/rpc/method_table.h), the caller's rate, the count of the call, the audit log, the conversion of its error.
// Thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "grpcpp/server_context.h"
#include "server/authenticator.h"
#include "server/call_limits.h"
#include "server/dispatcher.h"
#include "server/request_stats.h"
#include "server/rpc/connection_table.h"
#include "server/rpc/method_table.h"
#include "server/rpc/session_seal.h"
#include "server/rpc/status.h"

namespace longhaul::server {

class Gate {
 public:
  // Does not own. `dispatcher` writes the audit log; `connections`, where there is one, hears who was let in.
  Gate(Authenticator* authenticator, CallLimits* limits, RequestStats* stats, const Clock* clock,
       Dispatcher* dispatcher, ConnectionTable* connections = nullptr)
      : authenticator_(authenticator),
        limits_(limits),
        stats_(stats),
        clock_(clock),
        dispatcher_(dispatcher),
        connections_(connections) {}

  // A call that changes nothing: `body` is absl::Status(const Caller&).
  template <typename Body>
  grpc::Status Unary(const grpc::ServerContextBase& context, Method method, Body body) const {
    const int64_t begin_nanos = clock_->BootNanos();
    absl::StatusOr<Caller> caller = Admit(context, method);
    const absl::Status status = caller.ok() ? body(*caller) : caller.status();
    return EndUnary(method, begin_nanos, status);
  }

  // An audited call: `body` is absl::Status(const Caller&, Audit*) and hands the audit to the dispatcher's command.
  // What is refused before there is one is recorded here. REQUIRES: the method's row says audited.
  template <typename Body>
  grpc::Status Mutation(const grpc::ServerContextBase& context, Method method, Body body) const {
    const int64_t begin_nanos = clock_->BootNanos();
    Audit audit;
    absl::StatusOr<Caller> caller = Admit(context, method, &audit);
    const absl::Status status = caller.ok() ? body(*caller, &audit) : caller.status();
    Record(status, &audit);
    return EndUnary(method, begin_nanos, status);
  }

  // The parts of it, for streams and parked calls. Record before the end of an audited one.
  // UNAUTHENTICATED (Authenticator), PERMISSION_DENIED SCOPE_MISSING, RESOURCE_EXHAUSTED RATE_LIMITED.
  absl::StatusOr<Caller> Admit(const grpc::ServerContextBase& context, Method method, Audit* audit = nullptr) const;
  void Record(const absl::Status& status, Audit* audit) const;
  grpc::Status End(Method method, const absl::Status& status) const;

  // Whether an open stream's caller may go on.
  absl::Status Recheck(const Caller& caller) const { return authenticator_->Recheck(caller); }

  // What the sessions of workers are sealed with: those that it opens have limits of their own.
  const SessionSeal& seal() const { return seal_; }

  CallLimits* limits() const { return limits_; }
  RequestStats* stats() const { return stats_; }
  const Clock* clock() const { return clock_; }

 private:
  grpc::Status EndUnary(Method method, int64_t begin_nanos, const absl::Status& status) const;
  absl::Status Told(Method method, const absl::Status& result) const;
  std::string SessionOf(const grpc::ServerContextBase& context, const Caller& caller) const;

  Authenticator* authenticator_;
  CallLimits* limits_;
  RequestStats* stats_;
  const Clock* clock_;
  Dispatcher* dispatcher_;
  ConnectionTable* connections_;
  SessionSeal seal_;
};

// Of gRPC's name of a peer: "ipv4:127.0.0.1:40000" -> "127.0.0.1", "ipv6:%5B::1%5D:40000" -> "::1", and without a
// zone, as SocketPeerOf tells it: "ipv6:%5Bfe80::1%25eth0%5D:40000" -> "fe80::1".
std::string HostOfPeer(const std::string& peer);
// With its port, as the connection table knows the peer: "fe80::1:40000".
std::string HostAndPortOfPeer(const std::string& peer);

}  // namespace longhaul::server
