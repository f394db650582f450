// A small HTTP server for people and Prometheus: GET and HEAD of a few fixed paths, everything made at the request.
// Thread-safe: pages are called from civetweb's threads.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/listen_address.h"

namespace longhaul::server {

struct HttpReply {
  int status = 200;
  std::string content_type = "text/html; charset=utf-8";
  std::string body;
};

using HttpPages = std::map<std::string, std::function<HttpReply()>>;  // by path

class HttpServer {
 public:
  // Serving when it returns. Other paths are 404, other methods 405. FAILED_PRECONDITION PORT_TAKEN, CANNOT_LISTEN.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const ListenAddress& address, HttpPages pages);
  ~HttpServer();  // waits for the requests in flight

  int port() const;

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::server
