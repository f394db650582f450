// Who may read the page and /metrics: as with gRPC (server/authenticator.h), a bearer token, or the same token as the
// password of HTTP's basic scheme, which browsers ask for. Without tokens, on a plaintext loopback, only requests that
// name the loopback: a page elsewhere must not read ours through a name of its own. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "server/authenticator.h"
#include "server/call_limits.h"
#include "server/http/http_server.h"
#include "server/request_stats.h"

namespace longhaul::server {

class HttpAccess {
 public:
  HttpAccess(Authenticator* authenticator, CallLimits* limits, RequestStats* stats)
      : authenticator_(authenticator), limits_(limits), stats_(stats) {}

  // A page for callers with the scope viewer; the others get 401, 403, 421 or 429.
  std::function<HttpReply(const HttpRequest&)> ForViewers(std::function<HttpReply(const Caller&)> page) const;
  // As ForViewers, of callers that see all projects: for what is not split by project.
  std::function<HttpReply(const HttpRequest&)> ForViewersOfAll(std::function<HttpReply(const Caller&)> page) const;

 private:
  HttpReply Answer(const HttpRequest& request, bool of_all, const std::function<HttpReply(const Caller&)>& page) const;

  Authenticator* authenticator_;
  CallLimits* limits_;
  RequestStats* stats_;
};

}  // namespace longhaul::server
