// TLS and mTLS on real sockets, with certificates that change under the running server.
#include <filesystem>

#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

class TlsTest : public SecureRpcTest {
 protected:
  // Over the files that the server has.
  void Install(const CertificateFiles& files, bool key_too = true) const {
    const auto copy = [](const std::string& from, const std::string& to) {
      std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing);
    };
    copy(files.certificate, server_files_.certificate);
    if (key_too) copy(files.key, server_files_.key);
  }
  Stubs Trusting(const std::string& ca_file, const std::string& token) const {
    channel::ChannelOptions options = ClientOptions();
    options.ca_file = ca_file;
    options.token = token;
    return With(options);
  }
};

TEST_F(TlsTest, OnlyWhoTrustsTheAuthorityGetsThrough) {
  const std::string token = MakeTokenOf("v", "viewer", "default");
  EXPECT_TRUE(List(As(token)).ok());
  const TestAuthority other(keys_.path(), "other");
  EXPECT_EQ(List(Trusting(other.ca_file(), token)).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(List(*stubs_).error_code(), grpc::StatusCode::UNAVAILABLE) << "plaintext to a TLS port";
  channel::ChannelOptions named = ClientOptions();
  named.token = token;
  named.server_name = "localhost";
  EXPECT_TRUE(List(With(named)).ok());
  named.server_name = "example.org";
  EXPECT_EQ(List(With(named)).error_code(), grpc::StatusCode::UNAVAILABLE) << "the certificate is for another name";
}

TEST_F(TlsTest, ARenewedCertificateIsServedWithoutARestart) {
  const std::string token = MakeTokenOf("v", "viewer", "default");
  const Stubs before = As(token);
  ASSERT_TRUE(List(before).ok());
  const TestAuthority next(keys_.path(), "next");
  Install(next.IssueServer("renewed"));
  EXPECT_TRUE(List(Trusting(next.ca_file(), token)).ok());
  EXPECT_FALSE(List(As(token)).ok()) << "a new connection, that trusts the authority before";
  EXPECT_TRUE(List(before).ok()) << "a connection that is there goes on";
}

TEST_F(TlsTest, HalfOfARenewalChangesNothing) {
  const std::string token = MakeTokenOf("v", "viewer", "default");
  const TestAuthority next(keys_.path(), "next");
  const CertificateFiles renewed = next.IssueServer("renewed");
  Install(renewed, false);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(List(As(token)).ok());
  Install(renewed);
  EXPECT_TRUE(List(Trusting(next.ca_file(), token)).ok());
}

TEST_F(TlsTest, AClientsCertificateIsVerified) {
  const TestAuthority other(keys_.path(), "other");
  Stubs stranger = AsCertificate(other.IssueClient("w", "worker-1"));
  FakeAgent refused(&stranger);
  EXPECT_EQ(refused.Open().error_code(), grpc::StatusCode::UNAVAILABLE);
  Stubs known = AsCertificate(authority_.IssueClient("w", "worker-1"));
  FakeAgent agent(&known);
  const grpc::Status opened = agent.Open();
  EXPECT_TRUE(opened.ok()) << opened.error_message();
}

TEST_F(TlsTest, TheAuthorityOfClientsIsReloadedToo) {
  const TestAuthority other(keys_.path(), "other");
  Stubs stranger = AsCertificate(other.IssueClient("w", "worker-1"));
  ASSERT_FALSE(FakeAgent(&stranger).Open().ok());
  // The server's own certificate is still of the first authority.
  const std::string first = keys_.File("first-ca.pem");
  std::filesystem::copy_file(authority_.ca_file(), first);
  std::filesystem::copy_file(other.ca_file(), authority_.ca_file(), std::filesystem::copy_options::overwrite_existing);
  channel::ChannelOptions options = ClientOptions();
  options.ca_file = first;
  const CertificateFiles files = other.IssueClient("w2", "worker-1");
  options.certificate_file = files.certificate;
  options.key_file = files.key;
  Stubs known = With(options);
  const grpc::Status opened = FakeAgent(&known).Open();
  EXPECT_TRUE(opened.ok()) << opened.error_message();
}

class RequiredCertificateTest : public TlsTest {
  ServerOptions Options() const override {
    ServerOptions options = TlsTest::Options();
    options.tls_require_client_cert = true;
    return options;
  }
};

TEST_F(RequiredCertificateTest, WithoutOneThereIsNoConnection) {
  const std::string token = MakeTokenOf("v", "viewer", "default");
  EXPECT_EQ(List(As(token)).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(List(AsCertificate(authority_.IssueClient("c", "laptop"), token)).ok());
}

class RequiredTokenTest : public RpcTest {
  ServerOptions Options() const override {
    ServerOptions options = RpcTest::Options();
    options.require_token = true;
    return options;
  }
};

TEST_F(RequiredTokenTest, OnAPlaintextLoopbackToo) {
  EXPECT_EQ(
      [&] {
        v1::ListFineTuneJobsResponse response;
        return Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, v1::ListFineTuneJobsRequest(),
                    &response);
      }()
          .error_code(),
      grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace longhaul::server
