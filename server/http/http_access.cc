#include "server/http/http_access.h"

#include <utility>

namespace longhaul::server {
namespace {

HttpReply Refusal(int status, const absl::Status& why) {
  return {status, "text/plain; charset=utf-8", std::string(why.message()) + "\n", {}};
}

HttpReply Unauthenticated(const absl::Status& why) {
  HttpReply reply = Refusal(absl::IsUnauthenticated(why) ? 401 : absl::IsResourceExhausted(why) ? 429 : 503, why);
  if (reply.status == 401) {
    reply.headers = {{"WWW-Authenticate", "Basic realm=\"Longhaul: any user name, a token as the password\""},
                     {"WWW-Authenticate", "Bearer"}};
  }
  return reply;
}

}  // namespace

HttpReply HttpAccess::Answer(const HttpRequest& request, bool of_all,
                             const std::function<HttpReply(const Caller&)>& page) const {
  Credentials credentials;
  credentials.host = request.peer;
  if (!request.authorization.empty()) ReadAuthorization(request.authorization, &credentials);
  const absl::StatusOr<Caller> caller = authenticator_->Authenticate(credentials);
  if (!caller.ok()) return Unauthenticated(caller.status());
  if (caller->local && !NamesLoopback(request.host)) {
    stats_->CountAuthFailure("HOST_NOT_LOOPBACK");
    return Refusal(421, absl::PermissionDeniedError("this page is served to localhost, 127.0.0.1 and [::1] only"));
  }
  if (absl::Status taken = limits_->TakeCall(*caller); !taken.ok()) {
    stats_->CountRateLimited();
    return Refusal(429, taken);
  }
  if (!caller->Has(Scope::kViewer) || (of_all && !caller->all_projects)) {
    stats_->CountAuthFailure("SCOPE_MISSING");
    return Refusal(403, absl::PermissionDeniedError(of_all ? "this page needs the scope viewer for all projects"
                                                           : "this page needs the scope viewer"));
  }
  return page(*caller);
}

std::function<HttpReply(const HttpRequest&)> HttpAccess::ForViewers(
    std::function<HttpReply(const Caller&)> page) const {
  return [this, page = std::move(page)](const HttpRequest& request) { return Answer(request, false, page); };
}

std::function<HttpReply(const HttpRequest&)> HttpAccess::ForViewersOfAll(
    std::function<HttpReply(const Caller&)> page) const {
  return [this, page = std::move(page)](const HttpRequest& request) { return Answer(request, true, page); };
}

}  // namespace longhaul::server
