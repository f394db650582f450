// Readers of logs that do not read: how much each holds, how many there may be, and their end.
#include <unistd.h>

#include <chrono>

#include "base/limits.h"
#include "base/process.h"
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

using LogStream = std::unique_ptr<grpc::ClientReader<v1::ReadLogsResponse>>;
constexpr int64_t kLogBytes = 4 << 20;
constexpr char kLine[] = "{\"text\":\"hello\"}\n";

class LogReaderTest : public SecureRpcTest {
 protected:
  static constexpr int64_t kStallMs = 15'000;  // more than a busy machine needs for what must not be ended
  ServerOptions Options() const override {
    ServerOptions options = SecureRpcTest::Options();
    options.log_streams_per_caller = 2;
    options.transfer_stall_ms = kStallMs;
    options.calls_per_second = options.call_burst = 1'000'000;
    return options;
  }
  // A running attempt with a log of 4 MiB, and a client that takes 64 KiB of a stream unread and never learns that it
  // could take more.
  void SetUp() override {
    SecureRpcTest::SetUp();
    fleet_.emplace(As(MakeTokenOf("fleet", "worker", "*")));
    agent_.emplace(&*fleet_);
    ASSERT_TRUE(agent_->Open().ok());
    const Stubs ci = As(MakeTokenOf("ci", "submitter", "red"));
    ASSERT_TRUE(UploadAs(ci, kLine).ok());
    v1::Job job;
    ASSERT_TRUE(Call(*ci.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, RequestFor(kLine), &job).ok());
    agent_->Validate();
    start_ = agent_->AwaitStart();
    v1::AttemptStatus running;
    *running.mutable_key() = start_.key();
    running.set_phase(v1::ATTEMPT_PHASE_RUNNING);
    v1::SyncResponse response;
    ASSERT_TRUE(agent_->Sync({running}, &response).ok());
    for (int64_t at = 0; at < kLogBytes; at += 1 << 20) Append(at, std::string(1 << 20, 'x'), false);
    channel::ChannelOptions options = ClientOptions();
    options.token = MakeTokenOf("eve", "viewer", "red");
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    viewer_.emplace(*channel::OpenChannel(options, arguments));
  }
  void TearDown() override {
    viewer_.reset();
    fleet_.reset();
    SecureRpcTest::TearDown();
  }

  void Append(int64_t offset, const std::string& data, bool complete) {
    v1::AppendLogRequest request;
    request.set_session_id(agent_->session_id());
    *request.mutable_key() = start_.key();
    request.set_offset(offset);
    request.set_data(data);
    request.set_complete(complete);
    v1::AppendLogResponse response;
    const grpc::Status status = Call(*fleet_->workers, &v1::WorkerService::Stub::AppendLog, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  LogStream Follow(grpc::ClientContext* context) {
    v1::ReadLogsRequest request;
    request.set_id(start_.key().job_id());
    request.set_follow(true);
    return viewer_->jobs->ReadLogs(context, request);
  }

  std::optional<Stubs> fleet_;
  std::optional<Stubs> viewer_;
  std::optional<FakeAgent> agent_;
  v1::StartAttempt start_;
};

TEST_F(LogReaderTest, OneThatStandsStillIsEndedAndOneThatWaitsIsNot) {
  grpc::ClientContext waiting_context;
  const LogStream waiting = Follow(&waiting_context);
  v1::ReadLogsResponse response;
  int64_t read_bytes = 0;
  while (read_bytes < kLogBytes) {
    ASSERT_TRUE(waiting->Read(&response));
    EXPECT_LE(response.data().size(), static_cast<size_t>(limits::kLogChunkBytes));
    read_bytes += static_cast<int64_t>(response.data().size());
  }
  grpc::ClientContext context;
  const LogStream still = Follow(&context);
  ASSERT_TRUE(still->Read(&response));
  // These two are all that the caller may have, until the one that does not read is ended.
  const auto refusal = [&] {
    grpc::ClientContext third_context;
    third_context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    const LogStream third = Follow(&third_context);
    const bool admitted = third->Read(&response);
    if (admitted) third_context.TryCancel();
    const std::string reason = DetailsOf(third->Finish()).reason;
    return admitted ? "" : reason;
  };
  EXPECT_EQ(refusal(), "TOO_MANY_LOG_STREAMS");
  clock_.Pass(kStallMs);
  const int64_t limit_nanos = clock_.BootNanos() + int64_t{60} * 1'000'000'000;
  for (std::string reason = refusal(); !reason.empty(); reason = refusal()) {
    ASSERT_EQ(reason, "TOO_MANY_LOG_STREAMS");
    ASSERT_LT(clock_.BootNanos(), limit_nanos) << "the one that does not read goes on";
  }
  read_bytes = 0;
  while (still->Read(&response)) read_bytes += static_cast<int64_t>(response.data().size());
  EXPECT_EQ(still->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_LT(read_bytes, kLogBytes / 2);
  // The one that waits has nothing to read, and goes on.
  Append(kLogBytes, "the end", true);
  ASSERT_TRUE(waiting->Read(&response));
  EXPECT_EQ(response.data(), "the end");
  EXPECT_FALSE(waiting->Read(&response));
  EXPECT_TRUE(waiting->Finish().ok());
}

class ManyLogReadersTest : public LogReaderTest {
 protected:
  static constexpr int kReaders = 200;
  // Both ends are in this process. With pieces of 1 MiB it was more than 2 MiB of the server's alone.
#if defined(__SANITIZE_ADDRESS__)  // which keeps for a while what was freed
  static constexpr int64_t kMostBytesOfAReader = 1536 << 10;
#else
  static constexpr int64_t kMostBytesOfAReader = 512 << 10;
#endif
  ServerOptions Options() const override {
    ServerOptions options = LogReaderTest::Options();
    options.log_streams_per_caller = kReaders;
    options.transfer_stall_ms = limits::kTransferStallMs;
    return options;
  }
};

TEST_F(ManyLogReadersTest, HoldLittleEach) {
  const int64_t before = ProcessAnonymousBytes(::getpid());
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<LogStream> readers;
  for (int i = 0; i < kReaders; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(Follow(contexts.back().get()));
    v1::ReadLogsResponse response;
    ASSERT_TRUE(readers.back()->Read(&response));
  }
  const int64_t held = ProcessAnonymousBytes(::getpid()) - before;
  RecordProperty("bytes_of_a_reader", std::to_string(held / kReaders));
  EXPECT_LT(held / kReaders, kMostBytesOfAReader);
  for (int i = 0; i < kReaders; ++i) {
    contexts[i]->TryCancel();
    readers[i]->Finish();
  }
}

}  // namespace
}  // namespace longhaul::server
