// A scheduler behind TLS, with an authority of its own, and callers with tokens and certificates.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "clients/channel/channel.h"
#include "server/core/access.h"
#include "storage/access_store.h"
#include "tests/fakes/test_certificates.h"
#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {

class SecureRpcTest : public RpcTest {
 protected:
  SecureRpcTest() : authority_(keys_.path(), "authority"), server_files_(authority_.IssueServer("server")) {}

  ServerOptions Options() const override {
    ServerOptions options = RpcTest::Options();
    options.tls_certificate_file = server_files_.certificate;
    options.tls_key_file = server_files_.key;
    options.tls_client_ca_file = authority_.ca_file();
    return options;
  }

  // As `longhauld token create` does it beside a running scheduler. Returns the text.
  std::string MakeTokenOf(const std::string& name, const std::string& scopes, const std::string& project,
                          const std::string& worker_id = "", int64_t expire_wall_micros = 0) {
    const NewToken made = MakeToken();
    TokenRecord record;
    record.id = made.id;
    record.name = name;
    record.scopes = *ParseScopes("scopes", scopes);
    record.project = project;
    record.worker_id = worker_id;
    record.text_sha256 = made.text_sha256;
    record.create_wall_micros = clock_.WallMicros();
    record.expire_wall_micros = expire_wall_micros;
    LH_CHECK(CheckTokenRecord(record).ok(), std::string(CheckTokenRecord(record).message()));
    const absl::Status created = (*storage::AccessStore::OpenToWrite(dir_.path()))->CreateToken(record, {});
    LH_CHECK(created.ok(), std::string(created.message()));
    return made.text;
  }
  void Revoke(const std::string& token) {
    const auto store = storage::AccessStore::OpenToWrite(dir_.path());
    LH_CHECK((*store)->RevokeToken(*TokenId(token), clock_.WallMicros(), {}).ok());
  }

  channel::ChannelOptions ClientOptions() const {
    channel::ChannelOptions options;
    options.address = "127.0.0.1:" + std::to_string(server_->grpc_port());
    options.ca_file = authority_.ca_file();
    return options;
  }
  Stubs With(const channel::ChannelOptions& options) const {
    grpc::ChannelArguments arguments;
    // Channels of the same arguments share their connection otherwise, and with it the certificate.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = channel::OpenChannel(options, arguments);
    LH_CHECK(channel.ok(), std::string(channel.status().message()));
    return Stubs(*channel);
  }
  Stubs As(const std::string& token) const {
    channel::ChannelOptions options = ClientOptions();
    options.token = token;
    return With(options);
  }
  Stubs AsCertificate(const CertificateFiles& files, const std::string& token = "") const {
    channel::ChannelOptions options = ClientOptions();
    options.certificate_file = files.certificate;
    options.key_file = files.key;
    options.token = token;
    return With(options);
  }

  // One cheap call that every viewer may make.
  static grpc::Status List(const Stubs& stubs) {
    v1::ListFineTuneJobsResponse response;
    return Call(*stubs.jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, v1::ListFineTuneJobsRequest(), &response);
  }

  std::vector<AuditRecord> AuditLog() {
    return *(*storage::AccessStore::OpenToWrite(dir_.path()))->ListAudit(0, 10'000);
  }

  TempDir keys_;
  TestAuthority authority_;
  CertificateFiles server_files_;
};

}  // namespace longhaul::server
