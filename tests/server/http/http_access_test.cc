// The page and /metrics of a whole server: with TLS and tokens, and on the plaintext loopback.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "gtest/gtest.h"
#include "server/core/access.h"
#include "server/server.h"
#include "storage/access_store.h"
#include "storage/job_store.h"
#include "tests/fakes/test_certificates.h"
#include "tests/server/http/https_client.h"

namespace longhaul::server {
namespace {

std::string Base64(const std::string& text) {
  static constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < text.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j)
      bits = bits << 8 | (i + j < text.size() ? static_cast<unsigned char>(text[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j) out += i + j <= text.size() ? kAlphabet[bits >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

class HttpAccessTest : public ::testing::Test {
 protected:
  HttpAccessTest() {
    const char* base = std::getenv("TMPDIR");
    dir_ = JoinPath(base == nullptr ? "/tmp" : base, "longhaul-http-XXXXXX");
    LH_CHECK(::mkdtemp(dir_.data()) != nullptr, dir_);
    options_.state_dir = JoinPath(dir_, "state");
    options_.listen = options_.http_listen = "127.0.0.1:0";
  }
  ~HttpAccessTest() override {
    server_.reset();
    LH_CHECK(RemoveTree(dir_).ok(), dir_);
  }

  void Start() {
    auto server = Server::Start(options_, &clock_);
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = *std::move(server);
  }
  void StartTls() {
    authority_.emplace(dir_, "authority");
    const CertificateFiles files = authority_->IssueServer("server");
    options_.tls_certificate_file = files.certificate;
    options_.tls_key_file = files.key;
    Start();
  }

  std::string MakeTokenOf(const std::string& scopes, const std::string& project) {
    const NewToken made = MakeToken();
    TokenRecord record;
    record.id = made.id;
    record.name = "t";
    record.scopes = *ParseScopes("scopes", scopes);
    record.project = project;
    record.text_sha256 = made.text_sha256;
    record.create_wall_micros = clock_.WallMicros();
    LH_CHECK((*storage::AccessStore::OpenToWrite(options_.state_dir))->CreateToken(record, {}).ok());
    return made.text;
  }
  // Two jobs of two projects, put there while no scheduler runs.
  void PutJobs() {
    auto store = storage::OpenJobStore(options_.state_dir);
    auto transaction = (*store)->Begin();
    uint64_t number = 0;
    for (const char* project : {"red", "blue"}) {
      Job job;
      job.id = std::string("ftjob-of-") + project;
      job.project = project;
      job.create_number = ++number;
      job.state = JobState::kSucceeded;
      LH_CHECK((*transaction)->PutJob(job).ok());
    }
    LH_CHECK((*transaction)->Commit().ok());
  }

  static std::string Get(const std::string& path, const std::string& authorization = "",
                         const std::string& host = "localhost") {
    return "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n" +
           (authorization.empty() ? "" : "Authorization: " + authorization + "\r\n") + "\r\n";
  }
  HttpAnswer Tls(const std::string& path, const std::string& authorization = "") {
    return FetchTls(server_->http_port(), authority_->ca_file(), Get(path, authorization, "any.example.org"));
  }

  RealClock clock_;
  std::string dir_;
  ServerOptions options_;
  std::optional<TestAuthority> authority_;
  std::unique_ptr<Server> server_;
};

TEST_F(HttpAccessTest, OverTlsATokenIsNeeded) {
  StartTls();
  const HttpAnswer refused = Tls("/");
  EXPECT_EQ(refused.status(), 401);
  EXPECT_NE(refused.head.find("WWW-Authenticate: Basic realm="), std::string::npos) << refused.head;
  EXPECT_EQ(Tls("/metrics").status(), 401);
  EXPECT_EQ(Tls("/healthz").body, "ok\n") << "for probes, which have no credentials";
  const std::string token = MakeTokenOf("viewer", "*");
  EXPECT_EQ(Tls("/", "Bearer " + token).status(), 200);
  EXPECT_EQ(Tls("/", "Basic " + Base64("anybody:" + token)).status(), 200);
  EXPECT_EQ(Tls("/", "Basic " + Base64("ab:" + token)).status(), 200);
  EXPECT_EQ(Tls("/", "Basic " + Base64(token)).status(), 401);
  EXPECT_EQ(Tls("/", "Bearer " + MakeToken().text).status(), 401);
  const HttpAnswer metrics = Tls("/metrics", "Bearer " + token);
  EXPECT_EQ(metrics.status(), 200);
  EXPECT_NE(metrics.body.find("longhaul_auth_failures_total{cause=\"NO_CREDENTIALS\"} 2\n"), std::string::npos);
  EXPECT_NE(metrics.body.find("longhaul_auth_failures_total{cause=\"TOKEN_UNKNOWN\"} 1\n"), std::string::npos);
  EXPECT_NE(metrics.body.find("longhaul_tls_certificate_expiry_timestamp_seconds "), std::string::npos);
}

TEST_F(HttpAccessTest, EachPageAsksForItsScope) {
  StartTls();
  EXPECT_EQ(Tls("/", "Bearer " + MakeTokenOf("worker", "*")).status(), 403);
  const std::string red = MakeTokenOf("viewer", "red");
  EXPECT_EQ(Tls("/", "Bearer " + red).status(), 200);
  EXPECT_EQ(Tls("/metrics", "Bearer " + red).status(), 403) << "the figures are of all projects";
}

TEST_F(HttpAccessTest, ThePageShowsTheCallersProject) {
  PutJobs();
  StartTls();
  const std::string red = Tls("/", "Bearer " + MakeTokenOf("viewer", "red")).body;
  EXPECT_NE(red.find("ftjob-of-red"), std::string::npos);
  EXPECT_EQ(red.find("ftjob-of-blue"), std::string::npos);
  const std::string all = Tls("/", "Bearer " + MakeTokenOf("viewer", "*")).body;
  EXPECT_NE(all.find("ftjob-of-red"), std::string::npos);
  EXPECT_NE(all.find("ftjob-of-blue"), std::string::npos);
}

TEST_F(HttpAccessTest, PlaintextToATlsPortIsNoAnswer) {
  StartTls();
  EXPECT_EQ(SendRaw(server_->http_port(), Get("/healthz")).head.find("HTTP/1.1 200"), std::string::npos);
  EXPECT_EQ(Tls("/healthz").status(), 200) << "and nobody else's trouble";
}

TEST_F(HttpAccessTest, ARenewedCertificateIsServedWithoutARestart) {
  StartTls();
  ASSERT_EQ(Tls("/healthz").status(), 200);
  const TestAuthority next(dir_, "next");
  const CertificateFiles renewed = next.IssueServer("renewed");
  const auto copy = [](const std::string& from, const std::string& to) {
    std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing);
  };
  copy(renewed.certificate, options_.tls_certificate_file);
  EXPECT_EQ(Tls("/healthz").status(), 200) << "half of a renewal";
  copy(renewed.key, options_.tls_key_file);
  EXPECT_TRUE(Tls("/healthz").head.empty()) << "the authority before is not trusted with the new certificate";
  EXPECT_EQ(FetchTls(server_->http_port(), next.ca_file(), Get("/healthz")).status(), 200);
}

TEST_F(HttpAccessTest, OnTheLoopbackAPageElsewhereCannotReadOurs) {
  Start();
  const int port = server_->http_port();
  EXPECT_EQ(SendRaw(port, Get("/")).status(), 200);
  EXPECT_EQ(SendRaw(port, Get("/", "", "127.0.0.1:" + std::to_string(port))).status(), 200);
  // A browser that was told evil.example.org is 127.0.0.1 sends that name.
  EXPECT_EQ(SendRaw(port, Get("/", "", "evil.example.org")).status(), 421);
  EXPECT_EQ(SendRaw(port, Get("/metrics", "", "evil.example.org")).status(), 421);
  EXPECT_EQ(SendRaw(port, Get("/", "Bearer " + MakeTokenOf("viewer", "red"), "longhaul.example.org")).status(), 200)
      << "a proxy that passes a token on";
}

TEST_F(HttpAccessTest, RequiredTokensAreRequiredOnTheLoopback) {
  options_.require_token = true;
  Start();
  EXPECT_EQ(SendRaw(server_->http_port(), Get("/")).status(), 401);
  EXPECT_EQ(SendRaw(server_->http_port(), Get("/", "Bearer " + MakeTokenOf("viewer", "red"))).status(), 200);
}

TEST_F(HttpAccessTest, ACallerThatAsksTooOftenIsRefused) {
  options_.require_token = true;
  options_.calls_per_second = 1;
  options_.call_burst = 3;
  Start();
  const std::string header = "Bearer " + MakeTokenOf("viewer", "red");
  int status = 200;
  // Many, for a machine that stands still for a second has one to give again.
  for (int i = 0; i < 1'000 && status == 200; ++i) status = SendRaw(server_->http_port(), Get("/", header)).status();
  EXPECT_EQ(status, 429);
}

}  // namespace
}  // namespace longhaul::server
