#include "base/net_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <charconv>
#include <system_error>

#include "base/error.h"

namespace longhaul {

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
