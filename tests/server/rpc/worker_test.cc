#include <cerrno>
#include <thread>

#include "base/limits.h"
#include "tests/fakes/broken_disk.h"
#include "tests/server/rpc/worker_test_support.h"

namespace longhaul::server {
namespace {

TEST_F(WorkerTest, AJobSucceedsByHand) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  EXPECT_EQ(start.key().job_id(), job.id());
  EXPECT_EQ(start.spec().model_digest(), Sha256Hex("tiny-llama"));
  EXPECT_EQ(start.spec().model_name(), "tiny-llama");
  EXPECT_EQ(start.spec().data_report().examples(), 10);
  EXPECT_EQ(start.spec().spec().hyperparameters().lora_rank(), 16);
  const auto plan = MemoryPlanFromJson(start.spec().memory_plan_json());
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(Get(job.id()).state(), v1::STARTING);
  EXPECT_EQ(Get(job.id()).attempt().host_bytes_planned(), plan->host_bytes_total);

  ASSERT_TRUE(Sync(Running(start, 1)).ok());
  EXPECT_EQ(Get(job.id()).state(), v1::RUNNING);
  ASSERT_TRUE(Sync(Running(start, 2)).ok());

  v1::CommitCheckpointRequest checkpoint;
  checkpoint.set_session_id(agent_->session_id());
  *checkpoint.mutable_key() = start.key();
  checkpoint.mutable_checkpoint()->set_step(2);
  checkpoint.mutable_checkpoint()->set_plan_signature("signature");
  checkpoint.mutable_checkpoint()->set_made_with("2 threads, avx2");
  *checkpoint.mutable_checkpoint()->add_files() = Put("state.json", "{}");
  v1::CommitResponse committed;
  // What is told with every start that continues from it.
  for (const char* field : {"plan_signature", "made_with"}) {
    v1::CommitCheckpointRequest large = checkpoint;
    std::string* const text = std::string(field) == "made_with" ? large.mutable_checkpoint()->mutable_made_with()
                                                                : large.mutable_checkpoint()->mutable_plan_signature();
    text->assign(limits::kMaxCheckpointTextBytes + 1, 's');
    const grpc::Status refused = Call(*stubs_->workers, &v1::WorkerService::Stub::CommitCheckpoint, large, &committed);
    EXPECT_EQ(DetailsOf(refused).Of(std::string("checkpoint.") + field), "has 1025 bytes; at most 1024");
  }
  grpc::Status status = Call(*stubs_->workers, &v1::WorkerService::Stub::CommitCheckpoint, checkpoint, &committed);
  ASSERT_TRUE(status.ok()) << status.error_message();

  ASSERT_TRUE(Sync(Running(start, 4)).ok());
  ASSERT_TRUE(Sync(StatusOf(start, v1::ATTEMPT_PHASE_FINALIZING)).ok());
  EXPECT_EQ(Get(job.id()).state(), v1::FINALIZING);
  v1::CommitArtifactRequest artifact;
  artifact.set_session_id(agent_->session_id());
  *artifact.mutable_key() = start.key();
  *artifact.mutable_artifact()->add_files() = Put("adapter_model.safetensors", "weights");
  artifact.mutable_result()->set_steps(4);
  artifact.mutable_result()->set_final_loss(0.5);
  status = Call(*stubs_->workers, &v1::WorkerService::Stub::CommitArtifact, artifact, &committed);
  ASSERT_TRUE(status.ok()) << status.error_message();
  v1::AttemptStatus ended = StatusOf(start, v1::ATTEMPT_PHASE_ENDED);
  ended.mutable_exit()->set_reason(v1::TRAINER_EXIT_SUCCEEDED);
  ended.set_artifact_committed(true);
  ended.set_host_bytes_peak(plan->host_bytes_total);
  agent_->End(ended);

  const v1::Job done = Get(job.id());
  EXPECT_EQ(done.state(), v1::SUCCEEDED);
  ASSERT_EQ(done.artifact().files_size(), 1);
  EXPECT_EQ(done.artifact().files(0).path(), "adapter_model.safetensors");
  EXPECT_EQ(done.result().final_loss(), 0.5);
  EXPECT_GT(done.end_time().seconds(), 0);

  v1::ListAttemptsRequest attempts_request;
  attempts_request.set_id(job.id());
  v1::ListAttemptsResponse attempts;
  ASSERT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListAttempts, attempts_request, &attempts).ok());
  ASSERT_EQ(attempts.attempts_size(), 2);
  EXPECT_EQ(attempts.attempts(0).kind(), v1::ATTEMPT_KIND_VALIDATE);
  EXPECT_EQ(attempts.attempts(1).outcome(), v1::ATTEMPT_OUTCOME_SUCCEEDED);

  v1::ListCheckpointsRequest checkpoints_request;
  checkpoints_request.set_id(job.id());
  v1::ListCheckpointsResponse checkpoints;
  ASSERT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListCheckpoints, checkpoints_request, &checkpoints).ok());
  ASSERT_EQ(checkpoints.checkpoints_size(), 1);
  EXPECT_EQ(checkpoints.checkpoints(0).step(), 2);
  EXPECT_EQ(checkpoints.checkpoints(0).made_with(), "2 threads, avx2");

  v1::ListMetricsRequest metrics_request;
  metrics_request.set_id(job.id());
  metrics_request.set_page_size(2);
  v1::ListMetricsResponse metrics;
  ASSERT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListMetrics, metrics_request, &metrics).ok());
  ASSERT_EQ(metrics.points_size(), 2);
  EXPECT_EQ(metrics.points(0).step(), 1);
  EXPECT_EQ(metrics.points(1).loss(), 2.0);
  EXPECT_TRUE(metrics.has_more());
}

TEST_F(WorkerTest, ProgressReachesAWatcher) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  grpc::ClientContext context;
  v1::WatchFineTuneJobRequest request;
  request.set_id(job.id());
  const auto reader = stubs_->jobs->WatchFineTuneJob(&context, request);
  v1::WatchFineTuneJobResponse message;
  ASSERT_TRUE(reader->Read(&message));
  ASSERT_TRUE(message.has_snapshot());
  ASSERT_TRUE(Sync(Running(start, 3)).ok());
  while (reader->Read(&message) && !message.has_progress()) {
  }
  ASSERT_TRUE(message.has_progress());
  EXPECT_EQ(message.progress().step(), 3);
  EXPECT_EQ(message.progress().attempt(), start.key().attempt());
  context.TryCancel();
  reader->Finish();
}

TEST_F(WorkerTest, LogsAreReadAndFollowed) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  ASSERT_TRUE(Sync(Running(start, 1)).ok());
  ASSERT_TRUE(AppendLog(start, 0, "one\n", false).ok());
  ASSERT_TRUE(AppendLog(start, 0, "one\ntwo\n", false).ok());  // repeated in part
  EXPECT_EQ(Logs(job.id(), 0, 0, false), "one\ntwo\n");
  EXPECT_EQ(Logs(job.id(), start.key().attempt(), 4, false), "two\n");
  EXPECT_EQ(AppendLog(start, 100, "gap", false).error_code(), grpc::StatusCode::OUT_OF_RANGE);

  std::string followed;
  std::thread follower([&] { followed = Logs(job.id(), 0, 0, true); });
  ASSERT_TRUE(AppendLog(start, 8, "three\n", false).ok());
  ASSERT_TRUE(AppendLog(start, 14, "four\n", true).ok());
  follower.join();
  EXPECT_EQ(followed, "one\ntwo\nthree\nfour\n");

  v1::ReadLogsRequest request;
  request.set_id(job.id());
  request.set_attempt(99);
  grpc::ClientContext context;
  const auto reader = stubs_->jobs->ReadLogs(&context, request);
  v1::ReadLogsResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(DetailsOf(reader->Finish()).reason, "ATTEMPT_NOT_FOUND");
}

// Neither the client's fault, as PERMISSION_DENIED would say, nor its business where the scheduler keeps its files.
TEST_F(WorkerTest, AnErrorOfTheSchedulersOwnDiskSaysSoWithoutItsPath) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  const struct {
    int error_number;
    grpc::StatusCode code;
    const char* reason;
  } kCases[] = {{EROFS, grpc::StatusCode::UNAVAILABLE, "STORE_IO"},
                {EACCES, grpc::StatusCode::UNAVAILABLE, "STORE_IO"},
                {EIO, grpc::StatusCode::UNAVAILABLE, "STORE_IO"},
                {EMFILE, grpc::StatusCode::RESOURCE_EXHAUSTED, "TOO_MANY_OPEN_FILES"},
                {ENOSPC, grpc::StatusCode::RESOURCE_EXHAUSTED, "DISK_FULL"}};
  BrokenDisk disk;
  for (const auto& broken : kCases) {
    SCOPED_TRACE(broken.error_number);
    disk.Break(broken.error_number, kEveryChange);
    for (const grpc::Status& status : {Upload("a blob that is new"), AppendLog(start, 0, "a line\n", false)}) {
      EXPECT_EQ(status.error_code(), broken.code) << status.error_message();
      EXPECT_EQ(DetailsOf(status).reason, broken.reason);
      EXPECT_EQ(status.error_message().find(dir_.path()), std::string::npos) << status.error_message();
    }
    disk.Mend();
  }
  EXPECT_TRUE(Upload("a blob that is new").ok());
  EXPECT_TRUE(AppendLog(start, 0, "a line\n", false).ok());
}

TEST_F(WorkerTest, CancelReachesTheTrainer) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  ASSERT_TRUE(Sync(Running(start, 1)).ok());
  v1::Job cancelling;
  ASSERT_TRUE(Cancel(job.id(), &cancelling).ok());
  EXPECT_EQ(cancelling.state(), v1::CANCELLING);
  ASSERT_TRUE(Cancel(job.id(), &cancelling).ok());  // in force already
  EXPECT_EQ(agent_->AwaitStop(Running(start, 1)).mode(), v1::STOP_MODE_CANCEL);
  v1::AttemptStatus ended = StatusOf(start, v1::ATTEMPT_PHASE_ENDED);
  ended.mutable_exit()->set_reason(v1::TRAINER_EXIT_CANCELLED);
  agent_->End(ended);
  EXPECT_EQ(Get(job.id()).state(), v1::CANCELLED);
  EXPECT_EQ(Cancel(job.id(), &cancelling).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(WorkerTest, BadDataFailsTheJobWithItsReport) {
  const v1::Job job = MustCreate(GoodRequest());
  const v1::StartAttempt start = agent_->AwaitStart();
  v1::AttemptStatus ended = StatusOf(start, v1::ATTEMPT_PHASE_ENDED);
  ended.mutable_exit()->set_reason(v1::TRAINER_EXIT_FAILED);
  ended.mutable_exit()->set_failure(v1::INVALID_DATASET);
  ended.mutable_exit()->set_message("line 3: messages[1].role is \"robot\"");
  ended.mutable_exit()->set_user_can_fix(true);
  ended.mutable_data_report()->set_error_count(1);
  v1::DataError* error = ended.mutable_data_report()->add_errors();
  error->set_line(3);
  error->set_field("messages[1].role");
  agent_->End(ended);
  const v1::Job failed = Get(job.id());
  EXPECT_EQ(failed.state(), v1::FAILED);
  EXPECT_EQ(failed.failure().reason(), v1::INVALID_DATASET);
  EXPECT_TRUE(failed.failure().user_can_fix());
  ASSERT_EQ(failed.data_report().errors_size(), 1);
  EXPECT_EQ(failed.data_report().errors(0).line(), 3);
}

TEST_F(WorkerTest, StaleEpochsAndSessionsAreRefused) {
  v1::Job job;
  v1::StartAttempt start = StartTraining(&job);
  start.mutable_key()->set_lease_epoch(start.key().lease_epoch() - 1);
  const grpc::Status fenced = AppendLog(start, 0, "late", false);
  EXPECT_EQ(fenced.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(fenced).reason, "LEASE_FENCED");
  EXPECT_EQ(Logs(job.id(), 0, 0, false), "");

  FakeAgent successor(&*stubs_);  // the same worker id
  ASSERT_TRUE(successor.Open().ok());
  v1::SyncResponse response;
  const grpc::Status closed = agent_->Sync({}, &response);
  EXPECT_EQ(closed.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(DetailsOf(closed).reason, "SESSION_CLOSED");
}

TEST_F(WorkerTest, CheckpointNamesNeverLeaveTheirFolder) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  for (const std::string path : {"../x", "/etc/passwd", "a/b", "", ".hidden", "a\\b"}) {
    v1::CommitCheckpointRequest request;
    request.set_session_id(agent_->session_id());
    *request.mutable_key() = start.key();
    request.mutable_checkpoint()->set_step(1);
    *request.mutable_checkpoint()->add_files() = Put(path, "{}");
    v1::CommitResponse response;
    const grpc::Status status = Call(*stubs_->workers, &v1::WorkerService::Stub::CommitCheckpoint, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << path;
    EXPECT_NE(DetailsOf(status).Of("checkpoint.files[0].path"), "") << path;
  }
}

TEST_F(WorkerTest, AnOpeningThatWasOvertakenIsRefused) {
  v1::OpenSessionRequest request = FakeAgent(&*stubs_, "worker-2").Hello(int64_t{8} << 30);
  request.set_last_opening("");
  v1::OpenSessionResponse response;
  ASSERT_TRUE(Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, request, &response).ok());
  ASSERT_NE(response.opening(), "");
  v1::OpenSessionResponse late;
  const grpc::Status status = Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, request, &late);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(status).reason, "OPENED_SINCE");
  EXPECT_EQ(DetailsOf(status).metadata.at("opening"), response.opening());
  request.set_last_opening(response.opening());
  EXPECT_TRUE(Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, request, &late).ok());
  EXPECT_NE(late.opening(), response.opening());
}

TEST_F(WorkerTest, InventoriesAreChecked) {
  v1::OpenSessionRequest request = FakeAgent(&*stubs_, "worker-2").Hello(int64_t{8} << 30);
  request.mutable_inventory()->mutable_models(0)->mutable_shape()->set_layers(-1);
  v1::OpenSessionResponse response;
  EXPECT_EQ(Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request = FakeAgent(&*stubs_, "").Hello(int64_t{8} << 30);
  EXPECT_EQ(Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request = FakeAgent(&*stubs_, "worker-2").Hello(int64_t{8} << 30);
  request.set_protocol_version(-5);
  EXPECT_EQ(DetailsOf(Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, request, &response)).reason,
            "WORKER_TOO_OLD");
}

// More than the scheduler gives, for those that have ended and are being put away: a Sync that names them is no error.
TEST_F(WorkerTest, ASyncMayNameMoreAttemptsThanAWorkerIsGiven) {
  std::vector<v1::AttemptStatus> attempts;
  const auto sync_with = [&](int count) {
    for (int i = static_cast<int>(attempts.size()); i < count; ++i) {
      v1::AttemptStatus& status = attempts.emplace_back();
      status.mutable_key()->set_job_id("ftjob-gone");
      status.mutable_key()->set_attempt(i + 1);
      status.mutable_key()->set_lease_epoch(1);
      status.set_phase(v1::ATTEMPT_PHASE_ENDED);
      status.mutable_exit()->set_reason(v1::TRAINER_EXIT_CANCELLED);
    }
    v1::SyncResponse response;
    const grpc::Status status = agent_->Sync(attempts, &response);
    EXPECT_EQ(response.acknowledged_size(), status.ok() ? count : 0);
    return status;
  };
  EXPECT_TRUE(sync_with(limits::kMaxAttemptsPerWorker + 100).ok());
  EXPECT_TRUE(sync_with(limits::kMaxReportsPerSync).ok());
  const grpc::Status refused = sync_with(limits::kMaxReportsPerSync + 1);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(refused.error_message().find("at most 4000"), std::string::npos) << refused.error_message();
}

TEST_F(WorkerTest, OperatorsSeeAndDrainWorkers) {
  v1::ListWorkersResponse list;
  ASSERT_TRUE(Call(*stubs_->admin, &v1::WorkerAdminService::Stub::ListWorkers, v1::ListWorkersRequest(), &list).ok());
  ASSERT_EQ(list.workers_size(), 1);
  EXPECT_EQ(list.workers(0).id(), "worker-1");
  EXPECT_EQ(list.workers(0).state(), v1::WORKER_ONLINE);
  EXPECT_EQ(list.workers(0).inventory().models(0).name(), "tiny-llama");
  EXPECT_EQ(list.workers(0).inventory().devices(0).facts().isa(), "avx2");

  v1::DrainWorkerRequest drain;
  drain.set_id("worker-1");
  v1::Worker worker;
  ASSERT_TRUE(Call(*stubs_->admin, &v1::WorkerAdminService::Stub::DrainWorker, drain, &worker).ok());
  EXPECT_TRUE(worker.draining());
  v1::UndrainWorkerRequest undrain;
  undrain.set_id("worker-1");
  ASSERT_TRUE(Call(*stubs_->admin, &v1::WorkerAdminService::Stub::UndrainWorker, undrain, &worker).ok());
  EXPECT_FALSE(worker.draining());
  v1::GetWorkerRequest get;
  get.set_id("nobody");
  EXPECT_EQ(DetailsOf(Call(*stubs_->admin, &v1::WorkerAdminService::Stub::GetWorker, get, &worker)).reason,
            "WORKER_NOT_FOUND");
}

}  // namespace
}  // namespace longhaul::server
