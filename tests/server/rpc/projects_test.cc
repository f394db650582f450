// What one project has does not exist for another, whichever method asks.
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

constexpr char kUploaded[] = "{\"text\":\"of red\"}\n";

class ProjectsTest : public SecureRpcTest {
 protected:
  void SetUp() override {
    SecureRpcTest::SetUp();
    red_.emplace(As(MakeTokenOf("red", "submitter", "red")));
    blue_.emplace(As(MakeTokenOf("blue", "submitter", "blue")));
    admin_.emplace(As(MakeTokenOf("ops", "admin", "*")));
    fleet_.emplace(As(MakeTokenOf("fleet", "worker", "*")));
    agent_.emplace(&*fleet_);
    ASSERT_TRUE(agent_->Open().ok());
    ASSERT_TRUE(UploadAs(*red_, kUploaded).ok());
    job_ = CreateAs(*red_, RequestFor(kUploaded));
    ASSERT_NE(job_.id(), "");
  }
  void TearDown() override {
    for (auto* stubs : {&red_, &blue_, &admin_, &fleet_}) stubs->reset();
    SecureRpcTest::TearDown();
  }

  v1::Job CreateAs(const Stubs& stubs, const v1::CreateFineTuneJobRequest& request) {
    v1::Job job;
    const grpc::Status status = Call(*stubs.jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  static v1::BlobName NameOf(const std::string& bytes) {
    v1::BlobName name;
    name.set_sha256(Sha256Hex(bytes));
    name.set_size_bytes(static_cast<int64_t>(bytes.size()));
    return name;
  }
  bool Missing(const Stubs& stubs, const std::string& bytes) {
    v1::FindMissingRequest request;
    *request.add_blobs() = NameOf(bytes);
    v1::FindMissingResponse response;
    EXPECT_TRUE(Call(*stubs.blobs, &v1::BlobService::Stub::FindMissing, request, &response).ok());
    return response.missing_size() == 1;
  }
  grpc::Status ReadBlob(const Stubs& stubs, const std::string& bytes, std::string* out) {
    grpc::ClientContext context;
    v1::ReadBlobRequest request;
    *request.mutable_blob() = NameOf(bytes);
    const auto reader = stubs.blobs->Read(&context, request);
    v1::ReadBlobResponse response;
    while (reader->Read(&response)) *out += response.data();
    return reader->Finish();
  }
  // The messages of one upload, as they are.
  grpc::Status Write(const Stubs& stubs, const std::vector<v1::WriteBlobRequest>& messages,
                     v1::WriteBlobResponse* response) {
    grpc::ClientContext context;
    const auto writer = stubs.blobs->Write(&context, response);
    for (const v1::WriteBlobRequest& message : messages) writer->Write(message);
    writer->WritesDone();
    return writer->Finish();
  }
  static v1::WriteBlobRequest Chunk(const std::string& of, int64_t offset, const std::string& data, bool finish) {
    v1::WriteBlobRequest message;
    *message.mutable_blob() = NameOf(of);
    message.set_offset(offset);
    message.set_data(data);
    message.set_finish(finish);
    return message;
  }

  // What each method that names a job answers for this id.
  template <typename Request, typename Response>
  grpc::Status Ask(const Stubs& stubs,
                   grpc::Status (v1::FineTuneService::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                   const std::string& id) {
    Request request;
    request.set_id(id);
    Response response;
    return Call(*stubs.jobs, method, request, &response);
  }
  std::map<std::string, grpc::Status> AskAll(const Stubs& stubs, const std::string& id) {
    using Stub = v1::FineTuneService::Stub;
    std::map<std::string, grpc::Status> answers;
    answers["Get"] = Ask<v1::GetFineTuneJobRequest, v1::Job>(stubs, &Stub::GetFineTuneJob, id);
    answers["Cancel"] = Ask<v1::CancelFineTuneJobRequest, v1::Job>(stubs, &Stub::CancelFineTuneJob, id);
    answers["Pause"] = Ask<v1::PauseFineTuneJobRequest, v1::Job>(stubs, &Stub::PauseFineTuneJob, id);
    answers["Resume"] = Ask<v1::ResumeFineTuneJobRequest, v1::Job>(stubs, &Stub::ResumeFineTuneJob, id);
    answers["Delete"] = Ask<v1::DeleteFineTuneJobRequest, google::protobuf::Empty>(stubs, &Stub::DeleteFineTuneJob, id);
    answers["ListAttempts"] = Ask<v1::ListAttemptsRequest, v1::ListAttemptsResponse>(stubs, &Stub::ListAttempts, id);
    answers["ListCheckpoints"] =
        Ask<v1::ListCheckpointsRequest, v1::ListCheckpointsResponse>(stubs, &Stub::ListCheckpoints, id);
    answers["ListMetrics"] = Ask<v1::ListMetricsRequest, v1::ListMetricsResponse>(stubs, &Stub::ListMetrics, id);
    {
      grpc::ClientContext context;
      v1::WatchFineTuneJobRequest request;
      request.set_id(id);
      const auto reader = stubs.jobs->WatchFineTuneJob(&context, request);
      v1::WatchFineTuneJobResponse response;
      if (reader->Read(&response)) context.TryCancel();
      answers["Watch"] = reader->Finish();
    }
    {
      grpc::ClientContext context;
      v1::ReadLogsRequest request;
      request.set_id(id);
      const auto reader = stubs.jobs->ReadLogs(&context, request);
      v1::ReadLogsResponse response;
      while (reader->Read(&response)) {
      }
      answers["ReadLogs"] = reader->Finish();
    }
    return answers;
  }

  std::optional<Stubs> red_;
  std::optional<Stubs> blue_;
  std::optional<Stubs> admin_;
  std::optional<Stubs> fleet_;
  std::optional<FakeAgent> agent_;
  v1::Job job_;
};

TEST_F(ProjectsTest, AnotherProjectsJobIsAnAbsentJob) {
  const std::string absent = "ftjob-" + std::string(job_.id().size() - 6, 'a');
  const auto of_absent = AskAll(*blue_, absent);
  for (auto& [method, status] : AskAll(*blue_, job_.id())) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND) << method;
    EXPECT_EQ(DetailsOf(status).reason, "JOB_NOT_FOUND") << method;
    // Word for word, but for the id.
    std::string message = status.error_message();
    message.replace(message.find(job_.id()), absent.size(), absent);
    EXPECT_EQ(message, of_absent.at(method).error_message()) << method;
  }
  v1::Job seen;
  v1::GetFineTuneJobRequest get;
  get.set_id(job_.id());
  EXPECT_TRUE(Call(*red_->jobs, &v1::FineTuneService::Stub::GetFineTuneJob, get, &seen).ok());
  EXPECT_EQ(seen.state(), v1::VALIDATING) << "nothing of it was done";
  EXPECT_TRUE(Call(*admin_->jobs, &v1::FineTuneService::Stub::GetFineTuneJob, get, &seen).ok());
}

TEST_F(ProjectsTest, ListsShowTheCallersProject) {
  const auto list = [&](const Stubs& stubs, const std::string& project, int* count) {
    v1::ListFineTuneJobsRequest request;
    request.set_project(project);
    v1::ListFineTuneJobsResponse response;
    const grpc::Status status = Call(*stubs.jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, request, &response);
    *count = response.jobs_size();
    return DetailsOf(status).reason;
  };
  int count = -1;
  EXPECT_EQ(list(*red_, "", &count), "");
  EXPECT_EQ(count, 1);
  EXPECT_EQ(list(*blue_, "", &count), "");
  EXPECT_EQ(count, 0);
  EXPECT_EQ(list(*blue_, "red", &count), "OTHER_PROJECT");
  EXPECT_EQ(list(*blue_, "-", &count), "OTHER_PROJECT");
  EXPECT_EQ(list(*admin_, "red", &count), "");
  EXPECT_EQ(count, 1);
  EXPECT_EQ(list(*admin_, "", &count), "");
  EXPECT_EQ(count, 0) << "an administrator's own project is \"default\"";
  EXPECT_EQ(list(*admin_, "-", &count), "");
  EXPECT_EQ(count, 1);
}

TEST_F(ProjectsTest, AnIdIsFoundWhereverTheCallerMayLook) {
  const auto find = [&](const Stubs& stubs, const std::string& project) {
    v1::ListFineTuneJobsRequest request;
    request.set_id_prefix(job_.id().substr(0, 12));
    request.set_project(project);
    v1::ListFineTuneJobsResponse response;
    EXPECT_TRUE(Call(*stubs.jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, request, &response).ok());
    return response.jobs_size();
  };
  EXPECT_EQ(find(*red_, ""), 1);
  EXPECT_EQ(find(*blue_, ""), 0);
  EXPECT_EQ(find(*admin_, ""), 1) << "it is of project red";
  EXPECT_EQ(find(*admin_, "blue"), 0);
}

TEST_F(ProjectsTest, NobodyCreatesInAnotherProject) {
  v1::CreateFineTuneJobRequest request = RequestFor(kUploaded);
  request.set_project("red");
  v1::Job job;
  const grpc::Status status = Call(*blue_->jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(DetailsOf(status).reason, "OTHER_PROJECT");
  EXPECT_EQ(CreateAs(*admin_, request).project(), "red");
  // Nor asks what would become of a job there.
  v1::EstimateFineTuneJobRequest estimate;
  *estimate.mutable_spec() = request.spec();
  estimate.set_project("red");
  v1::EstimateFineTuneJobResponse answer;
  EXPECT_EQ(DetailsOf(Call(*blue_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, estimate, &answer)).reason,
            "OTHER_PROJECT");
  EXPECT_TRUE(Call(*admin_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, estimate, &answer).ok());
}

TEST_F(ProjectsTest, RequestIdsAreTheProjectsOwn) {
  v1::CreateFineTuneJobRequest request = RequestFor(kUploaded);
  request.set_request_id("same");
  const std::string first = CreateAs(*red_, request).id();
  ASSERT_TRUE(UploadAs(*blue_, kUploaded).ok());
  const std::string second = CreateAs(*blue_, request).id();
  EXPECT_NE(first, second);
  EXPECT_EQ(CreateAs(*red_, request).id(), first);
}

TEST_F(ProjectsTest, KnowingAHashIsNotHavingTheBytes) {
  EXPECT_FALSE(Missing(*red_, kUploaded));
  EXPECT_TRUE(Missing(*blue_, kUploaded));
  std::string bytes;
  EXPECT_EQ(DetailsOf(ReadBlob(*blue_, kUploaded, &bytes)).reason, "BLOB_NOT_FOUND");
  EXPECT_EQ(bytes, "");
  EXPECT_TRUE(ReadBlob(*red_, kUploaded, &bytes).ok());
  EXPECT_EQ(bytes, kUploaded);

  v1::QueryWriteStatusRequest query;
  *query.mutable_blob() = NameOf(kUploaded);
  v1::QueryWriteStatusResponse there;
  ASSERT_TRUE(Call(*blue_->blobs, &v1::BlobService::Stub::QueryWriteStatus, query, &there).ok());
  EXPECT_EQ(there.committed_bytes(), 0);
  EXPECT_FALSE(there.complete());

  // Training on it would give it away, too.
  v1::Job job;
  const grpc::Status created =
      Call(*blue_->jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, RequestFor(kUploaded), &job);
  EXPECT_EQ(DetailsOf(created).reason, "DATASET_NOT_UPLOADED");
}

TEST_F(ProjectsTest, WhoHasTheBytesShowsThemAndNothingLess) {
  const std::string data = kUploaded;
  const std::string other(data.size(), 'x');
  v1::WriteBlobResponse response;
  EXPECT_EQ(DetailsOf(Write(*blue_, {Chunk(data, 0, "", true)}, &response)).reason, "BLOB_HASH_MISMATCH");
  EXPECT_EQ(DetailsOf(Write(*blue_, {Chunk(data, 0, other, true)}, &response)).reason, "BLOB_HASH_MISMATCH");
  EXPECT_EQ(DetailsOf(Write(*blue_, {Chunk(data, 0, data + "x", true)}, &response)).reason, "BLOB_HASH_MISMATCH");
  EXPECT_EQ(DetailsOf(Write(*blue_, {Chunk(data, 5, data.substr(5), true)}, &response)).reason, "BLOB_OFFSET");
  ASSERT_TRUE(Write(*blue_, {Chunk(data, 0, data.substr(0, 5), false)}, &response).ok()) << "it may end early";
  EXPECT_EQ(response.committed_bytes(), 0);
  EXPECT_TRUE(Missing(*blue_, kUploaded));
  ASSERT_TRUE(
      Write(*blue_, {Chunk(data, 0, data.substr(0, 5), false), Chunk(data, 5, data.substr(5), true)}, &response).ok());
  EXPECT_EQ(response.committed_bytes(), static_cast<int64_t>(data.size()));
  EXPECT_FALSE(Missing(*blue_, kUploaded));
  EXPECT_NE(CreateAs(*blue_, RequestFor(kUploaded)).id(), "");
  std::string bytes;
  EXPECT_TRUE(ReadBlob(*red_, kUploaded, &bytes).ok()) << "the blob itself is as it was";
  EXPECT_EQ(bytes, kUploaded);
}

TEST_F(ProjectsTest, UnfinishedUploadsAreTheProjectsOwn) {
  const std::string data = "{\"text\":\"a secret in two halves\"}\n";
  v1::WriteBlobResponse response;
  ASSERT_TRUE(Write(*red_, {Chunk(data, 0, data.substr(0, 20), false)}, &response).ok());
  EXPECT_EQ(response.committed_bytes(), 20);
  v1::QueryWriteStatusRequest query;
  *query.mutable_blob() = NameOf(data);
  v1::QueryWriteStatusResponse there;
  ASSERT_TRUE(Call(*blue_->blobs, &v1::BlobService::Stub::QueryWriteStatus, query, &there).ok());
  EXPECT_EQ(there.committed_bytes(), 0);
  EXPECT_EQ(DetailsOf(Write(*blue_, {Chunk(data, 20, data.substr(20), true)}, &response)).reason, "BLOB_OFFSET");
  ASSERT_TRUE(Write(*red_, {Chunk(data, 20, data.substr(20), true)}, &response).ok());
  EXPECT_TRUE(Missing(*blue_, data));
}

TEST_F(ProjectsTest, AnAdapterIsItsProjectsOwn) {
  agent_->Validate();
  const v1::StartAttempt start = agent_->AwaitStart();
  for (const v1::AttemptPhase phase : {v1::ATTEMPT_PHASE_RUNNING, v1::ATTEMPT_PHASE_FINALIZING}) {
    v1::AttemptStatus status;
    *status.mutable_key() = start.key();
    status.set_phase(phase);
    v1::SyncResponse synced;
    ASSERT_TRUE(agent_->Sync({status}, &synced).ok());
  }
  ASSERT_TRUE(UploadAs(*fleet_, "weights of red").ok());
  v1::CommitArtifactRequest artifact;
  artifact.set_session_id(agent_->session_id());
  *artifact.mutable_key() = start.key();
  v1::BlobFile* file = artifact.mutable_artifact()->add_files();
  file->set_path("adapter_model.safetensors");
  file->set_sha256(Sha256Hex("weights of red"));
  file->set_size_bytes(14);
  v1::CommitResponse committed;
  std::string bytes;
  EXPECT_FALSE(ReadBlob(*red_, "weights of red", &bytes).ok()) << "before it is the job's";
  const grpc::Status status = Call(*fleet_->workers, &v1::WorkerService::Stub::CommitArtifact, artifact, &committed);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(ReadBlob(*red_, "weights of red", &bytes).ok());
  EXPECT_EQ(bytes, "weights of red");
  EXPECT_FALSE(ReadBlob(*blue_, "weights of red", &bytes).ok());
}

TEST_F(ProjectsTest, WorkersShowOthersJobsWithoutTheirNames) {
  agent_->AwaitStart();  // the validation is placed
  const auto shown = [&](const Stubs& stubs) {
    v1::ListWorkersResponse list;
    EXPECT_TRUE(Call(*stubs.admin, &v1::WorkerAdminService::Stub::ListWorkers, v1::ListWorkersRequest(), &list).ok());
    v1::Worker worker;
    v1::GetWorkerRequest get;
    get.set_id("worker-1");
    EXPECT_TRUE(Call(*stubs.admin, &v1::WorkerAdminService::Stub::GetWorker, get, &worker).ok());
    EXPECT_EQ(list.workers(0).attempts(0).job_id(), worker.attempts(0).job_id());
    return worker.attempts_size() == 1 ? worker.attempts(0).job_id() : "?";
  };
  EXPECT_EQ(shown(*red_), job_.id());
  EXPECT_EQ(shown(*admin_), job_.id());
  EXPECT_EQ(shown(*blue_), "");
}

}  // namespace
}  // namespace longhaul::server
