// TLS for the gRPC server, with certificates that change without a restart: at each handshake gRPC asks for the current
// ones (base/tls_material.h).
#pragma once

#include <memory>

#include "base/tls_material.h"
#include "grpcpp/security/server_credentials.h"

namespace longhaul::server {

enum class ClientCertificates { kNone, kAsked, kRequired };

// `material` and the credentials themselves must outlive the server: gRPC asks them, and does not hold them. A client's
// certificate, where it shows one, is verified against client_ca_pem.
std::shared_ptr<grpc::ServerCredentials> ReloadingTlsCredentials(TlsReloader* material, ClientCertificates clients);

}  // namespace longhaul::server
