#include "clients/channel/channel.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/net_address.h"
#include "base/program/error_text.h"
#include "base/status_macros.h"
#include "base/tls_material.h"
#include "grpc/support/log.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/client_interceptor.h"

namespace longhaul::channel {
namespace {

using grpc::experimental::ClientInterceptorFactoryInterface;
using grpc::experimental::ClientRpcInfo;
using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::Interceptor;
using grpc::experimental::InterceptorBatchMethods;

// Of one try to connect, which gRPC calls the least backoff: a loaded machine may need seconds to answer, and over TLS
// it answers several times.
constexpr int64_t kConnectTryMs = 10'000;

void SetUnlessSaid(const char* name, int64_t value, grpc::ChannelArguments* arguments) {
  const grpc_channel_args said = arguments->c_channel_args();
  for (size_t i = 0; i < said.num_args; ++i) {
    if (std::string_view(said.args[i].key) == name) return;
  }
  arguments->SetInt(name, static_cast<int>(value));
}

bool IsLocal(const std::string& address) { return address.rfind("unix:", 0) == 0 || IsLoopbackTarget(address); }

// A token goes into a header: nothing in it may end the header.
absl::StatusOr<std::string> CheckedToken(const std::string& option, std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  const bool printable =
      !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (printable) return text;
  return InvalidField(option, "is no token: one line, without spaces, that begins with lht_");
}

absl::StatusOr<std::string> ReadNamed(const char* flag, const std::string& path, int64_t max_bytes) {
  absl::StatusOr<std::string> text = ReadFile(path, max_bytes);
  if (text.ok()) return text;
  return program::LocalFileError(Annotate(text.status(), flag));
}

absl::StatusOr<std::string> ReadToken(const ChannelOptions& options) {
  if (options.token_file.empty()) {
    if (options.token.empty()) return std::string();
    return CheckedToken("LONGHAUL_TOKEN", options.token);
  }
  LH_ASSIGN_OR_RETURN(std::string text, ReadNamed("--token-file", options.token_file, limits::kMaxTokenFileBytes));
  return CheckedToken("--token-file " + options.token_file, std::move(text));
}

class BearerInterceptor final : public Interceptor {
 public:
  explicit BearerInterceptor(const ChannelOptions* options) : options_(*options) {}
  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      // A file that is being replaced is away for a moment: the call goes without, is refused, and is repeated.
      if (absl::StatusOr<std::string> token = ReadToken(options_); token.ok()) {
        methods->GetSendInitialMetadata()->emplace("authorization", "Bearer " + *token);
      }
    }
    methods->Proceed();
  }

 private:
  const ChannelOptions& options_;
};

class BearerFactory final : public ClientInterceptorFactoryInterface {
 public:
  explicit BearerFactory(ChannelOptions options) : options_(std::move(options)) {}
  Interceptor* CreateClientInterceptor(ClientRpcInfo*) override { return new BearerInterceptor(&options_); }

 private:
  const ChannelOptions options_;
};

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(const ChannelOptions& options) {
  grpc::SslCredentialsOptions ssl;
  if (!options.ca_file.empty()) {
    LH_ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadNamed("--tls-ca", options.ca_file, limits::kMaxPemBytes));
    if (absl::Status status = CheckCertificates("--tls-ca " + options.ca_file, ssl.pem_root_certs); !status.ok()) {
      return status;
    }
  }
  if (options.certificate_file.empty() != options.key_file.empty()) {
    return InvalidField("--tls-cert", "and --tls-key go together");
  }
  if (!options.certificate_file.empty()) {
    // That the key belongs to the certificate is said here, not by a handshake that fails. When it expires is the
    // scheduler's to judge, by its clock.
    absl::StatusOr<TlsMaterial> read =
        ReadTlsMaterial({options.certificate_file, options.key_file, options.ca_file}, 0);
    if (!read.ok()) return program::LocalFileError(Annotate(read.status(), "--tls-cert, --tls-key"));
    TlsMaterial material = *std::move(read);
    ssl.pem_cert_chain = std::move(material.certificate_pem);
    ssl.pem_private_key = std::move(material.key_pem);
  }
  return grpc::SslCredentials(ssl);
}

}  // namespace

void ReadEnvironment(const std::function<const char*(const char*)>& getenv, ChannelOptions* options) {
  const std::pair<const char*, std::string*> variables[] = {{"LONGHAUL_TLS_CA", &options->ca_file},
                                                            {"LONGHAUL_TLS_CERT", &options->certificate_file},
                                                            {"LONGHAUL_TLS_KEY", &options->key_file},
                                                            {"LONGHAUL_TOKEN", &options->token},
                                                            {"LONGHAUL_TOKEN_FILE", &options->token_file}};
  for (const auto& [name, field] : variables) {
    if (const char* value = getenv(name); value != nullptr) *field = value;
  }
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ChannelOptions& options,
                                                           grpc::ChannelArguments arguments) {
  LH_ASSIGN_OR_RETURN(const std::string token, ReadToken(options));
  if (!options.uses_tls() && !options.server_name.empty()) {
    return InvalidField("--tls-server-name", "is " + options.server_name + ", but there is no TLS; give --tls-ca FILE");
  }
  if (!token.empty() && !options.uses_tls() && !IsLocal(options.address)) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "TOKEN_NEEDS_TLS",
                     "a token goes to another machine over TLS only: give --tls-ca FILE (or --tls, where a public "
                     "authority signs the scheduler's certificate)");
  }
  // gRPC's own second would be waited out by every stream that a restarted scheduler has dropped.
  SetUnlessSaid(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, limits::kMinBackoffMs, &arguments);
  SetUnlessSaid(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTryMs, &arguments);
  SetUnlessSaid(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, limits::kMaxBackoffMs, &arguments);
  // gRPC would ask the http_proxy of the environment for this very machine, too.
  if (IsLocal(options.address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (options.uses_tls()) {
    LH_ASSIGN_OR_RETURN(credentials, TlsCredentials(options));
    if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  }
  if (token.empty()) return grpc::CreateCustomChannel(options.address, credentials, arguments);
  std::vector<std::unique_ptr<ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<BearerFactory>(options));
  return grpc::experimental::CreateCustomChannelWithInterceptors(options.address, credentials, arguments,
                                                                 std::move(interceptors));
}

NoConnection ExplainNoConnection(const std::string& address_flag, const std::string& words) {
  const std::string name_another = "name another address with " + address_flag;
  const char* const closed = "what listens there closed the connection at once";
  const std::string closed_advice =
      "a scheduler with TLS does that to a client without: give --tls-ca FILE; one that wants a client's certificate: "
      "--tls-cert FILE and --tls-key FILE too; else see that it is longhauld's --listen address, not the page's";
  const struct {
    const char* words;
    const char* what;
    std::string advice;
  } known[] = {
      {"Connection refused", "nothing listens there",
       "start the scheduler (longhauld --state-dir DIR), or " + name_another},
      {"DNS resolution failed", "its host's name is not known", name_another},
      {"wrong version number", "what listens there speaks no TLS",
       "leave out --tls, --tls-ca and LONGHAUL_TLS_CA; or start the scheduler with --tls-cert and --tls-key"},
      {"certificate verify failed", "its certificate is signed by nobody who is trusted here",
       "give --tls-ca FILE (or LONGHAUL_TLS_CA), the PEM of who signed the scheduler's certificate; its administrator "
       "has it"},
      {"is not in peer certificate", "its certificate is for another name than that of the address",
       "reach it by the name in its certificate, or say that name: --tls-server-name NAME"},
      {"Socket closed", closed, closed_advice},
      {"Connection reset", closed, closed_advice},
  };
  // A connection that was there and broke off, as when a scheduler stops, is told by the same last words.
  const bool came_about =
      words.find("failed to connect") == std::string::npos && words.find("DNS") == std::string::npos;
  if (came_about) return {words == "Socket closed" ? "the connection broke off" : words, ""};
  for (const auto& row : known) {
    if (words.find(row.words) != std::string::npos) return {row.what, row.advice};
  }
  return {words, ""};
}

void SilenceGrpcLog() {
  const char* const asked = std::getenv("GRPC_VERBOSITY");
  if (asked == nullptr || asked[0] == '\0') gpr_set_log_function([](gpr_log_func_args*) {});
}

std::string TlsFilesDigest(const ChannelOptions& options) {
  Sha256 hash;
  bool any = false;
  for (const std::string* path : {&options.ca_file, &options.certificate_file, &options.key_file}) {
    if (path->empty()) continue;
    const absl::StatusOr<std::string> bytes = ReadFile(*path, limits::kMaxPemBytes);
    if (!bytes.ok()) return "";
    hash.Update(std::to_string(bytes->size()) + ":" + *bytes);
    any = true;
  }
  return any ? hash.HexDigest() : "";
}

}  // namespace longhaul::channel
