#include "server/http/http_server.h"

#include <cstring>
#include <utility>

#include "base/limits.h"
#include "civetweb.h"
#include "spdlog/spdlog.h"

namespace longhaul::server {
namespace {

const char* StatusText(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 503:
      return "Service Unavailable";
    default:
      return "Internal Server Error";
  }
}

HttpReply PlainReply(int status, const std::string& body) { return {status, "text/plain; charset=utf-8", body + "\n"}; }

int LogOfCivetweb(const mg_connection*, const char* message) {
  spdlog::debug("http: {}", message);
  return 1;
}

}  // namespace

struct HttpServer::Impl {
  HttpPages pages;
  mg_context* context = nullptr;
  int port = 0;

  HttpReply Answer(const mg_request_info& request) const {
    const std::string method = request.request_method == nullptr ? "" : request.request_method;
    if (method != "GET" && method != "HEAD") return PlainReply(405, "only GET and HEAD are served");
    const auto page = pages.find(request.local_uri == nullptr ? "" : request.local_uri);
    return page == pages.end() ? PlainReply(404, "there is no such page") : page->second();
  }

  static int Handle(mg_connection* connection, void* self) {
    const mg_request_info& request = *mg_get_request_info(connection);
    const HttpReply reply = static_cast<const Impl*>(self)->Answer(request);
    mg_printf(connection,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
              "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
              "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
              reply.status, StatusText(reply.status), reply.content_type.c_str(), reply.body.size());
    if (std::strcmp(request.request_method, "HEAD") != 0) mg_write(connection, reply.body.data(), reply.body.size());
    return reply.status;
  }
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const ListenAddress& address, HttpPages pages) {
  auto impl = std::make_unique<Impl>();
  impl->pages = std::move(pages);
  mg_init_library(0);
  const ListenAddress numeric{address.host == "localhost" ? "127.0.0.1" : address.host, address.port};
  const std::string where = numeric.ToString();
  const std::string header_bytes = std::to_string(limits::kMaxHttpHeaderBytes);
  const char* options[] = {"listening_ports",
                           where.c_str(),
                           "num_threads",
                           "4",
                           "max_request_size",
                           header_bytes.c_str(),
                           "request_timeout_ms",
                           "10000",
                           "enable_keep_alive",
                           "no",
                           "allow_sendfile_call",
                           "no",
                           nullptr};
  mg_callbacks callbacks{};
  callbacks.log_message = LogOfCivetweb;
  impl->context = mg_start(&callbacks, impl.get(), options);
  if (impl->context == nullptr) {
    mg_exit_library();
    return CannotListen(address);
  }
  mg_set_request_handler(impl->context, "/", &Impl::Handle, impl.get());
  mg_server_port port{};
  if (mg_get_server_ports(impl->context, 1, &port) == 1) impl->port = port.port;
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() {
  mg_stop(impl_->context);
  mg_exit_library();
}

int HttpServer::port() const { return impl_->port; }

}  // namespace longhaul::server
