// How clients reach the scheduler: what they send, whom they trust, and files that change under them.
#include "clients/channel/channel.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <map>
#include <mutex>

#include "base/check.h"
#include "base/env.h"
#include "base/error.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "longhaul/v1/worker_service.grpc.pb.h"
#include "tests/fakes/test_certificates.h"
#include "worker/agent/grpc_client.h"

namespace longhaul::channel {
namespace {

// Answers OpenSession and AppendLog, and keeps the last authorization header. A Sync waits until it may end.
class Worker final : public v1::WorkerService::Service {
 public:
  grpc::Status OpenSession(grpc::ServerContext* context, const v1::OpenSessionRequest*,
                           v1::OpenSessionResponse*) override {
    return Note(*context);
  }
  grpc::Status AppendLog(grpc::ServerContext* context, const v1::AppendLogRequest*, v1::AppendLogResponse*) override {
    return Note(*context);
  }
  grpc::Status Sync(grpc::ServerContext*, const v1::SyncRequest*, v1::SyncResponse*) override {
    parked.set_value();
    may_end.get_future().wait();
    return grpc::Status::OK;
  }
  std::promise<void> parked, may_end;
  std::string header() {
    std::lock_guard lock(mutex_);
    return header_;
  }

 private:
  grpc::Status Note(const grpc::ServerContext& context) {
    const auto found = context.client_metadata().find("authorization");
    std::lock_guard lock(mutex_);
    header_ =
        found == context.client_metadata().end() ? "none" : std::string(found->second.data(), found->second.size());
    return grpc::Status::OK;
  }
  std::mutex mutex_;  // guards header_
  std::string header_;
};

void Copy(const std::string& from, const std::string& to) {
  std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing);
}

constexpr int kMostTries = 50;  // each ends with a new connection's refusal

class ChannelTest : public ::testing::Test {
 protected:
  ChannelTest() {
    const char* base = std::getenv("TMPDIR");
    dir_ = JoinPath(base == nullptr ? "/tmp" : base, "longhaul-channel-XXXXXX");
    LH_CHECK(::mkdtemp(dir_.data()) != nullptr, dir_);
  }
  ~ChannelTest() override {
    if (server_ != nullptr) server_->Shutdown();
    LH_CHECK(RemoveTree(dir_).ok(), dir_);
  }

  void Serve(const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", credentials, &port);
    builder.RegisterService(&worker_);
    server_ = builder.BuildAndStart();
    options_.address = "127.0.0.1:" + std::to_string(port);
  }
  void ServeTls(const CertificateFiles& files, const std::string& client_ca = "") {
    grpc::SslServerCredentialsOptions ssl;
    ssl.pem_key_cert_pairs.push_back({*ReadFile(files.key, 1 << 20), *ReadFile(files.certificate, 1 << 20)});
    if (!client_ca.empty()) {
      ssl.pem_root_certs = *ReadFile(client_ca, 1 << 20);
      ssl.client_certificate_request = GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
    }
    Serve(grpc::SslServerCredentials(ssl));
  }
  std::string Put(const std::string& name, const std::string& text) {
    const std::string path = JoinPath(dir_, name);
    LH_CHECK(WriteFileAtomic(path, text).ok(), path);
    return path;
  }

  grpc::Status CallOn(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    v1::AppendLogResponse response;
    return v1::WorkerService::NewStub(channel)->AppendLog(&context, v1::AppendLogRequest(), &response);
  }
  grpc::Status Try() {
    const auto channel = OpenChannel(options_, grpc::ChannelArguments());
    LH_CHECK(channel.ok(), std::string(channel.status().message()));
    return CallOn(*channel);
  }
  std::string Refusal() { return ErrorReason(OpenChannel(options_, grpc::ChannelArguments()).status()); }

  std::string dir_;
  Worker worker_;
  std::unique_ptr<grpc::Server> server_;
  ChannelOptions options_;
};

TEST_F(ChannelTest, EveryCallCarriesTheTokenAndFollowsItsFile) {
  Serve(grpc::InsecureServerCredentials());
  ASSERT_TRUE(Try().ok());
  EXPECT_EQ(worker_.header(), "none");
  options_.token = "lht_first";
  ASSERT_TRUE(Try().ok());
  EXPECT_EQ(worker_.header(), "Bearer lht_first");
  options_.token_file = Put("token", "lht_second\n");
  const auto channel = OpenChannel(options_, grpc::ChannelArguments());
  ASSERT_TRUE(channel.ok());
  ASSERT_TRUE(CallOn(*channel).ok());
  EXPECT_EQ(worker_.header(), "Bearer lht_second");
  Put("token", "lht_third");
  ASSERT_TRUE(CallOn(*channel).ok());
  EXPECT_EQ(worker_.header(), "Bearer lht_third") << "the same channel";
}

TEST_F(ChannelTest, ATokenDoesNotTravelInPlaintext) {
  options_.token = "lht_first";
  for (const char* address : {"10.0.0.1:7070", "example.org:7070", "127.example.org:7070", "[2001:db8::1]:7070"}) {
    options_.address = address;
    EXPECT_EQ(Refusal(), "TOKEN_NEEDS_TLS") << address;
  }
  for (const char* address : {"127.0.0.1:7070", "localhost:7070", "[::1]:7070", "unix:/run/longhaul"}) {
    options_.address = address;
    EXPECT_EQ(Refusal(), "") << address;
  }
  options_.address = "example.org:7070";
  options_.tls = true;
  EXPECT_EQ(Refusal(), "");
  options_ = {.address = "example.org:7070"};
  EXPECT_EQ(Refusal(), "") << "nothing to hide";
}

TEST_F(ChannelTest, ATokenIsOneWord) {
  options_.address = "127.0.0.1:7070";
  for (const char* token : {" ", "a b", "a\nb", "a\r\nx: y", "\x01"}) {
    options_.token = token;
    EXPECT_EQ(Refusal(), "INVALID_FIELD") << token;
    options_.token_file = Put("token", token);
    EXPECT_EQ(Refusal(), "INVALID_FIELD") << token;
    options_.token_file = "";
  }
  options_.token_file = JoinPath(dir_, "absent");
  EXPECT_EQ(Refusal(), "LOCAL_FILE");
}

TEST_F(ChannelTest, TrustsItsAuthorityAndNoOther) {
  const TestAuthority authority(dir_, "authority");
  const TestAuthority other(dir_, "other");
  ServeTls(authority.IssueServer("server"));
  options_.token = "lht_first";
  options_.ca_file = authority.ca_file();
  EXPECT_TRUE(Try().ok());
  EXPECT_EQ(worker_.header(), "Bearer lht_first");
  options_.ca_file = other.ca_file();
  EXPECT_EQ(Try().error_code(), grpc::StatusCode::UNAVAILABLE);
  options_.ca_file = JoinPath(dir_, "absent.pem");
  EXPECT_EQ(Refusal(), "LOCAL_FILE");
}

TEST_F(ChannelTest, AKeyThatDoesNotFitIsSaidAtOnce) {
  const TestAuthority authority(dir_, "authority");
  const CertificateFiles one = authority.IssueClient("one", "gpu-1");
  const CertificateFiles two = authority.IssueClient("two", "gpu-2");
  options_.address = "127.0.0.1:7070";
  options_.certificate_file = one.certificate;
  EXPECT_EQ(Refusal(), "INVALID_FIELD");
  options_.key_file = two.key;
  EXPECT_EQ(Refusal(), "TLS_MATERIAL");
  options_.key_file = one.key;
  EXPECT_EQ(Refusal(), "");
}

TEST_F(ChannelTest, AWorkerGoesOnWithARenewedCertificate) {
  const TestAuthority authority(dir_, "authority");
  const TestAuthority before(dir_, "before");
  ServeTls(authority.IssueServer("server"), authority.ca_file());
  const CertificateFiles old = before.IssueClient("old", "gpu-1");
  const CertificateFiles renewed = authority.IssueClient("renewed", "gpu-1");
  options_.ca_file = authority.ca_file();
  options_.certificate_file = JoinPath(dir_, "use.pem");
  options_.key_file = JoinPath(dir_, "use.key");
  Copy(old.certificate, options_.certificate_file);
  Copy(old.key, options_.key_file);
  const auto client = agent::GrpcSchedulerClient::Open(options_);
  ASSERT_TRUE(client.ok()) << client.status();
  const auto append = [&] { return (*client)->AppendLog(v1::AppendLogRequest()).status(); };
  EXPECT_EQ(append().code(), absl::StatusCode::kUnavailable) << "its authority is not known any more";
  Copy(renewed.certificate, options_.certificate_file);
  EXPECT_EQ(append().code(), absl::StatusCode::kUnavailable) << "half of the renewal";
  Copy(renewed.key, options_.key_file);
  // As an agent does: a connection that was begun with the old one may still be on its way to its refusal.
  absl::Status status = append();
  for (int i = 0; i < kMostTries && absl::IsUnavailable(status); ++i) status = append();
  EXPECT_TRUE(status.ok()) << status;
  (*client)->Shutdown();
}

// Its answer comes on a thread of gRPC's that ends with the connection: the connection must not end there.
TEST_F(ChannelTest, AParkedCallOutlivesARenewalOfItsConnection) {
  const TestAuthority authority(dir_, "authority");
  ServeTls(authority.IssueServer("server"), authority.ca_file());
  options_.ca_file = authority.ca_file();
  options_.certificate_file = JoinPath(dir_, "use.pem");
  options_.key_file = JoinPath(dir_, "use.key");
  const auto use = [&](const CertificateFiles& files) {
    Copy(files.certificate, options_.certificate_file);
    Copy(files.key, options_.key_file);
  };
  const CertificateFiles files[] = {authority.IssueClient("one", "gpu-1"), authority.IssueClient("two", "gpu-1")};
  for (int round = 0; round < 16; ++round) {
    worker_.parked = {};
    worker_.may_end = {};
    use(files[0]);
    const auto client = agent::GrpcSchedulerClient::Open(options_);
    ASSERT_TRUE(client.ok()) << client.status();
    std::promise<absl::Status> answered;
    (*client)->Sync(v1::SyncRequest(), 600'000, [&](const auto& answer) { answered.set_value(answer.status()); });
    worker_.parked.get_future().wait();
    use(files[1]);
    ASSERT_TRUE((*client)->AppendLog(v1::AppendLogRequest()).ok());  // on a connection of its own
    worker_.may_end.set_value();
    const absl::Status answer = answered.get_future().get();
    EXPECT_TRUE(answer.ok()) << answer;
    EXPECT_TRUE((*client)->AppendLog(v1::AppendLogRequest()).ok());
    (*client)->Shutdown();
  }
}

// What the caller says of reconnecting stands: here that a try which failed is not repeated for an hour.
TEST_F(ChannelTest, ReconnectsWhenItsCallerSays) {
  options_.address = "unix:" + JoinPath(dir_, "socket");
  grpc::ChannelArguments arguments;
  for (const char* name : {GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, GRPC_ARG_MAX_RECONNECT_BACKOFF_MS}) {
    arguments.SetInt(name, 3'600'000);
  }
  const auto patient = OpenChannel(options_, arguments);
  const auto channel = OpenChannel(options_, grpc::ChannelArguments());
  ASSERT_TRUE(patient.ok() && channel.ok());
  for (const auto& one : {*patient, *channel}) {
    EXPECT_EQ(CallOn(one).error_code(), grpc::StatusCode::UNAVAILABLE) << "nothing listens";
  }
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options_.address, grpc::InsecureServerCredentials());
  builder.RegisterService(&worker_);
  server_ = builder.BuildAndStart();
  const auto in = [](int seconds) { return std::chrono::system_clock::now() + std::chrono::seconds(seconds); };
  EXPECT_TRUE((*channel)->WaitForConnected(in(60))) << "who says nothing comes back after a tenth of a second";
  EXPECT_FALSE((*patient)->WaitForConnected(in(1)));
}

TEST_F(ChannelTest, TheEnvironmentSaysTheRest) {
  const std::map<std::string, std::string> variables = {{"LONGHAUL_TLS_CA", "ca"},
                                                        {"LONGHAUL_TLS_CERT", "cert"},
                                                        {"LONGHAUL_TLS_KEY", "key"},
                                                        {"LONGHAUL_TOKEN", "token"},
                                                        {"LONGHAUL_TOKEN_FILE", "file"}};
  ReadEnvironment(
      [&](const char* name) -> const char* {
        const auto found = variables.find(name);
        return found == variables.end() ? nullptr : found->second.c_str();
      },
      &options_);
  EXPECT_EQ(options_.ca_file, "ca");
  EXPECT_EQ(options_.certificate_file, "cert");
  EXPECT_EQ(options_.key_file, "key");
  EXPECT_EQ(options_.token, "token");
  EXPECT_EQ(options_.token_file, "file");
  EXPECT_TRUE(options_.uses_tls());
}

}  // namespace
}  // namespace longhaul::channel
