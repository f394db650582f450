#include "server/rpc/gate.h"

#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "grpc/grpc_security_constants.h"
#include "grpcpp/security/auth_context.h"
#include "spdlog/spdlog.h"
#include "wire/metadata.h"

namespace longhaul::server {
namespace {

Credentials CredentialsOf(const grpc::ServerContextBase& context) {
  Credentials credentials;
  credentials.host = HostOfPeer(context.peer());
  const auto& metadata = context.client_metadata();
  if (const auto header = metadata.find("authorization"); header != metadata.end()) {
    ReadAuthorization(std::string(header->second.data(), header->second.size()), &credentials);
  }
  // Only where the certificate was verified: gRPC names no peer otherwise.
  const auto auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated()) return credentials;
  const auto names = auth->FindPropertyValues(GRPC_X509_CN_PROPERTY_NAME);
  // A certificate without a name is still one: the authenticator refuses it.
  credentials.certificate = names.empty() ? " " : std::string(names.front().data(), names.front().size());
  return credentials;
}

absl::Status ScopeMissing(const MethodRule& rule, const Caller& caller) {
  return MakeError(absl::StatusCode::kPermissionDenied, "SCOPE_MISSING",
                   std::string(rule.name) + " needs one of the scopes " + ScopeNames(rule.scopes) +
                       "; these credentials have " + ScopeNames(caller.scopes));
}

}  // namespace

std::string HostOfPeer(const std::string& peer) {
  const size_t colon = peer.find(':');
  if (colon == std::string::npos) return peer;
  std::string host = peer.substr(colon + 1);
  if (peer.compare(0, 3, "ipv") != 0) return host;
  host = host.substr(0, host.rfind(':'));
  if (host.starts_with("%5B") && host.ends_with("%5D")) host = host.substr(3, host.size() - 6);
  if (host.starts_with("[") && host.ends_with("]")) host = host.substr(1, host.size() - 2);
  return host.substr(0, host.find('%'));  // "fe80::1%25eth0"
}

std::string HostAndPortOfPeer(const std::string& peer) {
  const size_t colon = peer.rfind(':');
  return colon == std::string::npos ? peer : HostOfPeer(peer) + peer.substr(colon);
}

absl::StatusOr<Caller> Gate::Admit(const grpc::ServerContextBase& context, Method method, Audit* audit) const {
  const MethodRule& rule = method.rule();
  LH_CHECK(rule.audited == (audit != nullptr), std::string(rule.name));
  LH_ASSIGN_OR_RETURN(Caller caller, authenticator_->Authenticate(CredentialsOf(context)));
  caller.session = SessionOf(context, caller);
  if (connections_ != nullptr) connections_->Prove(HostAndPortOfPeer(context.peer()));
  if (absl::Status taken = limits_->TakeCall(caller); !taken.ok()) {
    stats_->CountRateLimited();
    return taken;
  }
  // Who may not even ask is counted, and not written: whoever finds the port must not be able to fill the disk.
  if (audit != nullptr) {
    // A refused call has changed nothing: who makes many must not fill the disk with what nobody may delete.
    audit->take_refused_row = [this, caller] {
      if (limits_->TakeRefusedRow(caller)) return true;
      stats_->CountUnrecorded();
      return false;
    };
    audit->record.caller = caller.name;
    audit->record.host = caller.host;
    audit->record.method = std::string(rule.name);
    audit->record.project = caller.project;
  }
  if (caller.HasAny(rule.scopes)) return caller;
  stats_->CountAuthFailure("SCOPE_MISSING");
  return ScopeMissing(rule, caller);
}

// Of another caller or of an earlier process it is none, as far as limits go; whether it is open is the dispatcher's to
// say.
std::string Gate::SessionOf(const grpc::ServerContextBase& context, const Caller& caller) const {
  if (!caller.Has(Scope::kWorker)) return "";
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kSessionMetadata);
  if (found == metadata.end()) return "";
  return seal_.Open(std::string(found->second.data(), found->second.size()), caller).value_or("");
}

void Gate::Record(const absl::Status& status, Audit* audit) const {
  if (ErrorReason(status) == "OTHER_PROJECT") stats_->CountAuthFailure("OTHER_PROJECT");
  // UNAVAILABLE: nothing was changed, and the store or the dispatcher takes no record now either.
  if (audit->recorded || audit->skip || audit->record.caller.empty() || absl::IsUnavailable(status)) return;
  if (!status.ok() && !audit->take_refused_row()) return;
  SetOutcome(status, clock_->WallMicros(), &audit->record);
  const absl::Status recorded = dispatcher_->RecordAudit(audit->record);
  // Nothing was changed, or its record would have been written with it: the caller's answer stays.
  if (!recorded.ok()) {
    spdlog::error("the audit log lacks {} by {}: {}", audit->record.method, audit->record.caller,
                  std::string(recorded.message()));
  }
}

// The administrator reads the path in the log, now and then; the client does not read it at all.
absl::Status Gate::Told(Method method, const absl::Status& result) const {
  absl::Status told = HideOwnFiles(result);
  if (told != result && stats_->TakeFaultLine(clock_->BootNanos())) {
    spdlog::error("{}: {}", method.rule().name, std::string(result.message()));
  }
  return told;
}

grpc::Status Gate::EndUnary(Method method, int64_t begin_nanos, const absl::Status& result) const {
  const absl::Status status = Told(method, result);
  stats_->CountUnary(std::string(method.rule().name), absl::StatusCodeToString(status.code()),
                     static_cast<double>(clock_->BootNanos() - begin_nanos) * 1e-9);
  return ToGrpcStatus(status);
}

grpc::Status Gate::End(Method method, const absl::Status& result) const {
  const absl::Status status = Told(method, result);
  stats_->CountCall(std::string(method.rule().name), absl::StatusCodeToString(status.code()));
  return ToGrpcStatus(status);
}

}  // namespace longhaul::server
