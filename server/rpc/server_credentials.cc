#include "server/rpc/server_credentials.h"

#include <string>

#include "base/check.h"
#include "grpc/grpc.h"
#include "grpc/grpc_security.h"

namespace longhaul::server {
namespace {

grpc_ssl_client_certificate_request_type RequestType(ClientCertificates clients) {
  switch (clients) {
    case ClientCertificates::kNone:
      return GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
    case ClientCertificates::kAsked:
      return GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY;
    case ClientCertificates::kRequired:
      return GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  return GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
}

// The C++ API has no reloading credentials, the C API below it has; this is the step between the two.
class ReloadingCredentials final : public grpc::ServerCredentials {
 public:
  ReloadingCredentials(TlsReloader* material, ClientCertificates clients) : material_(material) {
    grpc_ssl_server_credentials_options* options =
        grpc_ssl_server_credentials_create_options_using_config_fetcher(RequestType(clients), &Fetch, this);
    credentials_ = grpc_ssl_server_credentials_create_with_options(options);
    LH_CHECK(credentials_ != nullptr, "TLS credentials");
  }
  ~ReloadingCredentials() override { grpc_server_credentials_release(credentials_); }

  // Callers are checked in one place, the gate.
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
    LH_CHECK(false, "these credentials take no processor");
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  // gRPC calls it before each handshake, one call at a time. What it cannot use it logs, and goes on with what it has.
  static grpc_ssl_certificate_config_reload_status Fetch(void* self_pointer,
                                                         grpc_ssl_server_certificate_config** config) {
    auto* self = static_cast<ReloadingCredentials*>(self_pointer);
    const std::shared_ptr<const TlsMaterial> material = self->material_->Current();
    if (material->version == self->given_version_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {material->key_pem.c_str(), material->certificate_pem.c_str()};
    // gRPC insists on roots also where it asks no client for a certificate; then they are without effect.
    const std::string& roots = material->client_ca_pem.empty() ? material->certificate_pem : material->client_ca_pem;
    *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
    if (*config == nullptr) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_FAIL;
    self->given_version_ = material->version;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  TlsReloader* const material_;
  uint64_t given_version_ = 0;
  grpc_server_credentials* credentials_ = nullptr;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> ReloadingTlsCredentials(TlsReloader* material, ClientCertificates clients) {
  return std::make_shared<ReloadingCredentials>(material, clients);
}

}  // namespace longhaul::server
