#include "server/rpc/session_seal.h"

#include "base/error.h"
#include "base/secret.h"

namespace longhaul::server {

// Of the name and the worker's id, not of the token's: a token may be replaced by another of its name while the session
// is open.
std::string SessionSeal::Code(const std::string& session_id, const Caller& caller) const {
  return HmacSha256Hex(key_, session_id + "\n" + caller.name + "\n" + caller.worker_id);
}

std::string SessionSeal::Seal(const std::string& session_id, const Caller& caller) const {
  return session_id + "." + Code(session_id, caller);
}

absl::StatusOr<std::string> SessionSeal::Open(const std::string& sealed, const Caller& caller) const {
  const size_t dot = sealed.rfind('.');
  const std::string session_id = sealed.substr(0, dot);
  const std::string code = dot == std::string::npos ? "" : sealed.substr(dot + 1);
  if (SecretsEqual(code, Code(session_id, caller))) return session_id;
  return MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED",
                   "the session is not open any more: open a new one");
}

}  // namespace longhaul::server
