// Connections: those that ask nothing make room and end, and those that grow old are gone on over another one.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <filesystem>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

constexpr char kText[] = "{\"text\":\"hello\"}\n";
constexpr int kLongMs = 60'000;  // for what must come

// Ends a loop that waits for what must come.
class Patience {
 public:
  explicit Patience(const Clock* clock) : clock_(clock), end_boot_nanos_(clock->BootNanos() + kNanos) {}
  bool over() const { return clock_->BootNanos() >= end_boot_nanos_; }

 private:
  static constexpr int64_t kNanos = int64_t{120} * 1'000'000'000;
  const Clock* clock_;
  int64_t end_boot_nanos_;
};

void SetLongDeadline(grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
}

// What a client says before its first call: the preface of HTTP/2 and empty SETTINGS.
UniqueFd ConnectIdle(int port, const char* from = "127.0.0.1") {
  using std::string_view_literals::operator""sv;
  constexpr std::string_view kHello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"sv;
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  ::inet_pton(AF_INET, from, &address.sin_addr);
  LH_CHECK(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0, "bind");
  address.sin_port = htons(static_cast<uint16_t>(port));
  ::inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  LH_CHECK(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0, "connect");
  // One that is refused may be closed already.
  (void)::send(fd.get(), kHello.data(), kHello.size(), MSG_NOSIGNAL);
  return fd;
}

// Reads whatever comes until the other end has closed, or nothing comes for `quiet_ms`.
bool HasEnded(const UniqueFd& fd, int quiet_ms) {
  while (true) {
    pollfd polled{fd.get(), POLLIN, 0};
    if (::poll(&polled, 1, quiet_ms) == 0) return false;
    char bytes[4096];
    if (::recv(fd.get(), bytes, sizeof(bytes), 0) <= 0) return true;
  }
}

class FewConnectionsTest : public RpcTest {
 protected:
  static constexpr int kMost = 16;
  ServerOptions Options() const override {
    ServerOptions options = RpcTest::Options();
    options.connections = options.connections_per_host = kMost;
    return options;
  }
  // On a connection of its own.
  Stubs Fresh() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return Stubs(grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->grpc_port()),
                                           grpc::InsecureChannelCredentials(), arguments));
  }
  // One call that a full table keeps waiting and does not end.
  static grpc::Status ListPatiently(const Stubs& stubs) {
    v1::ListFineTuneJobsResponse response;
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    SetLongDeadline(&context);
    return stubs.jobs->ListFineTuneJobs(&context, v1::ListFineTuneJobsRequest(), &response);
  }
};

TEST_F(FewConnectionsTest, OneHostHasHalfOfThemAtMost) {
  std::vector<Stubs> proven;
  for (int i = 0; i < kMost / 2; ++i) {
    proven.push_back(Fresh());
    ASSERT_TRUE(ListPatiently(proven.back()).ok());
  }
  EXPECT_TRUE(HasEnded(ConnectIdle(server_->grpc_port()), kLongMs));
  EXPECT_FALSE(HasEnded(ConnectIdle(server_->grpc_port(), "127.0.0.2"), 100));
  for (const Stubs& stubs : proven) EXPECT_EQ(stubs.channel->GetState(false), GRPC_CHANNEL_READY);
}

TEST_F(FewConnectionsTest, IdleOnesTakeNoPlaceFromWhoCalls) {
  ASSERT_EQ(CountJobs(), 0u);  // on a connection that stays through all of it
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 10 * kMost; ++i) idle.push_back(ConnectIdle(server_->grpc_port()));
  const Stubs fresh = Fresh();
  const grpc::Status uploaded = UploadAs(fresh, kText);
  EXPECT_TRUE(uploaded.ok()) << uploaded.error_message();
  EXPECT_EQ(CountJobs(), 0u);
  EXPECT_EQ(stubs_->channel->GetState(false), GRPC_CHANNEL_READY);
  // The oldest are gone; the last ones are there still.
  EXPECT_TRUE(HasEnded(idle.front(), kLongMs));
  EXPECT_FALSE(HasEnded(idle.back(), 100));
}

TEST_F(FewConnectionsTest, WhatClosesByItselfMakesRoom) {
  for (int i = 0; i < 4 * kMost; ++i) {
    // Full of proven ones for as long as nobody has looked which are closed.
    const grpc::Status status = ListPatiently(Fresh());
    ASSERT_TRUE(status.ok()) << i << ": " << status.error_message();
  }
}

class IdleConnectionTest : public RpcTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = RpcTest::Options();
    options.connection_idle_ms = 200;
    return options;
  }
};

TEST_F(IdleConnectionTest, IsEndedAndAClientThatComesBackHasAnother) {
  ASSERT_EQ(CountJobs(), 0u);
  EXPECT_TRUE(HasEnded(ConnectIdle(server_->grpc_port()), kLongMs));
  const Patience patience(&clock_);
  while (stubs_->channel->GetState(false) == GRPC_CHANNEL_READY) {
    ASSERT_FALSE(patience.over()) << "the connection does not end";
    stubs_->channel->WaitForStateChange(GRPC_CHANNEL_READY, std::chrono::system_clock::now() + std::chrono::seconds(1));
  }
  EXPECT_EQ(CountJobs(), 0u);
}

// Connections that grow old at once, and whose calls are ended after some seconds.
class BrokenConnectionTest : public RpcTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = RpcTest::Options();
    options.connection_age_ms = 100;
    options.connection_age_grace_ms = 5'000;
    return options;
  }
  // For what is not to be ended, but may be on a busy machine.
  template <typename Ask>
  grpc::Status UntilItComesThrough(Ask ask) {
    const Patience patience(&clock_);
    grpc::Status status;
    do {
      status = ask();
    } while (status.error_code() == grpc::StatusCode::UNAVAILABLE && !patience.over());
    return status;
  }
};

TEST_F(BrokenConnectionTest, AWatchGoesOnWithoutAGapOrADuplicate) {
  FakeAgent agent(&*stubs_);
  ASSERT_TRUE(UntilItComesThrough([&] { return agent.Open(); }).ok());
  ASSERT_TRUE(UntilItComesThrough([&] { return Upload(kText); }).ok());
  v1::CreateFineTuneJobRequest create = RequestFor(kText);
  create.set_request_id("again");
  v1::Job job;
  ASSERT_TRUE(UntilItComesThrough([&] { return Create(create, &job); }).ok());
  std::vector<int64_t> sequences;
  int broken = 0;
  bool cancelled = false;
  const Patience patience(&clock_);
  while (true) {
    ASSERT_FALSE(patience.over());
    grpc::ClientContext context;
    SetLongDeadline(&context);
    v1::WatchFineTuneJobRequest request;
    request.set_id(job.id());
    request.set_after_sequence(sequences.empty() ? 0 : sequences.back());
    const auto reader = stubs_->jobs->WatchFineTuneJob(&context, request);
    v1::WatchFineTuneJobResponse message;
    while (reader->Read(&message)) {
      if (message.has_event()) sequences.push_back(message.event().sequence());
    }
    const grpc::Status ended = reader->Finish();
    if (ended.ok()) break;
    ASSERT_EQ(ended.error_code(), grpc::StatusCode::UNAVAILABLE) << ended.error_message();
    if (++broken < 2 || cancelled) continue;
    v1::Job now;
    const grpc::Status status = UntilItComesThrough([&] { return Cancel(job.id(), &now); });
    // The second time, where the first one's answer was lost.
    ASSERT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) << status.error_message();
    cancelled = true;
  }
  EXPECT_GE(broken, 2);
  v1::GetFineTuneJobRequest get;
  get.set_id(job.id());
  ASSERT_TRUE(UntilItComesThrough([&] {
                return Call(*stubs_->jobs, &v1::FineTuneService::Stub::GetFineTuneJob, get, &job);
              }).ok());
  const int64_t last = job.sequence();
  std::vector<int64_t> dense;
  for (int64_t i = 1; i <= last; ++i) dense.push_back(i);
  EXPECT_EQ(sequences, dense);
}

TEST_F(BrokenConnectionTest, AnUploadGoesOnWhereItBroke) {
  const std::string bytes(1000, 'x');
  v1::WriteBlobRequest message;
  message.mutable_blob()->set_sha256(Sha256Hex(bytes));
  message.mutable_blob()->set_size_bytes(1000);
  message.set_data(bytes.substr(0, 600));
  v1::QueryWriteStatusRequest query;
  *query.mutable_blob() = message.blob();
  v1::QueryWriteStatusResponse there;
  const Patience patience(&clock_);
  while (there.committed_bytes() == 0) {
    ASSERT_FALSE(patience.over()) << "a call never gets so far that its bytes are there before it is ended";
    {
      grpc::ClientContext context;
      SetLongDeadline(&context);
      v1::WriteBlobResponse response;
      const auto writer = stubs_->blobs->Write(&context, &response);
      writer->Write(message);
      EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
    }
    // BLOB_BUSY, which is UNAVAILABLE: the broken call is on its way out.
    const grpc::Status asked = UntilItComesThrough(
        [&] { return Call(*stubs_->blobs, &v1::BlobService::Stub::QueryWriteStatus, query, &there); });
    ASSERT_TRUE(asked.ok()) << asked.error_message();
  }
  EXPECT_EQ(there.committed_bytes(), 600);
  const grpc::Status sent = UntilItComesThrough([&] { return Upload(bytes, 600); });
  EXPECT_TRUE(sent.ok()) << sent.error_message();
}

constexpr int64_t kLongGraceMs = 60'000;  // no call takes so long

class OldConnectionTest : public RpcTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = RpcTest::Options();
    options.connection_age_ms = 100;
    options.connection_age_grace_ms = kLongGraceMs;
    return options;
  }
};

TEST_F(OldConnectionTest, AWorkersSessionOutlivesThem) {
  FakeAgent agent(&*stubs_);
  ASSERT_TRUE(agent.Open().ok());
  // Many connections later.
  const int64_t end_nanos = clock_.BootNanos() + int64_t{2'500} * 1'000'000;
  int synced = 0;
  while (clock_.BootNanos() < end_nanos || synced < 10) {
    v1::SyncResponse response;
    const grpc::Status status =
        agent.Sync({}, &response);  // parked for 50 ms: the age ends no call that the grace time does not
    ASSERT_TRUE(status.ok()) << status.error_message();
    ++synced;
  }
}

class OldCertificateTest : public SecureRpcTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = SecureRpcTest::Options();
    options.connection_age_ms = 100;
    options.connection_age_grace_ms = kLongGraceMs;
    return options;
  }
};

TEST_F(OldCertificateTest, OfAnAuthorityThatIsGoneEndsWithItsConnection) {
  const TestAuthority other(keys_.path(), "other");
  // The server's own certificate stays the first authority's.
  const std::string first = keys_.File("first-ca.pem");
  std::filesystem::copy_file(authority_.ca_file(), first);
  const CertificateFiles files = authority_.IssueClient("w", "worker-1");
  channel::ChannelOptions options = ClientOptions();
  options.ca_file = first;
  options.certificate_file = files.certificate;
  options.key_file = files.key;
  Stubs worker = With(options);
  FakeAgent agent(&worker);
  ASSERT_TRUE(agent.Open().ok());
  std::filesystem::copy_file(other.ca_file(), authority_.ca_file(), std::filesystem::copy_options::overwrite_existing);
  const int64_t limit_nanos = clock_.BootNanos() + int64_t{60} * 1'000'000'000;
  grpc::Status status;
  while (status.ok() && clock_.BootNanos() < limit_nanos) status = agent.Open();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
}

}  // namespace
}  // namespace longhaul::server
