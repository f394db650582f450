// What is written of calls that change something, what one caller may take, and streams whose token ends.
#include <chrono>
#include <thread>

#include "base/limits.h"
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

constexpr char kData[] = "{\"text\":\"hello\"}\n";

class AuditLogTest : public SecureRpcTest {};

TEST_F(AuditLogTest, HasWhoWhatWhenAndTheOutcome) {
  const Stubs ops = As(MakeTokenOf("ops", "admin", "*"));
  const Stubs ci = As(MakeTokenOf("ci", "submitter", "red"));
  const Stubs viewer = As(MakeTokenOf("eve", "viewer", "red"));
  Stubs fleet = As(MakeTokenOf("fleet", "worker", "*"));
  FakeAgent agent(&fleet);
  ASSERT_TRUE(agent.Open().ok());
  const size_t before = AuditLog().size();

  ASSERT_TRUE(UploadAs(ci, kData).ok());
  v1::Job job;
  v1::CreateFineTuneJobRequest create = RequestFor(kData);
  create.set_validate_only(true);
  ASSERT_TRUE(Call(*ci.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, create, &job).ok());
  create.set_validate_only(false);
  ASSERT_TRUE(Call(*ci.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, create, &job).ok());
  create.mutable_spec()->set_model("nothing");
  v1::Job none;
  ASSERT_FALSE(Call(*ci.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, create, &none).ok());
  v1::CancelFineTuneJobRequest cancel;
  cancel.set_id(job.id());
  ASSERT_FALSE(Call(*viewer.jobs, &v1::FineTuneService::Stub::CancelFineTuneJob, cancel, &none).ok());
  ASSERT_TRUE(Call(*ops.jobs, &v1::FineTuneService::Stub::CancelFineTuneJob, cancel, &none).ok());
  v1::DrainWorkerRequest drain;
  drain.set_id("worker-1");
  v1::Worker worker;
  ASSERT_TRUE(Call(*ops.admin, &v1::WorkerAdminService::Stub::DrainWorker, drain, &worker).ok());
  ASSERT_TRUE(List(ci).ok());
  ASSERT_FALSE(List(With(ClientOptions())).ok());

  std::vector<std::string> lines;
  const std::vector<AuditRecord> log = AuditLog();
  for (size_t i = before; i < log.size(); ++i) {
    const AuditRecord& record = log[i];
    lines.push_back(record.caller + " " + record.method + " " + record.project + " " + record.target + " " +
                    record.code + " " + record.reason);
    EXPECT_EQ(record.host, "127.0.0.1");
    EXPECT_LT(std::abs(record.wall_micros - clock_.WallMicros()), int64_t{60} * 1'000'000);
  }
  const std::string service = "FineTuneService/";
  EXPECT_EQ(lines,
            (std::vector<std::string>{"token:ci BlobService/Write red " + Sha256Hex(kData) + " OK ",
                                      "token:ci " + service + "CreateFineTuneJob red " + job.id() + " OK ",
                                      "token:ci " + service + "CreateFineTuneJob red  INVALID_ARGUMENT MODEL_UNKNOWN",
                                      "token:eve " + service + "CancelFineTuneJob red  PERMISSION_DENIED SCOPE_MISSING",
                                      "token:ops " + service + "CancelFineTuneJob red " + job.id() + " OK ",
                                      "token:ops WorkerAdminService/DrainWorker default worker-1 OK "}));
}

TEST_F(AuditLogTest, HasTheWorkersCommits) {
  Stubs fleet = As(MakeTokenOf("fleet", "worker", "*"));
  FakeAgent agent(&fleet);
  ASSERT_TRUE(agent.Open().ok());
  v1::CommitCheckpointRequest request;
  request.set_session_id(agent.session_id());
  request.mutable_key()->set_job_id("ftjob-nobody");
  request.mutable_checkpoint()->set_step(1);
  v1::CommitResponse response;
  ASSERT_FALSE(Call(*fleet.workers, &v1::WorkerService::Stub::CommitCheckpoint, request, &response).ok());
  const std::vector<AuditRecord> log = AuditLog();
  ASSERT_GE(log.size(), 2u);
  const AuditRecord& opened = log[log.size() - 2];
  EXPECT_EQ(opened.method, "WorkerService/OpenSession");
  EXPECT_EQ(opened.target, "worker-1");
  EXPECT_EQ(opened.code, "OK");
  EXPECT_EQ(log.back().method, "WorkerService/CommitCheckpoint");
  EXPECT_EQ(log.back().target, "ftjob-nobody");
  EXPECT_NE(log.back().code, "OK");
}

// A job that writes a checkpoint every five seconds would fill it: they are events of the job.
TEST_F(AuditLogTest, HasOneRowForTheCheckpointsOfAnAttempt) {
  const Stubs ops = As(MakeTokenOf("ops", "admin", "*"));
  Stubs fleet = As(MakeTokenOf("fleet", "worker", "*"));
  FakeAgent agent(&fleet);
  ASSERT_TRUE(agent.Open().ok());
  ASSERT_TRUE(UploadAs(ops, kData).ok());
  v1::Job job;
  ASSERT_TRUE(Call(*ops.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, RequestFor(kData), &job).ok());
  agent.Validate();
  const v1::StartAttempt start = agent.AwaitStart();
  const size_t before = AuditLog().size();
  const auto commit = [&](int64_t step, bool upload) {
    const std::string content = "checkpoint of step " + std::to_string(step);
    if (upload) {
      EXPECT_TRUE(UploadAs(fleet, content).ok());
    }
    v1::CommitCheckpointRequest request;
    request.set_session_id(agent.session_id());
    *request.mutable_key() = start.key();
    request.mutable_checkpoint()->set_step(step);
    v1::BlobFile* file = request.mutable_checkpoint()->add_files();
    file->set_path("state.json");
    file->set_sha256(Sha256Hex(content));
    file->set_size_bytes(static_cast<int64_t>(content.size()));
    v1::CommitResponse response;
    return Call(*fleet.workers, &v1::WorkerService::Stub::CommitCheckpoint, request, &response);
  };
  for (const int64_t step : {20, 40, 60}) EXPECT_TRUE(commit(step, true).ok()) << step;
  EXPECT_EQ(DetailsOf(commit(80, false)).reason, "BLOB_MISSING");
  std::vector<std::string> rows;
  const std::vector<AuditRecord> log = AuditLog();
  for (size_t i = before; i < log.size(); ++i) rows.push_back(log[i].method + " " + log[i].target + " " + log[i].code);
  EXPECT_EQ(rows, (std::vector<std::string>{"WorkerService/CommitCheckpoint " + job.id() + " OK",
                                            "WorkerService/CommitCheckpoint " + job.id() + " FAILED_PRECONDITION"}));
}

TEST_F(AuditLogTest, NobodyFillsItWithoutCredentials) {
  const Stubs nobody = With(ClientOptions());
  const Stubs wrong = As(MakeToken().text);
  const size_t before = AuditLog().size();
  for (const Stubs* stubs : {&nobody, &wrong}) {
    v1::Job job;
    for (int i = 0; i < 20; ++i) {
      ASSERT_FALSE(Call(*stubs->jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, RequestFor(kData), &job).ok());
    }
  }
  EXPECT_EQ(AuditLog().size(), before);
}

TEST_F(AuditLogTest, RefusedCallsFillItNoFurther) {
  const Stubs viewer = As(MakeTokenOf("eve", "viewer", "red"));
  const Stubs submitter = As(MakeTokenOf("ci", "submitter", "red"));
  const size_t before = AuditLog().size();
  v1::CancelFineTuneJobRequest cancel;
  cancel.set_id("ftjob-nobody");
  v1::Job none;
  for (int i = 0; i < 3 * limits::kMaxRefusedRowBurst; ++i) {
    ASSERT_EQ(Call(*viewer.jobs, &v1::FineTuneService::Stub::CancelFineTuneJob, cancel, &none).error_code(),
              grpc::StatusCode::PERMISSION_DENIED);
    ASSERT_EQ(Call(*submitter.jobs, &v1::FineTuneService::Stub::CancelFineTuneJob, cancel, &none).error_code(),
              grpc::StatusCode::NOT_FOUND);
  }
  const size_t rows = AuditLog().size() - before;
  EXPECT_GE(rows, size_t{2} * limits::kMaxRefusedRowBurst);
  EXPECT_LE(rows, size_t{2} * limits::kMaxRefusedRowBurst + 10) << "one a minute more";
  // What is done is written whatever was refused before.
  ASSERT_TRUE(UploadAs(submitter, kData).ok());
  EXPECT_EQ(AuditLog().size() - before, rows + 1);
  EXPECT_EQ(AuditLog().back().code, "OK");
}

class LimitsTest : public SecureRpcTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = SecureRpcTest::Options();
    options.calls_per_second = 1;
    options.call_burst = 20;
    options.streams_per_caller = 2;
    options.heartbeat_ms = 20;
    return options;
  }
  // Calls until it is refused: a machine that stood still for a second has a call to give again.
  template <typename Ask>
  static grpc::Status UntilRefused(Ask ask) {
    grpc::Status status;
    for (int i = 0; i < 1'000 && status.ok(); ++i) status = ask();
    return status;
  }
};

TEST_F(LimitsTest, ACallerThatCallsTooOftenIsRefusedAndNobodyElse) {
  const Stubs busy = As(MakeTokenOf("busy", "submitter", "red"));
  const Stubs calm = As(MakeTokenOf("calm", "submitter", "red"));
  const grpc::Status refused = UntilRefused([&] { return List(busy); });
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused).reason, "RATE_LIMITED");
  EXPECT_TRUE(List(calm).ok());
  size_t before = 0;
  const grpc::Status upload = UntilRefused([&] {
    before = AuditLog().size();
    return UploadAs(busy, kData);
  });
  EXPECT_EQ(DetailsOf(upload).reason, "RATE_LIMITED");
  EXPECT_EQ(AuditLog().size(), before) << "a refused flood must not become a flood of rows";
}

TEST_F(LimitsTest, WorkersThatShareATokenAndAHostHaveCallsOfTheirOwn) {
  Stubs fleet = As(MakeTokenOf("fleet", "worker", "*"));
  FakeAgent busy(&fleet, "worker-1");
  FakeAgent calm(&fleet, "worker-2");
  ASSERT_TRUE(busy.Open().ok());
  ASSERT_TRUE(calm.Open().ok());
  const auto find_missing = [&fleet](const std::string& session_id) {
    grpc::ClientContext context;
    if (!session_id.empty()) context.AddMetadata(kSessionMetadata, session_id);
    v1::FindMissingResponse response;
    return fleet.blobs->FindMissing(&context, v1::FindMissingRequest(), &response);
  };
  EXPECT_EQ(DetailsOf(UntilRefused([&] { return find_missing(busy.session_id()); })).reason, "RATE_LIMITED");
  v1::SyncResponse response;
  EXPECT_EQ(DetailsOf(UntilRefused([&] { return busy.Sync({}, &response); })).reason, "RATE_LIMITED");
  const grpc::Status synced = calm.Sync({}, &response);
  EXPECT_TRUE(synced.ok()) << synced.error_message();
  // A session that nobody has opened makes no worker: all such have the limits of the token on its host.
  int made_up = 0;
  const grpc::Status refused = UntilRefused([&] { return find_missing("made up " + std::to_string(++made_up)); });
  EXPECT_EQ(DetailsOf(refused).reason, "RATE_LIMITED");
  EXPECT_LT(made_up, 100);
  EXPECT_EQ(DetailsOf(UntilRefused([&] { return find_missing(""); })).reason, "RATE_LIMITED");
  EXPECT_TRUE(find_missing(calm.session_id()).ok());
}

TEST_F(LimitsTest, ACallerHasSoManyStreamsAndNobodyElseFewer) {
  const std::string token = MakeTokenOf("ops", "admin", "*");
  const Stubs ops = As(token);
  Stubs fleet = As(MakeTokenOf("fleet", "worker", "*"));
  FakeAgent agent(&fleet);
  ASSERT_TRUE(agent.Open().ok());
  ASSERT_TRUE(UploadAs(ops, kData).ok());
  v1::Job job;
  ASSERT_TRUE(Call(*ops.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, RequestFor(kData), &job).ok());
  v1::WatchFineTuneJobRequest request;
  request.set_id(job.id());
  v1::WatchFineTuneJobResponse message;
  grpc::ClientContext contexts[3];
  std::vector<std::unique_ptr<grpc::ClientReader<v1::WatchFineTuneJobResponse>>> open;
  for (int i = 0; i < 2; ++i) {
    open.push_back(ops.jobs->WatchFineTuneJob(&contexts[i], request));
    ASSERT_TRUE(open.back()->Read(&message));
  }
  const auto third = ops.jobs->WatchFineTuneJob(&contexts[2], request);
  EXPECT_FALSE(third->Read(&message));
  const grpc::Status refused = third->Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused).reason, "TOO_MANY_STREAMS");
  {
    const Stubs other = As(MakeTokenOf("other", "admin", "*"));
    grpc::ClientContext context;
    const auto stream = other.jobs->WatchFineTuneJob(&context, request);
    EXPECT_TRUE(stream->Read(&message));
    context.TryCancel();
    stream->Finish();
  }

  // A token that ends takes its streams along.
  Revoke(token);
  for (const auto& stream : open) {
    while (stream->Read(&message)) {
    }
    const grpc::Status ended = stream->Finish();
    EXPECT_EQ(ended.error_code(), grpc::StatusCode::UNAUTHENTICATED) << ended.error_message();
    EXPECT_EQ(DetailsOf(ended).reason, "TOKEN_INVALID");
  }
}

class StallTest : public SecureRpcTest {
 protected:
  ServerOptions Options() const override {
    ServerOptions options = SecureRpcTest::Options();
    options.transfers_per_caller = 1;
    options.transfer_stall_ms = kStallMs;
    return options;
  }
  static constexpr int64_t kStallMs = 15'000;  // longer than a busy machine keeps a client from its next call
  // Asks now and then, within the rate of its calls.
  static grpc::Status UploadOnceThereIsRoom(const Stubs& caller) {
    while (true) {
      grpc::Status status = UploadAs(caller, "other bytes");
      if (DetailsOf(status).reason != "TOO_MANY_TRANSFERS") return status;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
};

TEST_F(StallTest, ATransferThatStandsStillIsEndedAndItsPlaceGivenBack) {
  const Stubs ci = As(MakeTokenOf("ci", "submitter", "red"));
  grpc::ClientContext context;
  v1::WriteBlobResponse response;
  const auto writer = ci.blobs->Write(&context, &response);
  v1::WriteBlobRequest first;
  first.mutable_blob()->set_sha256(Sha256Hex(kData));
  first.mutable_blob()->set_size_bytes(sizeof(kData) - 1);
  first.set_data("{");
  ASSERT_TRUE(writer->Write(first));
  v1::QueryWriteStatusRequest query;
  *query.mutable_blob() = first.blob();
  v1::QueryWriteStatusResponse there;
  while (there.committed_bytes() == 0) {
    ASSERT_TRUE(Call(*ci.blobs, &v1::BlobService::Stub::QueryWriteStatus, query, &there).ok());
  }
  EXPECT_EQ(DetailsOf(UploadAs(ci, "other bytes")).reason, "TOO_MANY_TRANSFERS");
  EXPECT_TRUE(UploadAs(As(MakeTokenOf("other", "submitter", "blue")), "other bytes").ok());
  clock_.Pass(kStallMs);
  EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // Its handler may still be on its way out.
  const grpc::Status again = UploadOnceThereIsRoom(ci);
  EXPECT_TRUE(again.ok()) << again.error_message();
}

TEST_F(StallTest, AReaderThatNeverReadsIsEndedToo) {
  const Stubs ci = As(MakeTokenOf("ci", "submitter", "red"));
  const std::string large(16 << 20, 'x');  // more than any window lets through unread
  ASSERT_TRUE(UploadAs(ci, large).ok());
  grpc::ClientContext context;
  v1::ReadBlobRequest request;
  request.mutable_blob()->set_sha256(Sha256Hex(large));
  const auto reader = ci.blobs->Read(&context, request);
  v1::ReadBlobResponse response;
  ASSERT_TRUE(reader->Read(&response));  // it has begun, and holds the only place
  EXPECT_EQ(DetailsOf(UploadAs(ci, "other bytes")).reason, "TOO_MANY_TRANSFERS");
  clock_.Pass(kStallMs);
  const grpc::Status again = UploadOnceThereIsRoom(ci);
  EXPECT_TRUE(again.ok()) << again.error_message();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

}  // namespace
}  // namespace longhaul::server
