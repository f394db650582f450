// Pause, resume, drain, explain and the queue's part of an estimate, over gRPC and with an agent played by hand.
#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {
namespace {

using Jobs = v1::FineTuneService::Stub;

class ControlTest : public RpcTest {
 protected:
  void SetUp() override {
    RpcTest::SetUp();
    agent_.emplace(&*stubs_);
    ASSERT_TRUE(agent_->Open().ok());
  }

  template <class Request>
  grpc::Status Ask(grpc::Status (Jobs::*method)(grpc::ClientContext*, const Request&, v1::Job*), const std::string& id,
                   v1::Job* job) {
    Request request;
    request.set_id(id);
    return Call(*stubs_->jobs, method, request, job);
  }
  v1::ExplainFineTuneJobResponse Explain(const std::string& id) {
    v1::ExplainFineTuneJobRequest request;
    request.set_id(id);
    v1::ExplainFineTuneJobResponse response;
    const grpc::Status status = Call(*stubs_->jobs, &Jobs::ExplainFineTuneJob, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  // One whose training runs.
  v1::StartAttempt StartTraining(v1::Job* job) {
    *job = MustCreate(GoodRequest());
    agent_->Validate();
    const v1::StartAttempt start = agent_->AwaitStart();
    v1::SyncResponse response;
    EXPECT_TRUE(agent_->Sync({Status(start, v1::ATTEMPT_PHASE_RUNNING)}, &response).ok());
    return start;
  }
  static v1::AttemptStatus Status(const v1::StartAttempt& start, v1::AttemptPhase phase) {
    v1::AttemptStatus status;
    *status.mutable_key() = start.key();
    status.set_phase(phase);
    return status;
  }
  static v1::AttemptStatus Checkpointed(const v1::StartAttempt& start) {
    v1::AttemptStatus status = Status(start, v1::ATTEMPT_PHASE_ENDED);
    status.mutable_exit()->set_reason(v1::TRAINER_EXIT_CHECKPOINTED);
    return status;
  }

  std::optional<FakeAgent> agent_;
};

TEST_F(ControlTest, PauseAndResumeWithTheirCauses) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  EXPECT_EQ(Explain(job.id()).summary().find("runs on worker worker-1 (cpu-0)"), 0u) << Explain(job.id()).summary();
  v1::Job answer;
  ASSERT_TRUE(Ask(&Jobs::PauseFineTuneJob, job.id(), &answer).ok());
  EXPECT_EQ(answer.state(), v1::PAUSING);
  EXPECT_EQ(answer.pause_cause(), v1::PAUSE_CAUSE_USER);
  EXPECT_NE(Explain(job.id()).summary().find("as the user asked"), std::string::npos);
  ASSERT_TRUE(Ask(&Jobs::ResumeFineTuneJob, job.id(), &answer).ok());
  EXPECT_EQ(answer.pause_cause(), v1::PAUSE_CAUSE_PREEMPT) << "queued again right after its checkpoint";
  ASSERT_TRUE(Ask(&Jobs::PauseFineTuneJob, job.id(), &answer).ok());
  EXPECT_EQ(answer.pause_cause(), v1::PAUSE_CAUSE_USER);
  EXPECT_EQ(agent_->AwaitStop(Status(start, v1::ATTEMPT_PHASE_RUNNING)).mode(), v1::STOP_MODE_CHECKPOINT);
  agent_->End(Checkpointed(start));
  const v1::Job paused = Get(job.id());
  EXPECT_EQ(paused.state(), v1::PAUSED);
  EXPECT_EQ(paused.reason(), v1::PAUSED_BY_USER);
  EXPECT_EQ(paused.queue_position(), 0);
  const v1::ExplainFineTuneJobResponse explained = Explain(job.id());
  ASSERT_GE(explained.unblocks_size(), 1);
  EXPECT_EQ(explained.unblocks(0), "`longhaul resume " + job.id() + "`");
  EXPECT_TRUE(explained.places().empty());
  ASSERT_TRUE(Ask(&Jobs::ResumeFineTuneJob, job.id(), &answer).ok());
  EXPECT_EQ(agent_->AwaitStart().key().attempt(), start.key().attempt() + 1);
  const grpc::Status again = Ask(&Jobs::ResumeFineTuneJob, job.id(), &answer);
  EXPECT_EQ(again.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(DetailsOf(again).reason, "ILLEGAL_TRANSITION");
}

TEST_F(ControlTest, ExplainNamesReasonUnblockPlaceAndTime) {
  v1::Job running;
  const v1::StartAttempt start = StartTraining(&running);
  const v1::Job waiting = MustCreate(GoodRequest());
  agent_->Validate();
  const v1::ExplainFineTuneJobResponse answer = Explain(waiting.id());
  EXPECT_EQ(answer.job().state(), v1::QUEUED) << answer.summary();
  EXPECT_EQ(answer.job().reason(), v1::WAITING_FOR_CPU_THREADS);
  EXPECT_EQ(answer.summary(), "waits, WAITING_FOR_CPU_THREADS: needs 2 CPU threads; worker worker-1 has 0 free of 2");
  EXPECT_EQ(answer.job().queue_position(), 1);
  EXPECT_EQ(answer.waiting_jobs(), 1);
  EXPECT_TRUE(answer.reserved());
  ASSERT_EQ(answer.after_job_ids_size(), 1);
  EXPECT_EQ(answer.after_job_ids(0), running.id());
  ASSERT_EQ(answer.unblocks_size(), 1);
  EXPECT_NE(answer.unblocks(0).find(running.id()), std::string::npos) << answer.unblocks(0);
  EXPECT_GT(answer.job().expected_start_time().seconds(), running.create_time().seconds());
  EXPECT_EQ(answer.project_running_jobs(), 1);
  EXPECT_FALSE(answer.has_quota());
  ASSERT_EQ(answer.places_size(), 1);
  EXPECT_TRUE(answer.places(0).possible());
  // Get and List say the same, from the last pass.
  EXPECT_EQ(Get(waiting.id()).reason(), v1::WAITING_FOR_CPU_THREADS);
  EXPECT_EQ(Get(waiting.id()).queue_position(), 1);
  EXPECT_TRUE(Get(waiting.id()).has_expected_start_time());
  v1::ListFineTuneJobsResponse list;
  ASSERT_TRUE(Call(*stubs_->jobs, &Jobs::ListFineTuneJobs, v1::ListFineTuneJobsRequest(), &list).ok());
  ASSERT_EQ(list.jobs_size(), 2);
  EXPECT_EQ(list.jobs(0).queue_position(), 1);
  EXPECT_EQ(list.jobs(1).queue_position(), 0);

  v1::ExplainFineTuneJobRequest unknown;
  unknown.set_id("ftjob-nothere");
  v1::ExplainFineTuneJobResponse nothing;
  EXPECT_EQ(DetailsOf(Call(*stubs_->jobs, &Jobs::ExplainFineTuneJob, unknown, &nothing)).reason, "JOB_NOT_FOUND");
}

TEST_F(ControlTest, ExplainOfAFailureSaysWhetherItIsRetried) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  v1::AttemptStatus ended = Status(start, v1::ATTEMPT_PHASE_ENDED);
  ended.mutable_exit()->set_reason(v1::TRAINER_EXIT_FAILED);
  ended.mutable_exit()->set_failure(v1::HOST_OOM);
  ended.mutable_exit()->set_message("no memory");
  agent_->End(ended);
  const v1::ExplainFineTuneJobResponse answer = Explain(job.id());
  EXPECT_EQ(answer.job().state(), v1::FAILED);
  EXPECT_NE(answer.summary().find("this is a bug of Longhaul"), std::string::npos) << answer.summary();
  EXPECT_NE(answer.summary().find("another attempt would end the same"), std::string::npos) << answer.summary();
}

TEST_F(ControlTest, AnEstimateCountsTheQueue) {
  v1::EstimateFineTuneJobRequest request;
  *request.mutable_spec() = GoodRequest().spec();
  request.mutable_spec()->mutable_hyperparameters()->set_max_steps(10);
  v1::EstimateFineTuneJobResponse idle;
  ASSERT_TRUE(Call(*stubs_->jobs, &Jobs::EstimateFineTuneJob, request, &idle).ok());
  ASSERT_TRUE(idle.has_queue());
  EXPECT_EQ(idle.queue().position(), 0) << idle.queue().reason_detail();
  EXPECT_EQ(idle.queue().device_class(), "cpu-avx2-2t");
  EXPECT_TRUE(idle.queue().has_expected_finish_time());
  v1::Job running;
  StartTraining(&running);
  v1::EstimateFineTuneJobResponse busy;
  ASSERT_TRUE(Call(*stubs_->jobs, &Jobs::EstimateFineTuneJob, request, &busy).ok());
  EXPECT_EQ(busy.queue().position(), 1);
  EXPECT_EQ(busy.queue().reason(), v1::WAITING_FOR_CPU_THREADS);
  EXPECT_GT(busy.queue().expected_start_time().seconds(), idle.queue().expected_start_time().seconds());
  EXPECT_EQ(CountJobs(), 1u);
  // Without a model that a worker has there is nothing to place.
  v1::EstimateFineTuneJobRequest bare;
  *bare.mutable_model_shape() = TinyShape();
  v1::EstimateFineTuneJobResponse by_shape;
  ASSERT_TRUE(Call(*stubs_->jobs, &Jobs::EstimateFineTuneJob, bare, &by_shape).ok());
  EXPECT_FALSE(by_shape.has_queue());
}

class QuotaControlTest : public ControlTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = ControlTest::Options();
    options.quotas = {"ants:jobs=1"};
    return options;
  }
};

// The quota is of the project that is asked about, not of who asks.
TEST_F(QuotaControlTest, AnEstimateIsForItsProject) {
  v1::CreateFineTuneJobRequest ants = GoodRequest();
  ants.set_project("ants");
  MustCreate(ants);
  agent_->Validate();
  const v1::StartAttempt start = agent_->AwaitStart();
  v1::SyncResponse response;
  ASSERT_TRUE(agent_->Sync({Status(start, v1::ATTEMPT_PHASE_RUNNING)}, &response).ok());
  v1::EstimateFineTuneJobRequest request;
  *request.mutable_spec() = ants.spec();
  v1::EstimateFineTuneJobResponse answer;
  ASSERT_TRUE(Call(*stubs_->jobs, &Jobs::EstimateFineTuneJob, request, &answer).ok());
  EXPECT_EQ(answer.queue().reason(), v1::WAITING_FOR_CPU_THREADS);
  request.set_project("ants");
  ASSERT_TRUE(Call(*stubs_->jobs, &Jobs::EstimateFineTuneJob, request, &answer).ok());
  EXPECT_EQ(answer.queue().reason(), v1::WAITING_FOR_QUOTA) << answer.queue().reason_detail();
  EXPECT_TRUE(answer.queue().has_expected_start_time());
  request.set_project("no such/name");
  EXPECT_EQ(Call(*stubs_->jobs, &Jobs::EstimateFineTuneJob, request, &answer).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ControlTest, ADrainMovesWhatRunsAndAnAgentSaysThatItLeaves) {
  v1::Job job;
  const v1::StartAttempt start = StartTraining(&job);
  v1::DrainWorkerRequest drain;
  drain.set_id("worker-1");
  v1::Worker worker;
  ASSERT_TRUE(Call(*stubs_->admin, &v1::WorkerAdminService::Stub::DrainWorker, drain, &worker).ok());
  EXPECT_EQ(Get(job.id()).state(), v1::PAUSING);
  EXPECT_EQ(Get(job.id()).pause_cause(), v1::PAUSE_CAUSE_DRAIN);
  EXPECT_EQ(agent_->AwaitStop(Status(start, v1::ATTEMPT_PHASE_RUNNING)).mode(), v1::STOP_MODE_CHECKPOINT);
  agent_->End(Checkpointed(start));
  EXPECT_EQ(Get(job.id()).state(), v1::QUEUED);
  EXPECT_EQ(Get(job.id()).reason(), v1::NO_WORKER);

  v1::OpenSessionRequest leaving = FakeAgent(&*stubs_, "worker-2").Hello(int64_t{8} << 30);
  leaving.set_leaving(true);
  v1::OpenSessionResponse opened;
  ASSERT_TRUE(Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, leaving, &opened).ok());
  v1::ListWorkersResponse list;
  ASSERT_TRUE(Call(*stubs_->admin, &v1::WorkerAdminService::Stub::ListWorkers, v1::ListWorkersRequest(), &list).ok());
  ASSERT_EQ(list.workers_size(), 2);
  EXPECT_TRUE(list.workers(1).leaving());
  EXPECT_FALSE(list.workers(1).draining());
  EXPECT_EQ(Get(job.id()).state(), v1::QUEUED) << "a worker that shuts down gets nothing";
}

class QuotaTest : public ControlTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = RpcTest::Options();
    options.quotas = {"default:jobs=1,ram=6GiB"};
    return options;
  }
};

TEST_F(QuotaTest, AFlagLimitsAProject) {
  v1::Job running;
  v1::CreateFineTuneJobRequest small = GoodRequest();
  small.mutable_spec()->mutable_resources()->set_cpu_threads(1);
  running = MustCreate(small);
  agent_->Validate();
  const v1::StartAttempt start = agent_->AwaitStart();
  v1::SyncResponse response;
  ASSERT_TRUE(agent_->Sync({Status(start, v1::ATTEMPT_PHASE_RUNNING)}, &response).ok());
  const v1::Job waiting = MustCreate(small);
  agent_->Validate();
  const v1::ExplainFineTuneJobResponse answer = Explain(waiting.id());
  EXPECT_EQ(answer.job().reason(), v1::WAITING_FOR_QUOTA) << answer.summary();
  EXPECT_EQ(answer.quota().running_jobs(), 1);
  EXPECT_EQ(answer.quota().host_bytes(), int64_t{6} << 30);
  EXPECT_GT(answer.job().expected_start_time().seconds(), waiting.create_time().seconds()) << "when the other ends";
}

TEST(ServerOptionsTest, ABadQuotaIsOneLine) {
  TempDir dir;
  const RealClock clock;
  ServerOptions options;
  options.state_dir = dir.path();
  options.listen = "127.0.0.1:0";
  options.http_listen = "";
  options.quotas = {"team:gpus=1"};
  const auto server = Server::Start(options, &clock);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(server.status().message()).find("--quota"), std::string::npos);
}

}  // namespace
}  // namespace longhaul::server
