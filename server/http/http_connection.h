// One client of the HTTP server: a non-blocking socket, plain or TLS, that is read up to the blank line, answered once
// and closed. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/unique_fd.h"
#include "server/http/tls_context.h"

namespace longhaul::server {

class HttpConnection {
 public:
  // `ssl` null: plaintext; else SSL_set_fd is done. The socket is non-blocking.
  HttpConnection(UniqueFd fd, SslPtr ssl, std::string peer, int64_t deadline_boot_nanos);

  enum class Want { kRead, kWrite, kNothing };
  // Goes as far as it can without waiting and says for what it waits; kNothing: it is over. `answer` makes the whole
  // reply, status line and all, from a head that ends with the blank line, or from "" where the head is too large.
  Want Advance(const std::function<std::string(const std::string& head)>& answer);

  int fd() const { return fd_.get(); }
  const std::string& peer() const { return peer_; }
  int64_t deadline_boot_nanos() const { return deadline_boot_nanos_; }

 private:
  enum class State { kHandshake, kHead, kReply, kDrain, kOver };
  Want Handshake();
  Want ReadHead(const std::function<std::string(const std::string& head)>& answer);
  Want WriteReply();
  Want Drain();
  // Bytes moved; 0: the other end is done; -1: `want_` says for what it waits, kNothing where the connection is broken.
  int Read(char* buffer, int size);
  int Write(const char* data, int size);
  int Outcome(int result);

  UniqueFd fd_;
  SslPtr ssl_;
  const std::string peer_;
  const int64_t deadline_boot_nanos_;
  State state_;
  Want want_ = Want::kNothing;
  std::string head_;
  std::string reply_;
  size_t written_ = 0;
};

}  // namespace longhaul::server
