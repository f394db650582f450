// A scheduler with one worker that a test plays by hand.
#pragma once

#include <optional>
#include <string>

#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {

class WorkerTest : public RpcTest {
 protected:
  void SetUp() override {
    RpcTest::SetUp();
    agent_.emplace(&*stubs_);
    ASSERT_TRUE(agent_->Open().ok());
  }

  static v1::AttemptStatus StatusOf(const v1::StartAttempt& start, v1::AttemptPhase phase) {
    v1::AttemptStatus status;
    *status.mutable_key() = start.key();
    status.set_phase(phase);
    return status;
  }

  static v1::AttemptStatus Running(const v1::StartAttempt& start, int64_t step) {
    v1::AttemptStatus status = StatusOf(start, v1::ATTEMPT_PHASE_RUNNING);
    v1::TrainingProgress* progress = status.add_progress();
    progress->set_attempt(start.key().attempt());
    progress->set_step(step);
    progress->set_total_steps(4);
    progress->set_loss(4.0 - static_cast<double>(step));
    progress->set_trained_tokens(100 * step);
    progress->set_step_seconds(0.5);
    return status;
  }

  v1::BlobFile Put(const std::string& path, const std::string& bytes) {
    EXPECT_TRUE(Upload(bytes).ok());
    v1::BlobFile file;
    file.set_path(path);
    file.set_sha256(Sha256Hex(bytes));
    file.set_size_bytes(static_cast<int64_t>(bytes.size()));
    return file;
  }

  // A validated job whose training attempt has begun.
  v1::StartAttempt StartTraining(v1::Job* job) {
    *job = MustCreate(GoodRequest());
    agent_->Validate();
    const v1::StartAttempt start = agent_->AwaitStart();
    EXPECT_EQ(start.spec().kind(), v1::ATTEMPT_KIND_TRAIN);
    return start;
  }

  grpc::Status Sync(const v1::AttemptStatus& status) {
    v1::SyncResponse response;
    return agent_->Sync({status}, &response);
  }

  grpc::Status AppendLog(const v1::StartAttempt& start, int64_t offset, const std::string& data, bool complete) {
    v1::AppendLogRequest request;
    request.set_session_id(agent_->session_id());
    *request.mutable_key() = start.key();
    request.set_offset(offset);
    request.set_data(data);
    request.set_complete(complete);
    v1::AppendLogResponse response;
    return Call(*stubs_->workers, &v1::WorkerService::Stub::AppendLog, request, &response);
  }

  std::string Logs(const std::string& id, int attempt, int64_t offset, bool follow) {
    grpc::ClientContext context;
    v1::ReadLogsRequest request;
    request.set_id(id);
    request.set_attempt(attempt);
    request.set_offset(offset);
    request.set_follow(follow);
    const auto reader = stubs_->jobs->ReadLogs(&context, request);
    v1::ReadLogsResponse response;
    std::string text;
    while (reader->Read(&response)) {
      EXPECT_EQ(response.offset(), offset + static_cast<int64_t>(text.size()));
      text += response.data();
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return text;
  }

  std::optional<FakeAgent> agent_;
};

}  // namespace longhaul::server
