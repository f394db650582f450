#include "server/listen_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/net_address.h"

namespace longhaul::server {
namespace {

bool IsNumeric(const std::string& host) {
  in_addr v4{};
  in6_addr v6{};
  return ::inet_pton(AF_INET, host.c_str(), &v4) == 1 || ::inet_pton(AF_INET6, host.c_str(), &v6) == 1;
}

}  // namespace

std::string ListenAddress::ToString() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return (is_v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& flag, const std::string& text, bool tls) {
  const absl::Status bad = MakeError(absl::StatusCode::kInvalidArgument, "BAD_ADDRESS",
                                     flag + " is \"" + text + "\"; must be HOST:PORT, for example 127.0.0.1:7070");
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == text.size()) return bad;
  ListenAddress address;
  address.host = text.substr(0, colon);
  const char* end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (error != std::errc{} || parsed != end || address.port < 0 || address.port > 65535) return bad;
  if (address.host.front() == '[' && address.host.back() == ']') {
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    return bad;
  }
  if (IsLoopbackHost(address.host)) return address;
  if (!tls) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "TLS_REQUIRED",
                     flag + " " + text +
                         " is not a loopback address, and plaintext that other machines reach is refused: give "
                         "--tls-cert and --tls-key, or listen on 127.0.0.1");
  }
  if (!IsNumeric(address.host)) return bad;
  return address;
}

UniqueFd ListenOn(const ListenAddress& address, int backlog, int* error) {
  const std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  v4.sin_family = AF_INET;
  v6.sin6_family = AF_INET6;
  v4.sin_port = v6.sin6_port = htons(static_cast<uint16_t>(address.port));
  const bool is_v4 = ::inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1;
  *error = EADDRNOTAVAIL;
  if (!is_v4 && ::inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) != 1) return UniqueFd();
  UniqueFd fd(::socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const auto* where = is_v4 ? reinterpret_cast<const sockaddr*>(&v4) : reinterpret_cast<const sockaddr*>(&v6);
  const bool listens = fd.get() >= 0 && ::bind(fd.get(), where, is_v4 ? sizeof(v4) : sizeof(v6)) == 0 &&
                       ::listen(fd.get(), backlog) == 0;
  *error = listens ? 0 : errno;
  return listens ? std::move(fd) : UniqueFd();
}

absl::Status CannotListen(const ListenAddress& address) {
  int error = 0;
  ListenOn(address, 1, &error);
  const std::string why = error == 0 ? "the network library refused it" : std::strerror(error);
  return MakeError(absl::StatusCode::kFailedPrecondition, error == EADDRINUSE ? "PORT_TAKEN" : "CANNOT_LISTEN",
                   "cannot listen on " + address.ToString() + ": " + why);
}

}  // namespace longhaul::server
