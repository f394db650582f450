#include "server/server.h"

#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "gtest/gtest.h"
#include "tests/server/http/http_client.h"

namespace longhaul::server {
namespace {

class ServerTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* base = std::getenv("TMPDIR");
    dir_ = JoinPath(base == nullptr ? "/tmp" : base, "longhaul-server-XXXXXX");
    ASSERT_NE(::mkdtemp(dir_.data()), nullptr);
    options_.state_dir = JoinPath(dir_, "state");
    options_.listen = options_.http_listen = "127.0.0.1:0";
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }

  absl::StatusOr<std::unique_ptr<Server>> Start() { return Server::Start(options_, &clock_); }
  void ExpectRefused(const std::string& reason, const std::string& part) {
    const auto server = Start();
    ASSERT_FALSE(server.ok());
    EXPECT_EQ(ErrorReason(server.status()), reason) << server.status().message();
    const std::string message(server.status().message());
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }

  RealClock clock_;
  std::string dir_;
  ServerOptions options_;
};

TEST_F(ServerTest, ServesPageMetricsAndHealthAndSaysWhere) {
  options_.port_file = JoinPath(dir_, "ports.json");
  const auto server = Start();
  ASSERT_TRUE(server.ok()) << server.status().message();
  const int port = (*server)->http_port();
  EXPECT_EQ(*ReadFile(options_.port_file, 1000), "{\"grpc_port\":" + std::to_string((*server)->grpc_port()) +
                                                     ",\"http_port\":" + std::to_string(port) + "}\n");
  EXPECT_EQ(Fetch(port, "/healthz").body, "ok\n");
  EXPECT_NE(Fetch(port, "/").body.find("<h1>Longhaul</h1>"), std::string::npos);
  const HttpAnswer metrics = Fetch(port, "/metrics");
  EXPECT_NE(metrics.head.find("text/plain; version=0.0.4"), std::string::npos);
  EXPECT_NE(metrics.body.find("longhaul_jobs_created_total 0\n"), std::string::npos);
}

// What is left of one deleted job keeps neither the scheduler from starting nor the others from being finished.
TEST_F(ServerTest, StartsThoughADeletedJobsLogsStay) {
  ASSERT_TRUE(Start().ok());
  sqlite3* db = nullptr;
  ASSERT_EQ(::sqlite3_open(JoinPath(options_.state_dir, "state.db").c_str(), &db), SQLITE_OK);
  EXPECT_EQ(::sqlite3_exec(db, "INSERT INTO deleted_jobs VALUES('a/b'), ('ftjob-gone')", nullptr, nullptr, nullptr),
            SQLITE_OK);
  const std::string logs = JoinPath(options_.state_dir, "logs/ftjob-gone");
  ASSERT_TRUE(CreateDirs(logs).ok());
  const auto server = Start();
  ASSERT_TRUE(server.ok()) << server.status().message();
  EXPECT_FALSE(IsDirectory(logs));
  std::string left;
  const auto add = [](void* to, int, char** values, char**) {
    *static_cast<std::string*>(to) += values[0];
    return 0;
  };
  EXPECT_EQ(::sqlite3_exec(db, "SELECT job_id FROM deleted_jobs", add, &left, nullptr), SQLITE_OK);
  EXPECT_EQ(left, "a/b");
  ::sqlite3_close(db);
}

TEST_F(ServerTest, StopsTwiceAndStartsAgain) {
  for (int i = 0; i < 2; ++i) {
    auto server = Start();
    ASSERT_TRUE(server.ok()) << server.status().message();
    (*server)->Stop();
    (*server)->Stop();
  }
}

TEST_F(ServerTest, RefusesALockedFolder) {
  const auto first = Start();
  ASSERT_TRUE(first.ok());
  ExpectRefused("LOCKED", options_.state_dir);
}

TEST_F(ServerTest, RefusesATakenPort) {
  const auto first = Start();
  ASSERT_TRUE(first.ok());
  options_.state_dir = JoinPath(dir_, "other");
  options_.listen = "127.0.0.1:" + std::to_string((*first)->grpc_port());
  ExpectRefused("PORT_TAKEN", "Address already in use");
  options_.listen = "127.0.0.1:0";
  options_.http_listen = "127.0.0.1:" + std::to_string((*first)->http_port());
  ExpectRefused("PORT_TAKEN", "Address already in use");
}

TEST_F(ServerTest, RefusesPlaintextOffTheLoopback) {
  options_.listen = "0.0.0.0:0";
  ExpectRefused("TLS_REQUIRED", "--listen 0.0.0.0:0");
  EXPECT_FALSE(FileExists(options_.state_dir));
}

TEST_F(ServerTest, RefusesTlsThatIsHalfThere) {
  options_.tls_certificate_file = JoinPath(dir_, "absent.pem");
  ExpectRefused("BAD_OPTION", "--tls-cert and --tls-key go together");
  options_.tls_key_file = JoinPath(dir_, "absent.key");
  ExpectRefused("FILE_NOT_FOUND", "absent.pem");
  ASSERT_TRUE(WriteFileAtomic(options_.tls_certificate_file, "noise").ok());
  ASSERT_TRUE(WriteFileAtomic(options_.tls_key_file, "noise").ok());
  ExpectRefused("TLS_MATERIAL", "has no certificate");
  options_.tls_certificate_file = options_.tls_key_file = "";
  options_.tls_client_ca_file = JoinPath(dir_, "ca.pem");
  ExpectRefused("BAD_OPTION", "--tls-client-ca needs");
  options_.tls_client_ca_file = "";
  options_.tls_require_client_cert = true;
  ExpectRefused("BAD_OPTION", "--tls-require-client-cert needs");
  EXPECT_FALSE(FileExists(options_.state_dir));
}

TEST_F(ServerTest, RefusesTimesThatBreakLeases) {
  options_.lease_ms = 1000;
  options_.worker_lost_ms = 999;
  ExpectRefused("BAD_OPTION", "--worker-lost-ms is 999");
  options_.lease_ms = 0;
  ExpectRefused("BAD_OPTION", "--lease-ms is 0");
}

TEST_F(ServerTest, RefusesAStateFolderThatIsAFile) {
  ASSERT_TRUE(WriteFileAtomic(options_.state_dir, "not a folder").ok());
  const auto server = Start();
  ASSERT_FALSE(server.ok());
  EXPECT_NE(std::string(server.status().message()).find(options_.state_dir), std::string::npos) << server.status();
}

TEST_F(ServerTest, RefusesANewerSchema) {
  ASSERT_TRUE(Start().ok());
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(JoinPath(options_.state_dir, "state.db").c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "PRAGMA user_version = 9999", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(db);
  ExpectRefused("SCHEMA_TOO_NEW", "9999");
}

}  // namespace
}  // namespace longhaul::server
