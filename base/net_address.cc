#include "base/net_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <charconv>
#include <cstring>
#include <system_error>

#include "base/error.h"

namespace longhaul {
namespace {

std::string Text(const in6_addr& address) {
  char text[INET6_ADDRSTRLEN] = "";
  // The last four bytes of an IPv4 address in IPv6's clothes are the address.
  const bool is_v4 = IN6_IS_ADDR_V4MAPPED(&address);
  const void* bytes = is_v4 ? address.s6_addr + 12 : address.s6_addr;
  return ::inet_ntop(is_v4 ? AF_INET : AF_INET6, bytes, text, sizeof(text)) == nullptr ? "" : text;
}

}  // namespace

SocketPeer SocketPeerOf(const sockaddr_storage& address) {
  SocketPeer peer;
  if (address.ss_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &address, sizeof(v4));
    char text[INET_ADDRSTRLEN] = "";
    if (::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text)) != nullptr) peer.host = text;
    peer.port = ntohs(v4.sin_port);
  } else if (address.ss_family == AF_INET6) {
    sockaddr_in6 v6{};
    std::memcpy(&v6, &address, sizeof(v6));
    peer.host = Text(v6.sin6_addr);
    peer.port = ntohs(v6.sin6_port);
  }
  return peer;
}

std::string HostGroup(const std::string& host) {
  in6_addr v6{};
  // The network of "fe80::1%eth0" goes without its zone, as SocketPeerOf tells it.
  if (::inet_pton(AF_INET6, host.substr(0, host.find('%')).c_str(), &v6) != 1) return host;
  if (IN6_IS_ADDR_V4MAPPED(&v6)) return Text(v6);
  constexpr size_t kPrefixBytes = 8;
  std::memset(v6.s6_addr + kPrefixBytes, 0, sizeof(v6.s6_addr) - kPrefixBytes);
  return Text(v6) + "/64";
}

bool IsLoopbackHost(const std::string& host) {
  if (host == "localhost" || host == "::1") return true;
  in_addr v4{};
  return ::inet_pton(AF_INET, host.c_str(), &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127;
}

bool IsLoopbackTarget(const std::string& target) {
  std::string host = target.substr(0, target.rfind(':'));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return IsLoopbackHost(host);
}

absl::Status CheckTarget(const std::string& field, const std::string& target) {
  for (const char* scheme : {"unix:", "unix-abstract:", "vsock:", "dns:", "ipv4:", "ipv6:"}) {
    if (target.rfind(scheme, 0) == 0) return absl::OkStatus();
  }
  const size_t colon = target.rfind(':');
  int port = 0;
  if (colon != std::string::npos && colon > 0) {
    const char* const end = target.data() + target.size();
    const auto [at, error] = std::from_chars(target.data() + colon + 1, end, port);
    if (error != std::errc() || at != end) port = 0;
  }
  if (port >= 1 && port <= 65'535) return absl::OkStatus();
  return InvalidField(field, "is '" + target + "'; must be HOST:PORT with a port of 1 to 65535");
}

}  // namespace longhaul
