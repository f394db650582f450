#include "server/http/tls_context.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <string>

namespace longhaul::server {
namespace {

struct BioFree {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
};
std::unique_ptr<BIO, BioFree> BioOf(const std::string& pem) {
  return std::unique_ptr<BIO, BioFree>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

bool UseChain(SSL_CTX* context, const std::string& pem) {
  const auto bio = BioOf(pem);
  bool first = true;
  while (X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    // Both take a reference of their own.
    const int used = first ? SSL_CTX_use_certificate(context, certificate)
                           : static_cast<int>(SSL_CTX_add1_chain_cert(context, certificate));
    X509_free(certificate);
    if (used != 1) return false;
    first = false;
  }
  ERR_clear_error();  // the end of the file is an error to OpenSSL
  return !first;
}

bool UseKey(SSL_CTX* context, const std::string& pem) {
  EVP_PKEY* key = PEM_read_bio_PrivateKey(BioOf(pem).get(), nullptr, nullptr, nullptr);
  if (key == nullptr) return false;
  const bool used = SSL_CTX_use_PrivateKey(context, key) == 1 && SSL_CTX_check_private_key(context) == 1;
  EVP_PKEY_free(key);
  return used;
}

}  // namespace

std::shared_ptr<SSL_CTX> MakeTlsContext(const TlsMaterial& material) {
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return nullptr;
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  // A write may be continued from a buffer that has moved.
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  if (!UseChain(context.get(), material.certificate_pem) || !UseKey(context.get(), material.key_pem)) return nullptr;
  return context;
}

}  // namespace longhaul::server
