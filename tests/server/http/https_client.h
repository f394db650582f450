// One HTTPS request over OpenSSL, that trusts one authority and checks the address.
#pragma once

#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

#include "tests/server/http/http_client.h"

namespace longhaul::server {

// An answer without status where the handshake fails.
inline HttpAnswer FetchTls(int port, const std::string& ca_file, const std::string& request) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  LH_CHECK(SSL_CTX_load_verify_locations(context.get(), ca_file.c_str(), nullptr) == 1, ca_file);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  const UniqueFd fd = ConnectTo(port);
  const std::unique_ptr<SSL, void (*)(SSL*)> ssl(SSL_new(context.get()), SSL_free);
  X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl.get()), "127.0.0.1");
  SSL_set_fd(ssl.get(), fd.get());
  if (SSL_connect(ssl.get()) != 1) return {};
  LH_CHECK(SSL_write(ssl.get(), request.data(), static_cast<int>(request.size())) > 0, "SSL_write");
  std::string all;
  char buffer[4096];
  for (int n; (n = SSL_read(ssl.get(), buffer, sizeof(buffer))) > 0;) all.append(buffer, static_cast<size_t>(n));
  return SplitAnswer(all);
}

}  // namespace longhaul::server
