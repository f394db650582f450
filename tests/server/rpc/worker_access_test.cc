// A worker writes its own attempts and no others: its session is bound to its caller, its id to its credentials.
#include "base/error.h"
#include "server/rpc/session_seal.h"
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

TEST(SessionSealTest, OpensForItsCallerAlone) {
  const SessionSeal seal;
  Caller red;
  red.name = "token:red";
  Caller blue;
  blue.name = "token:blue";
  const std::string sealed = seal.Seal("s-1", red);
  ASSERT_TRUE(seal.Open(sealed, red).ok());
  EXPECT_EQ(*seal.Open(sealed, red), "s-1");
  red.token_id = "another token of that name";
  EXPECT_TRUE(seal.Open(sealed, red).ok());
  EXPECT_EQ(ErrorReason(seal.Open(sealed, blue).status()), "SESSION_CLOSED");
  Caller bound = red;
  bound.worker_id = "gpu-1";
  EXPECT_FALSE(seal.Open(sealed, bound).ok());
  for (const std::string& forged : {std::string(), std::string("s-1"), std::string("s-1."), sealed + "0",
                                    sealed.substr(0, sealed.size() - 1), "s-2" + sealed.substr(3), "." + sealed}) {
    EXPECT_FALSE(seal.Open(forged, red).ok()) << forged;
  }
  EXPECT_FALSE(SessionSeal().Open(sealed, red).ok()) << "of another process";
}

class WorkerAccessTest : public SecureRpcTest {
 protected:
  void SetUp() override {
    SecureRpcTest::SetUp();
    admin_.emplace(As(MakeTokenOf("ops", "admin", "*")));
    red_.emplace(As(MakeTokenOf("red", "worker", "*")));
    blue_.emplace(As(MakeTokenOf("blue", "worker", "*")));
    agent_.emplace(&*red_);
    ASSERT_TRUE(agent_->Open().ok());
    ASSERT_TRUE(UploadAs(*admin_, kData).ok());
    v1::Job job;
    ASSERT_TRUE(Call(*admin_->jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, RequestFor(kData), &job).ok());
    start_ = agent_->AwaitStart();
  }
  void TearDown() override {
    for (auto* stubs : {&admin_, &red_, &blue_}) stubs->reset();
    SecureRpcTest::TearDown();
  }

  // What each method of a session answers to this caller for this session: the reason.
  std::set<std::string> ReasonsFor(const Stubs& stubs, const std::string& session_id) {
    using Stub = v1::WorkerService::Stub;
    std::set<std::string> reasons;
    v1::SyncRequest sync;
    sync.set_session_id(session_id);
    sync.set_sync_number(1'000);
    v1::AttemptStatus* ended = sync.add_attempts();
    *ended->mutable_key() = start_.key();
    ended->set_phase(v1::ATTEMPT_PHASE_ENDED);
    ended->mutable_exit()->set_reason(v1::TRAINER_EXIT_FAILED);
    ended->mutable_exit()->set_failure(v1::INVALID_DATASET);
    v1::SyncResponse synced;
    reasons.insert(DetailsOf(Call(*stubs.workers, &Stub::Sync, sync, &synced)).reason);
    v1::CommitCheckpointRequest checkpoint;
    checkpoint.set_session_id(session_id);
    *checkpoint.mutable_key() = start_.key();
    checkpoint.mutable_checkpoint()->set_step(1);
    v1::BlobFile* file = checkpoint.mutable_checkpoint()->add_files();
    file->set_path("state.json");
    file->set_sha256(Sha256Hex(kData));
    file->set_size_bytes(sizeof(kData) - 1);
    v1::CommitResponse committed;
    reasons.insert(DetailsOf(Call(*stubs.workers, &Stub::CommitCheckpoint, checkpoint, &committed)).reason);
    v1::CommitArtifactRequest artifact;
    artifact.set_session_id(session_id);
    *artifact.mutable_key() = start_.key();
    *artifact.mutable_artifact()->add_files() = *file;
    reasons.insert(DetailsOf(Call(*stubs.workers, &Stub::CommitArtifact, artifact, &committed)).reason);
    v1::AppendLogRequest log;
    log.set_session_id(session_id);
    *log.mutable_key() = start_.key();
    log.set_data("not mine");
    v1::AppendLogResponse appended;
    reasons.insert(DetailsOf(Call(*stubs.workers, &Stub::AppendLog, log, &appended)).reason);
    return reasons;
  }
  v1::JobState State() {
    v1::GetFineTuneJobRequest get;
    get.set_id(start_.key().job_id());
    v1::Job job;
    EXPECT_TRUE(Call(*admin_->jobs, &v1::FineTuneService::Stub::GetFineTuneJob, get, &job).ok());
    return job.state();
  }

  static constexpr char kData[] = "{\"text\":\"hello\"}\n";
  std::optional<Stubs> admin_;
  std::optional<Stubs> red_;
  std::optional<Stubs> blue_;
  std::optional<FakeAgent> agent_;
  v1::StartAttempt start_;
};

TEST_F(WorkerAccessTest, ASessionIsItsCallersAlone) {
  EXPECT_EQ(ReasonsFor(*blue_, agent_->session_id()), (std::set<std::string>{"SESSION_CLOSED"}));
  EXPECT_EQ(State(), v1::VALIDATING) << "nothing was reported";
}

TEST_F(WorkerAccessTest, AnotherWorkersAttemptIsFenced) {
  FakeAgent other(&*blue_, "worker-2");
  ASSERT_TRUE(other.Open().ok());
  // Sync takes the report for that of an attempt that it was never given, and answers: the folder may go.
  EXPECT_EQ(ReasonsFor(*blue_, other.session_id()), (std::set<std::string>{"", "LEASE_FENCED"}));
  EXPECT_EQ(State(), v1::VALIDATING);
}

TEST_F(WorkerAccessTest, AnotherCallerCannotBeTheWorker) {
  FakeAgent thief(&*blue_, "worker-1");
  const grpc::Status stolen = thief.Open();
  EXPECT_EQ(stolen.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(DetailsOf(stolen).reason, "WORKER_OWNED");
  v1::SyncResponse response;
  EXPECT_TRUE(agent_->Sync({}, &response).ok()) << "the owner's session goes on";
}

TEST_F(WorkerAccessTest, ATokenOfTheSameNameTakesOver) {
  Stubs renewed = As(MakeTokenOf("red", "worker", "*"));
  FakeAgent agent(&renewed, "worker-1");
  EXPECT_TRUE(agent.Open().ok());
}

TEST_F(WorkerAccessTest, ACertificateIsOneWorker) {
  Stubs certificate = AsCertificate(authority_.IssueClient("gpu", "gpu-1"));
  FakeAgent right(&certificate, "gpu-1");
  EXPECT_TRUE(right.Open().ok());
  FakeAgent wrong(&certificate, "gpu-2");
  const grpc::Status status = wrong.Open();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(DetailsOf(status).reason, "OTHER_WORKER");
  EXPECT_EQ(DetailsOf(List(certificate)).reason, "SCOPE_MISSING") << "it is a worker's, not a person's";
}

TEST_F(WorkerAccessTest, ATokenMadeForAWorkerIsThatWorkerAndTakesItOver) {
  Stubs bound = As(MakeTokenOf("gpu", "worker", "*", "worker-1"));
  EXPECT_EQ(DetailsOf(FakeAgent(&bound, "worker-2").Open()).reason, "OTHER_WORKER");
  FakeAgent agent(&bound, "worker-1");
  EXPECT_TRUE(agent.Open().ok());
  EXPECT_EQ(DetailsOf(agent_->Open()).reason, "WORKER_OWNED");
}

}  // namespace
}  // namespace longhaul::server
