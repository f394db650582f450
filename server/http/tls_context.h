// OpenSSL's handles for the HTTP server.
#pragma once

#include <openssl/ssl.h>

#include <memory>

#include "base/tls_material.h"

namespace longhaul::server {

struct SslFree {
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};
using SslPtr = std::unique_ptr<SSL, SslFree>;

// A server's context: TLS 1.2 and 1.3, no renegotiation, no client certificates. Null where OpenSSL refuses the
// material, which it was checked for (ReadTlsMaterial).
std::shared_ptr<SSL_CTX> MakeTlsContext(const TlsMaterial& material);

}  // namespace longhaul::server
