// Readers of logs that do not read: what they may hold, how many of them there may be, and their end.
#include "base/limits.h"
#include "base/process.h"
#include "tests/server/rpc/worker_test_support.h"

namespace longhaul::server {
namespace {

using LogStream = std::unique_ptr<grpc::ClientReader<v1::ReadLogsResponse>>;

class LogReaderTest : public WorkerTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = WorkerTest::Options();
    options.transfer_stall_ms = 500;
    return options;
  }
  // A running attempt with a log of so many MiB.
  v1::Job JobWithLog(int mib) {
    v1::Job job;
    start_ = StartTraining(&job);
    EXPECT_TRUE(Sync(Running(start_, 1)).ok());
    const std::string data(1 << 20, 'x');
    for (int64_t i = 0; i < mib; ++i) {
      const grpc::Status status = AppendLog(start_, i << 20, data, false);
      EXPECT_TRUE(status.ok()) << status.error_message();
    }
    return job;
  }
  LogStream Open(grpc::ClientContext* context, const std::string& id, bool follow) {
    v1::ReadLogsRequest request;
    request.set_id(id);
    request.set_follow(follow);
    return reader_stubs_->jobs->ReadLogs(context, request);
  }

  v1::StartAttempt start_;

 private:
  // A client that takes 64 KiB of a stream unread, and never learns that it could take more.
  void SetUp() override {
    WorkerTest::SetUp();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    reader_stubs_.emplace(grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->grpc_port()),
                                                    grpc::InsecureChannelCredentials(), arguments));
  }
  void TearDown() override {
    reader_stubs_.reset();
    WorkerTest::TearDown();
  }
  std::optional<Stubs> reader_stubs_;
};

TEST_F(LogReaderTest, OneThatStandsStillIsEndedAndOneThatWaitsIsNot) {
  const v1::Job job = JobWithLog(4);
  grpc::ClientContext waiting_context;
  const LogStream waiting = Open(&waiting_context, job.id(), true);
  v1::ReadLogsResponse response;
  int64_t read_bytes = 0;
  while (read_bytes < 4 << 20) {
    ASSERT_TRUE(waiting->Read(&response));
    EXPECT_LE(response.data().size(), static_cast<size_t>(limits::kLogChunkBytes));
    read_bytes += static_cast<int64_t>(response.data().size());
  }
  grpc::ClientContext context;
  const LogStream reader = Open(&context, job.id(), true);
  ASSERT_TRUE(reader->Read(&response));
  // Longer than a stall: the one that waits for more has nothing to read.
  const int64_t begin_nanos = clock_.BootNanos();
  while (clock_.BootNanos() - begin_nanos < int64_t{1'500} * 1'000'000) CountJobs();
  read_bytes = static_cast<int64_t>(response.data().size());
  while (reader->Read(&response)) read_bytes += static_cast<int64_t>(response.data().size());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_LT(read_bytes, 4 << 20) << "it was ended before it read on";
  // The other one still follows.
  ASSERT_TRUE(AppendLog(start_, 4 << 20, "and the end", true).ok());
  ASSERT_TRUE(waiting->Read(&response));
  EXPECT_EQ(response.data(), "and the end");
  EXPECT_FALSE(waiting->Read(&response));
  EXPECT_TRUE(waiting->Finish().ok());
}

class ManyLogReadersTest : public LogReaderTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = LogReaderTest::Options();
    options.transfer_stall_ms = limits::kTransferStallMs;
    return options;
  }
};

TEST_F(ManyLogReadersTest, HoldLittleEach) {
  constexpr int kReaders = 200;
  const v1::Job job = JobWithLog(4);
  const int64_t before = ProcessAnonymousBytes(::getpid());
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<LogStream> readers;
  for (int i = 0; i < kReaders; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(Open(contexts.back().get(), job.id(), true));
    v1::ReadLogsResponse response;
    ASSERT_TRUE(readers.back()->Read(&response));
  }
  // Both ends are in this process: 64 KiB of a window, and the pieces on the way. It was 2.4 MiB of the server's alone.
  EXPECT_LT(ProcessAnonymousBytes(::getpid()) - before, int64_t{kReaders} * (400 << 10));
  for (int i = 0; i < kReaders; ++i) {
    contexts[i]->TryCancel();
    readers[i]->Finish();
  }
}

}  // namespace
}  // namespace longhaul::server
