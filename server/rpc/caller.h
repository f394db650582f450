// Who calls. Every handler gets a Caller from here and nowhere else (server/rpc/gate.h).
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace longhaul::server {

// Bits; a call that several scopes may make names them all.
enum class Scope : unsigned {
  kViewer = 1,
  kSubmitter = 2,
  kAdmin = 4,
  kWorker = 8,
  kViewerOrWorker = kViewer | kWorker,
  kSubmitterOrWorker = kSubmitter | kWorker,
};
inline constexpr unsigned kAllScopes = 15;

struct Caller {
  std::string project;  // what "" in a request means
  unsigned scopes = 0;  // bits of Scope

  // Any of `scope`.
  bool Has(Scope scope) const { return (scopes & static_cast<unsigned>(scope)) != 0; }
};

// `peer` is gRPC's name of the other end: "ipv4:127.0.0.1:40000", "ipv6:[::1]:40000", "unix:...", "inproc". The
// loopback is the local administrator. Others are UNAUTHENTICATED: there is no listening off the loopback without TLS.
// PERMISSION_DENIED, reason SCOPE_MISSING, where the caller lacks `needed`.
absl::StatusOr<Caller> CallerOf(const std::string& peer, Scope needed);

// The project that a request means: its own where it names one that the caller may use, else the caller's.
absl::StatusOr<std::string> ProjectOf(const Caller& caller, const std::string& asked);

}  // namespace longhaul::server
