#include "server/http/http_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <list>
#include <thread>

#include "base/limits.h"
#include "base/net_address.h"
#include "server/http/http_connection.h"
#include "spdlog/spdlog.h"

namespace longhaul::server {
namespace {

constexpr int kBacklog = 128;
constexpr int64_t kAcceptPauseMs = 100;  // where the process has no descriptors left

const char* StatusText(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 421:
      return "Misdirected Request";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 503:
      return "Service Unavailable";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Internal Server Error";
  }
}

HttpReply PlainReply(int status, const std::string& body) { return {status, "text/plain; charset=utf-8", body + "\n"}; }

std::string Serialize(const HttpReply& reply, bool with_body) {
  std::string text = "HTTP/1.1 " + std::to_string(reply.status) + " " + StatusText(reply.status) +
                     "\r\nContent-Type: " + reply.content_type +
                     "\r\nContent-Length: " + std::to_string(reply.body.size()) +
                     "\r\nCache-Control: no-store\r\nContent-Security-Policy: default-src 'none'; style-src "
                     "'unsafe-inline'; frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\n"
                     "Referrer-Policy: no-referrer\r\nConnection: close\r\n";
  for (const auto& [name, value] : reply.headers) text += name + ": " + value + "\r\n";
  text += "\r\n";
  if (with_body) text += reply.body;
  return text;
}

int PortOf(const UniqueFd& fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  return ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0 ? SocketPeerOf(address).port : 0;
}

}  // namespace

struct HttpServer::Impl {
  HttpPages pages;
  const Clock* clock = nullptr;
  TlsReloader* tls = nullptr;
  UniqueFd listener;
  UniqueFd stop;  // an eventfd
  int port = 0;
  // The thread's own.
  std::list<std::pair<HttpConnection, HttpConnection::Want>> connections;  // oldest first
  std::shared_ptr<SSL_CTX> context;
  uint64_t context_version = 0;
  int64_t accept_after_boot_nanos = 0;  // 0 = now
  std::thread thread;

  std::string Answer(const HttpConnection& connection, const std::string& text) const {
    if (text.empty()) {
      return Serialize(PlainReply(431, "the request's head is larger than " +
                                           std::to_string(limits::kMaxHttpHeaderBytes) + " bytes"),
                       true);
    }
    HttpHead head = ParseHttpHead(text);
    head.request.peer = connection.peer();
    const bool with_body = head.request.method != "HEAD";
    if (head.status != 200) return Serialize(PlainReply(head.status, StatusText(head.status)), with_body);
    if (head.request.method != "GET" && with_body) {
      HttpReply reply = PlainReply(405, "only GET and HEAD are served");
      reply.headers = {{"Allow", "GET, HEAD"}};
      return Serialize(reply, true);
    }
    const auto page = pages.find(head.request.path);
    return Serialize(page == pages.end() ? PlainReply(404, "there is no such page") : page->second(head.request),
                     with_body);
  }

  // Null where there is no TLS, or none could be had.
  SslPtr NewSsl(int fd) {
    const std::shared_ptr<const TlsMaterial> material = tls->Current();
    if (material->version != context_version) {
      std::shared_ptr<SSL_CTX> next = MakeTlsContext(*material);
      if (next == nullptr) spdlog::error("http: OpenSSL refuses the certificate; the one before stays");
      if (next != nullptr) context = std::move(next);
      context_version = material->version;
    }
    if (context == nullptr) return nullptr;
    SslPtr ssl(SSL_new(context.get()));
    if (ssl != nullptr && SSL_set_fd(ssl.get(), fd) != 1) ssl.reset();
    return ssl;
  }

  void Accept() {
    while (true) {
      sockaddr_storage address{};
      socklen_t size = sizeof(address);
      UniqueFd fd(
          ::accept4(listener.get(), reinterpret_cast<sockaddr*>(&address), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (fd.get() < 0) {
        const bool none_left = errno == EAGAIN || errno == EWOULDBLOCK;
        if (!none_left) accept_after_boot_nanos = clock->BootNanos() + kAcceptPauseMs * 1'000'000;
        return;
      }
      SslPtr ssl = tls == nullptr ? nullptr : NewSsl(fd.get());
      if (tls != nullptr && ssl == nullptr) continue;
      if (connections.size() >= static_cast<size_t>(limits::kMaxHttpConnections)) connections.pop_front();
      const int64_t deadline = clock->BootNanos() + limits::kHttpRequestMs * 1'000'000;
      connections.emplace_back(HttpConnection(std::move(fd), std::move(ssl), SocketPeerOf(address).host, deadline),
                               HttpConnection::Want::kRead);
    }
  }

  int PollTimeoutMs() const {
    int64_t next = connections.empty() ? 0 : connections.front().first.deadline_boot_nanos();
    if (accept_after_boot_nanos != 0 && (next == 0 || accept_after_boot_nanos < next)) next = accept_after_boot_nanos;
    if (next == 0) return -1;
    return static_cast<int>(
        std::clamp<int64_t>((next - clock->BootNanos()) / 1'000'000 + 1, 0, limits::kHttpRequestMs));
  }

  void Loop() {
    // OpenSSL writes without MSG_NOSIGNAL.
    sigset_t broken_pipe;
    sigemptyset(&broken_pipe);
    sigaddset(&broken_pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &broken_pipe, nullptr);
    std::vector<pollfd> polled;
    while (true) {
      if (accept_after_boot_nanos <= clock->BootNanos()) accept_after_boot_nanos = 0;
      polled = {{stop.get(), POLLIN, 0}, {accept_after_boot_nanos == 0 ? listener.get() : -1, POLLIN, 0}};
      for (const auto& [connection, want] : connections) {
        polled.push_back({connection.fd(), short(want == HttpConnection::Want::kWrite ? POLLOUT : POLLIN), 0});
      }
      if (::poll(polled.data(), polled.size(), PollTimeoutMs()) < 0 && errno != EINTR) {
        spdlog::error("http: poll fails; the page is gone until the next start");
        return;
      }
      if (polled[0].revents != 0) return;
      auto it = connections.begin();
      for (size_t i = 2; i < polled.size(); ++i) {
        auto& [connection, want] = *it;
        if (polled[i].revents != 0) {
          want = connection.Advance([&](const std::string& head) { return Answer(connection, head); });
        }
        const bool over =
            want == HttpConnection::Want::kNothing || connection.deadline_boot_nanos() <= clock->BootNanos();
        it = over ? connections.erase(it) : std::next(it);
      }
      if (polled[1].revents != 0) Accept();
    }
  }
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const ListenAddress& address, HttpPages pages,
                                                              const Clock* clock, TlsReloader* tls) {
  auto impl = std::make_unique<Impl>();
  impl->pages = std::move(pages);
  impl->clock = clock;
  impl->tls = tls;
  int error = 0;  // CannotListen tries once more, as it must for gRPC's port
  impl->listener = ListenOn(address, kBacklog, &error);
  impl->stop = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (impl->listener.get() < 0 || impl->stop.get() < 0) return CannotListen(address);
  impl->port = PortOf(impl->listener);
  impl->thread = std::thread([raw = impl.get()] { raw->Loop(); });
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() {
  const uint64_t one = 1;
  if (::write(impl_->stop.get(), &one, sizeof(one)) != sizeof(one)) spdlog::error("http: cannot stop");
  impl_->thread.join();
}

int HttpServer::port() const { return impl_->port; }

}  // namespace longhaul::server
