#include <thread>

#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {
namespace {

using Message = v1::WatchFineTuneJobResponse;

class WatchTest : public RpcTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = RpcTest::Options();
    options.heartbeat_ms = 20;
    return options;
  }
  void SetUp() override {
    RpcTest::SetUp();
    agent_.emplace(&*stubs_);
    ASSERT_TRUE(agent_->Open().ok());
  }

  struct Watch {
    Watch(Stubs* stubs, const std::string& id, std::optional<int64_t> after) {
      v1::WatchFineTuneJobRequest request;
      request.set_id(id);
      if (after.has_value()) request.set_after_sequence(*after);
      reader = stubs->jobs->WatchFineTuneJob(&context, request);
    }
    // The next message that is no heartbeat; false at the end.
    bool Next(Message* message) {
      while (reader->Read(message)) {
        if (!message->has_heartbeat()) return true;
        ++heartbeats;
      }
      return false;
    }
    // Events to the end of the stream, which must begin with a snapshot.
    std::vector<v1::JobEvent> Events(grpc::Status* status) {
      std::vector<v1::JobEvent> events;
      Message message;
      if (Next(&message)) {
        EXPECT_TRUE(message.has_snapshot());
        snapshot = message.snapshot();
      }
      while (Next(&message)) {
        EXPECT_FALSE(message.has_snapshot());
        if (message.has_event()) events.push_back(message.event());
      }
      *status = reader->Finish();
      return events;
    }
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<Message>> reader;
    v1::Snapshot snapshot;
    int heartbeats = 0;
  };

  static void ExpectDense(const std::vector<v1::JobEvent>& events, int64_t first) {
    for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence(), first + static_cast<int64_t>(i));
  }

  // Through validation and into training, cancelled there: every kind of state event.
  void RunAndCancel(const v1::Job& job) {
    agent_->Validate();
    v1::AttemptStatus status;
    *status.mutable_key() = agent_->AwaitStart().key();
    status.set_phase(v1::ATTEMPT_PHASE_RUNNING);
    v1::SyncResponse response;
    ASSERT_TRUE(agent_->Sync({status}, &response).ok());
    v1::Job cancelled;
    ASSERT_TRUE(Cancel(job.id(), &cancelled).ok());
    status.set_phase(v1::ATTEMPT_PHASE_ENDED);
    status.mutable_exit()->set_reason(v1::TRAINER_EXIT_CANCELLED);
    agent_->End(status);
    ASSERT_EQ(Get(job.id()).state(), v1::CANCELLED);
  }

  std::optional<FakeAgent> agent_;
};

TEST_F(WatchTest, SnapshotFirstThenEveryEventThenOk) {
  const v1::Job job = MustCreate(GoodRequest());
  Watch watch(&*stubs_, job.id(), std::nullopt);
  Message first;
  ASSERT_TRUE(watch.Next(&first));
  ASSERT_TRUE(first.has_snapshot());
  EXPECT_EQ(first.snapshot().job().id(), job.id());
  EXPECT_GE(first.snapshot().sequence(), 1);

  v1::Job cancelled;
  ASSERT_TRUE(Cancel(job.id(), &cancelled).ok());
  std::vector<v1::JobEvent> events;
  Message message;
  while (watch.Next(&message)) {
    if (message.has_event()) events.push_back(message.event());
  }
  EXPECT_TRUE(watch.reader->Finish().ok());
  ASSERT_FALSE(events.empty());
  ExpectDense(events, first.snapshot().sequence() + 1);
  EXPECT_EQ(events.back().state(), v1::CANCELLED);
  EXPECT_EQ(events.back().type(), v1::JOB_EVENT_TYPE_STATE);
}

TEST_F(WatchTest, ResumesAfterEverySequenceWithoutGapOrDuplicate) {
  const v1::Job job = MustCreate(GoodRequest());
  RunAndCancel(job);
  const int64_t last = Get(job.id()).sequence();
  ASSERT_GE(last, 3);
  for (int64_t after = 0; after <= last; ++after) {
    Watch watch(&*stubs_, job.id(), after);
    grpc::Status status;
    const std::vector<v1::JobEvent> events = watch.Events(&status);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(watch.snapshot.sequence(), last);
    EXPECT_EQ(events.size(), static_cast<size_t>(last - after));
    ExpectDense(events, after + 1);
  }
}

TEST_F(WatchTest, ManyWatchersSeeTheSameEvents) {
  const v1::Job job = MustCreate(GoodRequest());
  std::vector<std::vector<v1::JobEvent>> seen(32);
  std::vector<std::unique_ptr<Watch>> watches;
  for (size_t i = 0; i < seen.size(); ++i) watches.push_back(std::make_unique<Watch>(&*stubs_, job.id(), 0));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < seen.size(); ++i) {
    threads.emplace_back([&, i] {
      grpc::Status status;
      seen[i] = watches[i]->Events(&status);
      EXPECT_TRUE(status.ok());
    });
  }
  RunAndCancel(job);
  for (std::thread& thread : threads) thread.join();
  const int64_t last = Get(job.id()).sequence();
  for (const auto& events : seen) {
    EXPECT_EQ(events.size(), static_cast<size_t>(last));
    ExpectDense(events, 1);
  }
}

TEST_F(WatchTest, AnIdleStreamHasHeartbeats) {
  const v1::Job job = MustCreate(GoodRequest());
  Watch watch(&*stubs_, job.id(), std::nullopt);
  Message message;
  ASSERT_TRUE(watch.reader->Read(&message));
  ASSERT_TRUE(message.has_snapshot());
  ASSERT_TRUE(watch.reader->Read(&message));
  ASSERT_TRUE(message.has_heartbeat());
  EXPECT_GT(message.heartbeat().time().seconds(), 0);
  watch.context.TryCancel();
  EXPECT_EQ(watch.reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(WatchTest, EndsNotFoundForUnknownJobs) {
  Watch unknown(&*stubs_, "ftjob-nothere", std::nullopt);
  Message message;
  EXPECT_FALSE(unknown.reader->Read(&message));
  const grpc::Status status = unknown.reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(status).reason, "JOB_NOT_FOUND");
}

TEST_F(WatchTest, RefusesACursorThatIsAhead) {
  const v1::Job job = MustCreate(GoodRequest());
  for (const int64_t after : {int64_t{-1}, job.sequence() + 100}) {
    Watch watch(&*stubs_, job.id(), after);
    Message message;
    EXPECT_FALSE(watch.reader->Read(&message));
    EXPECT_EQ(watch.reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(WatchTest, StoppingTheServerEndsWatchesUnavailable) {
  const v1::Job job = MustCreate(GoodRequest());
  Watch watch(&*stubs_, job.id(), std::nullopt);
  Message message;
  ASSERT_TRUE(watch.Next(&message));
  server_->Stop();
  while (watch.reader->Read(&message)) {
  }
  EXPECT_EQ(watch.reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(WatchTest, ACursorSurvivesARestart) {
  const v1::Job job = MustCreate(GoodRequest());
  const int64_t before = Get(job.id()).sequence();
  stubs_.reset();
  server_.reset();
  Start();
  Watch watch(&*stubs_, job.id(), before);
  Message message;
  ASSERT_TRUE(watch.Next(&message));
  ASSERT_TRUE(message.has_snapshot());
  v1::Job cancelled;
  ASSERT_TRUE(Cancel(job.id(), &cancelled).ok());
  std::vector<v1::JobEvent> events;
  while (watch.Next(&message)) {
    if (message.has_event()) events.push_back(message.event());
  }
  EXPECT_TRUE(watch.reader->Finish().ok());
  ExpectDense(events, before + 1);
  EXPECT_EQ(events.back().state(), v1::CANCELLED);
}

}  // namespace
}  // namespace longhaul::server
