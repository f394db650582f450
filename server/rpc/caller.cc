#include "server/rpc/caller.h"

#include "base/error.h"

namespace longhaul::server {
namespace {

constexpr char kDefaultProject[] = "default";

bool StartsWith(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

bool IsLoopback(const std::string& peer) {
  return StartsWith(peer, "ipv4:127.") || StartsWith(peer, "ipv6:[::1]:") || StartsWith(peer, "ipv6:%5B::1%5D:") ||
         StartsWith(peer, "ipv6:[::ffff:127.") || StartsWith(peer, "ipv6:%5B::ffff:127.") ||
         StartsWith(peer, "unix:") || peer == "inproc";
}

const char* ScopeName(Scope scope) {
  switch (scope) {
    case Scope::kViewer:
      return "viewer";
    case Scope::kSubmitter:
      return "submitter";
    case Scope::kAdmin:
      return "admin";
    case Scope::kWorker:
      return "worker";
    case Scope::kViewerOrWorker:
      return "viewer or worker";
    case Scope::kSubmitterOrWorker:
      return "submitter or worker";
  }
  return "?";
}

}  // namespace

absl::StatusOr<Caller> CallerOf(const std::string& peer, Scope needed) {
  if (!IsLoopback(peer)) {
    return MakeError(absl::StatusCode::kUnauthenticated, "NO_CREDENTIALS",
                     "only the loopback may call without credentials, and this call comes from " + peer);
  }
  Caller caller{kDefaultProject, kAllScopes};
  if (!caller.Has(needed)) {
    return MakeError(absl::StatusCode::kPermissionDenied, "SCOPE_MISSING",
                     std::string("this call needs the scope ") + ScopeName(needed));
  }
  return caller;
}

absl::StatusOr<std::string> ProjectOf(const Caller& caller, const std::string& asked) {
  if (asked.empty() || asked == caller.project) return caller.project;
  if (caller.Has(Scope::kAdmin)) return asked;
  return MakeError(absl::StatusCode::kPermissionDenied, "OTHER_PROJECT",
                   "the project is " + asked + "; these credentials are for " + caller.project,
                   {{"project", "is " + asked + "; may be " + caller.project}});
}

}  // namespace longhaul::server
