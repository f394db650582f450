// Binds a worker's session to the caller that opened it: outside of the scheduler a session's id carries a code that
// only this process can make for this caller. So a session id that leaks is of no use to anybody else, and a worker
// writes its own attempts and no others. Thread-safe.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "base/random.h"
#include "server/core/access.h"

namespace longhaul::server {

class SessionSeal {
 public:
  SessionSeal() : key_(RandomId() + RandomId()) {}

  std::string Seal(const std::string& session_id, const Caller& caller) const;
  // The session's id. FAILED_PRECONDITION SESSION_CLOSED where the code is another caller's or of an earlier process:
  // either way there is no such session for the caller, and the agent opens one.
  absl::StatusOr<std::string> Open(const std::string& sealed, const Caller& caller) const;

 private:
  std::string Code(const std::string& session_id, const Caller& caller) const;
  const std::string key_;
};

}  // namespace longhaul::server
