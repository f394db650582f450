// Where a daemon listens: "HOST:PORT" with a numeric IPv4 or bracketed IPv6 address or "localhost"; port 0 = any free
// one.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace longhaul::server {

struct ListenAddress {
  std::string host;  // without brackets
  int port = 0;

  std::string ToString() const;  // "127.0.0.1:7070", "[::1]:7070"
};

// INVALID_ARGUMENT names `flag`. FAILED_PRECONDITION TLS_REQUIRED for an address that other machines reach without
// `tls`: there is no plaintext off the loopback.
absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& flag, const std::string& text, bool tls = false);

// A listening TCP socket, non-blocking; -1 where it cannot be had, then `error` is the errno (0 otherwise).
UniqueFd ListenOn(const ListenAddress& address, int backlog, int* error);

// After a failed start: "cannot listen on 127.0.0.1:7070: Address already in use", by trying once more.
absl::Status CannotListen(const ListenAddress& address);

}  // namespace longhaul::server
