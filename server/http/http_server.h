// A small HTTP server for people and Prometheus: GET and HEAD of a few fixed paths, everything made at the request, one
// request a connection. One thread waits for all connections; none can hold it up, and past
// limits::kMaxHttpConnections the oldest goes. A connection lives for limits::kHttpRequestMs at most.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/tls_material.h"
#include "server/http/http_request.h"
#include "server/listen_address.h"

namespace longhaul::server {

struct HttpReply {
  int status = 200;
  std::string content_type = "text/html; charset=utf-8";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers = {};  // further ones
};

// By path; called on the server's thread.
using HttpPages = std::map<std::string, std::function<HttpReply(const HttpRequest&)>>;

class HttpServer {
 public:
  // Serving when it returns. Other paths are 404, other methods 405. `clock` and `tls` must outlive it; `tls` null:
  // plaintext. FAILED_PRECONDITION PORT_TAKEN, CANNOT_LISTEN.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const ListenAddress& address, HttpPages pages,
                                                           const Clock* clock, TlsReloader* tls = nullptr);
  ~HttpServer();  // after the page that is being made

  int port() const;

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::server
