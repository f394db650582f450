// The client against real services on a loopback port: what a call carries, what an error keeps, how a transfer
// resumes.
#include "worker/agent/grpc_client.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <future>
#include <thread>

#include "base/env.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/unique_fd.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/grpcpp.h"
#include "longhaul/v1/blob_service.grpc.pb.h"
#include "longhaul/v1/worker_service.grpc.pb.h"
#include "tests/fakes/tcp_proxy.h"
#include "tests/worker/attempt/temp_dir.h"
#include "wire/metadata.h"

namespace longhaul::agent {
namespace {

grpc::Status HashMismatch() {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  info.set_reason("BLOB_HASH_MISMATCH");
  details.add_details()->PackFrom(info);
  return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "another SHA-256", details.SerializeAsString());
}

grpc::Status Fenced() {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  info.set_reason("LEASE_FENCED");
  details.add_details()->PackFrom(info);
  google::rpc::BadRequest bad;
  bad.add_field_violations()->set_field("key.lease_epoch");
  details.add_details()->PackFrom(bad);
  return grpc::Status(grpc::StatusCode::ABORTED, "a newer epoch has it", details.SerializeAsString());
}

std::string SessionOf(const grpc::ServerContext& context) {
  const auto found = context.client_metadata().find(kSessionMetadata);
  return found == context.client_metadata().end() ? "" : std::string(found->second.data(), found->second.size());
}

class Worker final : public v1::WorkerService::Service {
 public:
  grpc::Status OpenSession(grpc::ServerContext*, const v1::OpenSessionRequest* request,
                           v1::OpenSessionResponse* response) override {
    response->set_session_id("for " + request->worker_id());
    return grpc::Status::OK;
  }
  // Parked until its caller gives up.
  grpc::Status Sync(grpc::ServerContext* context, const v1::SyncRequest*, v1::SyncResponse*) override {
    parked.set_value();
    while (!context->IsCancelled()) std::this_thread::yield();
    return grpc::Status::CANCELLED;
  }
  grpc::Status CommitCheckpoint(grpc::ServerContext*, const v1::CommitCheckpointRequest*,
                                v1::CommitResponse*) override {
    return Fenced();
  }
  grpc::Status AppendLog(grpc::ServerContext* context, const v1::AppendLogRequest* request,
                         v1::AppendLogResponse* response) override {
    session = SessionOf(*context);
    response->set_committed_bytes(request->offset() + static_cast<int64_t>(request->data().size()));
    return grpc::Status::OK;
  }
  std::promise<void> parked;
  std::string session;
};

// Keeps one blob; its first write breaks off after one chunk.
class Blobs final : public v1::BlobService::Service {
 public:
  grpc::Status FindMissing(grpc::ServerContext* context, const v1::FindMissingRequest* request,
                           v1::FindMissingResponse* response) override {
    session = SessionOf(*context);
    for (const auto& blob : request->blobs()) *response->add_missing() = blob;
    return grpc::Status::OK;
  }
  grpc::Status QueryWriteStatus(grpc::ServerContext*, const v1::QueryWriteStatusRequest*,
                                v1::QueryWriteStatusResponse* response) override {
    response->set_committed_bytes(static_cast<int64_t>(bytes.size()));
    response->set_complete(complete);
    return grpc::Status::OK;
  }
  grpc::Status Write(grpc::ServerContext*, grpc::ServerReader<v1::WriteBlobRequest>* reader,
                     v1::WriteBlobResponse* response) override {
    v1::WriteBlobRequest message;
    std::string sha256;
    bool first = true;
    while (reader->Read(&message)) {
      if (first != message.has_blob())
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the first message names the blob");
      if (first) sha256 = message.blob().sha256();
      first = false;
      if (message.offset() != static_cast<int64_t>(bytes.size()))
        return grpc::Status(grpc::StatusCode::OUT_OF_RANGE, "a gap");
      if (message.data().size() > static_cast<size_t>(limits::kBlobChunkBytes))
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "chunk");
      bytes += message.data();
      if (!broken_once) {
        broken_once = true;
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going down");
      }
      if (!message.finish()) continue;
      complete = Sha256Hex(bytes) == sha256;
      if (complete) continue;
      bytes.clear();
      ++refused;
      return HashMismatch();
    }
    response->set_committed_bytes(static_cast<int64_t>(bytes.size()));
    return grpc::Status::OK;
  }
  grpc::Status Read(grpc::ServerContext* context, const v1::ReadBlobRequest* request,
                    grpc::ServerWriter<v1::ReadBlobResponse>* writer) override {
    for (size_t at = static_cast<size_t>(request->offset()); at < bytes.size(); at += 1000) {
      v1::ReadBlobResponse response;
      response.set_data(bytes.substr(at, 1000));
      if (!writer->Write(response)) break;
    }
    while (stays_open && !context->IsCancelled()) std::this_thread::yield();
    return grpc::Status::OK;
  }
  std::string bytes;
  bool complete = false;
  bool broken_once = false;
  bool stays_open = false;  // a read does, once all bytes are out
  int refused = 0;
  std::string session;
};

class GrpcClientTest : public ::testing::Test {
 protected:
  GrpcClientTest() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&worker_);
    builder.RegisterService(&blobs_);
    // As the scheduler's: pings that come sooner than they may end the connection.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 100);
    server_ = builder.BuildAndStart();
    client_ = *GrpcSchedulerClient::Open({.address = Address(port_)});
  }
  ~GrpcClientTest() override {
    client_->Shutdown();
    server_->Shutdown(std::chrono::system_clock::now());  // what is parked on a dead connection is over, too
  }
  static std::string Address(int port) { return "127.0.0.1:" + std::to_string(port); }
  int port_ = 0;
  TempDir temp_;
  Worker worker_;
  Blobs blobs_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<GrpcSchedulerClient> client_;
  CancelFlag cancelled_ = MakeCancelFlag();
};

TEST_F(GrpcClientTest, ErrorsKeepTheirReasonAndFields) {
  const absl::Status status = client_->CommitCheckpoint(v1::CommitCheckpointRequest());
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ErrorReason(status), "LEASE_FENCED");
  EXPECT_EQ(ErrorViolations(status).at(0).field, "key.lease_epoch");
  EXPECT_EQ(status.message(), "a newer epoch has it");
  EXPECT_EQ(client_->CommitArtifact(v1::CommitArtifactRequest()).code(), absl::StatusCode::kUnimplemented);
}

TEST_F(GrpcClientTest, CallsCarryTheirMessages) {
  std::promise<absl::StatusOr<v1::OpenSessionResponse>> opened;
  v1::OpenSessionRequest open;
  open.set_worker_id("w");
  client_->OpenSession(open, [&](auto answer) { opened.set_value(std::move(answer)); });
  const auto session = opened.get_future().get();
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->session_id(), "for w");
  v1::AppendLogRequest log;
  log.set_offset(10);
  log.set_data("abc");
  EXPECT_EQ(*client_->AppendLog(log), 13);
  v1::BlobName blob;
  blob.set_sha256("x");
  EXPECT_EQ(client_->FindMissing({blob, blob})->size(), 2u);
}

TEST_F(GrpcClientTest, CallsShowTheSessionOfNow) {
  const auto open = [this](const std::string& worker_id) {
    std::promise<absl::Status> opened;
    v1::OpenSessionRequest request;
    request.set_worker_id(worker_id);
    client_->OpenSession(request, [&](auto answer) { opened.set_value(answer.status()); });
    return opened.get_future().get();
  };
  ASSERT_TRUE(client_->AppendLog(v1::AppendLogRequest()).ok());
  EXPECT_EQ(worker_.session, "");
  for (const std::string worker_id : {"a", "b"}) {
    ASSERT_TRUE(open(worker_id).ok());
    ASSERT_TRUE(client_->AppendLog(v1::AppendLogRequest()).ok());
    EXPECT_EQ(worker_.session, "for " + worker_id);
    ASSERT_TRUE(client_->FindMissing({}).ok());
    EXPECT_EQ(blobs_.session, "for " + worker_id);
  }
  ASSERT_TRUE(open("a\nline").ok());
  ASSERT_TRUE(client_->FindMissing({}).ok()) << "what metadata cannot have ends no agent";
  EXPECT_EQ(blobs_.session, "");
}

TEST_F(GrpcClientTest, ABrokenUploadGoesOnWhereItEnded) {
  const std::string bytes(static_cast<size_t>(5 * limits::kBlobChunkBytes / 2), 'b');
  ASSERT_TRUE(WriteFileAtomic(temp_.At("f"), bytes).ok());
  v1::BlobName blob;
  blob.set_sha256(Sha256Hex(bytes));
  blob.set_size_bytes(static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(client_->WriteBlob(blob, temp_.At("f"), cancelled_).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(blobs_.bytes.size(), static_cast<size_t>(limits::kBlobChunkBytes));
  EXPECT_TRUE(client_->WriteBlob(blob, temp_.At("f"), cancelled_).ok());
  EXPECT_TRUE(blobs_.complete);
  EXPECT_EQ(blobs_.bytes, bytes);
  EXPECT_TRUE(client_->WriteBlob(blob, temp_.At("absent"), cancelled_).ok());  // complete: not even looked at
}

TEST_F(GrpcClientTest, AnUploadOnADamagedBeginningStartsAgainOnce) {
  blobs_.broken_once = true;
  blobs_.bytes = "damaged";
  const std::string bytes = "the whole file";
  ASSERT_TRUE(WriteFileAtomic(temp_.At("f"), bytes).ok());
  v1::BlobName blob;
  blob.set_sha256(Sha256Hex(bytes));
  blob.set_size_bytes(static_cast<int64_t>(bytes.size()));
  EXPECT_TRUE(client_->WriteBlob(blob, temp_.At("f"), cancelled_).ok());
  EXPECT_EQ(blobs_.bytes, bytes);
  EXPECT_EQ(blobs_.refused, 1);
  // A file that is not what its name says stays refused.
  blobs_.complete = false;
  blobs_.bytes = "damaged";
  blob.set_sha256(Sha256Hex("another file"));
  EXPECT_EQ(ErrorReason(client_->WriteBlob(blob, temp_.At("f"), cancelled_)), "BLOB_HASH_MISMATCH");
  EXPECT_EQ(blobs_.refused, 3);
}

TEST_F(GrpcClientTest, AnEmptyFileAndACancelledUpload) {
  blobs_.broken_once = true;
  ASSERT_TRUE(WriteFileAtomic(temp_.At("empty"), "").ok());
  v1::BlobName blob;
  blob.set_sha256(Sha256Hex(""));
  EXPECT_TRUE(client_->WriteBlob(blob, temp_.At("empty"), cancelled_).ok());
  EXPECT_TRUE(blobs_.complete);
  blobs_.complete = false;
  cancelled_->store(true);
  EXPECT_EQ(client_->WriteBlob(blob, temp_.At("empty"), cancelled_).code(), absl::StatusCode::kCancelled);
}

TEST_F(GrpcClientTest, ReadsFromAnOffsetAndStopsWhenTheSinkDoes) {
  blobs_.bytes = std::string(2500, 'a') + "end";
  v1::BlobName blob;
  std::string got;
  const auto sink = [&](std::string_view bytes) {
    got += bytes;
    return absl::OkStatus();
  };
  EXPECT_TRUE(client_->ReadBlob(blob, 1500, sink, cancelled_).ok());
  EXPECT_EQ(got, blobs_.bytes.substr(1500));
  const auto full = [](std::string_view) { return absl::ResourceExhaustedError("full"); };
  EXPECT_EQ(client_->ReadBlob(blob, 0, full, cancelled_).message(), "full");
  cancelled_->store(true);
  EXPECT_EQ(client_->ReadBlob(blob, 0, sink, cancelled_).code(), absl::StatusCode::kCancelled);
}

TEST_F(GrpcClientTest, ShutdownAnswersWhatIsParkedAndRefusesTheRest) {
  absl::Status answer;
  client_->Sync(v1::SyncRequest(), 600'000, [&](auto result) { answer = result.status(); });
  worker_.parked.get_future().wait();
  client_->Shutdown();
  EXPECT_EQ(answer.code(), absl::StatusCode::kCancelled);  // before Shutdown returned
  EXPECT_FALSE(client_->AppendLog(v1::AppendLogRequest()).ok());
}

// As in many a container: a proxy for everything, that knows nothing of this machine's loopback.
TEST(GrpcClientAloneTest, NoProxyStandsBetweenLoopbackAddresses) {
  for (const char* name : {"no_grpc_proxy", "no_proxy"}) ::unsetenv(name);
  for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy"}) ::setenv(name, "http://127.0.0.1:1", 1);
  Worker worker;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&worker);
  const auto server = builder.BuildAndStart();
  const auto client = GrpcSchedulerClient::Open({.address = "127.0.0.1:" + std::to_string(port)});
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ(ErrorReason((*client)->CommitCheckpoint(v1::CommitCheckpointRequest())), "LEASE_FENCED");
  for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy"}) ::unsetenv(name);
}

// An answer takes less, also on a machine that stands still for ten seconds.
constexpr PingTimes kSoon = {.silent_ms = 300, .answer_ms = 12'000};
// So long does a call wait that does not find its connection dead; then the test fails.
constexpr int64_t kTooLongMs = 60'000;

// Through a proxy that takes what is sent, and nothing comes of it.
class DeadConnectionTest : public GrpcClientTest {
 protected:
  DeadConnectionTest() { through_ = *GrpcSchedulerClient::Open({.address = Address(proxy_.port())}, kSoon); }
  ~DeadConnectionTest() override { through_->Shutdown(); }
  TcpProxy proxy_{port_};
  std::unique_ptr<GrpcSchedulerClient> through_;
};

TEST_F(DeadConnectionTest, AParkedSyncEndsWithItsConnectionAndTheNextCallHasANewOne) {
  std::promise<absl::Status> ended;
  through_->Sync(v1::SyncRequest(), kTooLongMs, [&](const auto& answer) { ended.set_value(answer.status()); });
  worker_.parked.get_future().wait();
  proxy_.Deaden();
  const absl::Status status = ended.get_future().get();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(IsRetryable(status));
  // The next one may still fail for what was last seen of the connection; an agent asks again, as we do.
  absl::Status next = through_->AppendLog(v1::AppendLogRequest()).status();
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(kTooLongMs);
  while (!next.ok() && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    next = through_->AppendLog(v1::AppendLogRequest()).status();
  }
  EXPECT_TRUE(next.ok()) << next;
}

// Its own deadline is an hour away, and no chunk comes at which it would look at its cancel flag.
TEST_F(DeadConnectionTest, ADownloadThatStandsStillEndsWithItsConnection) {
  blobs_.bytes = std::string(2500, 'a');
  blobs_.stays_open = true;
  int64_t got = 0;
  const auto sink = [&](std::string_view bytes) {
    got += static_cast<int64_t>(bytes.size());
    if (got == static_cast<int64_t>(blobs_.bytes.size())) proxy_.Deaden();
    return absl::OkStatus();
  };
  const absl::Status status = through_->ReadBlob(v1::BlobName(), 0, sink, cancelled_);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(got, 2500);
}

// A scheduler on a loaded machine, that takes a second and more to greet who connects.
TEST(GrpcClientAloneTest, AConnectionHasSecondsToComeAbout) {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener.get(), SOMAXCONN), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  const auto client = GrpcSchedulerClient::Open({.address = "127.0.0.1:" + std::to_string(ntohs(address.sin_port))});
  ASSERT_TRUE(client.ok()) << client.status();
  std::promise<absl::Status> ended;
  (*client)->Sync(v1::SyncRequest(), 1'500, [&](const auto& answer) { ended.set_value(answer.status()); });
  EXPECT_EQ(ended.get_future().get().code(), absl::StatusCode::kDeadlineExceeded);
  int tries = 0;
  while (UniqueFd(::accept(listener.get(), nullptr, nullptr)).get() >= 0) ++tries;
  EXPECT_EQ(tries, 1) << "it gave up what was on its way";
}

TEST(GrpcClientAloneTest, AnAbsentSchedulerIsUnavailable) {
  const auto client = GrpcSchedulerClient::Open({.address = "127.0.0.1:1"});
  const absl::Status status = (*client)->CommitCheckpoint(v1::CommitCheckpointRequest());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(IsRetryable(status));
}

}  // namespace
}  // namespace longhaul::agent
