// A whole scheduler in this process on a port of its own, and an agent that a test plays by hand.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/env.h"
#include "base/hash.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "longhaul/v1/blob_service.grpc.pb.h"
#include "longhaul/v1/fine_tune_service.grpc.pb.h"
#include "longhaul/v1/worker_admin_service.grpc.pb.h"
#include "longhaul/v1/worker_service.grpc.pb.h"
#include "model/memory_plan.h"
#include "server/server.h"
#include "wire/metadata.h"

namespace longhaul::server {

class TempDir {
 public:
  TempDir() {
    const char* base = std::getenv("TMPDIR");
    std::string name = JoinPath(base == nullptr ? "/tmp" : base, "longhaul-rpc-XXXXXX");
    LH_CHECK(::mkdtemp(name.data()) != nullptr, name);
    path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { LH_CHECK(RemoveTree(path_).ok(), path_); }
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return JoinPath(path_, name); }

 private:
  std::string path_;
};

// What an error's details say.
struct ErrorDetails {
  std::string reason;
  std::string domain;
  std::map<std::string, std::string> metadata;
  std::vector<google::rpc::BadRequest::FieldViolation> violations;

  // The description for a field; "" where it is not at fault.
  std::string Of(const std::string& field) const {
    for (const auto& violation : violations) {
      if (violation.field() == field) return violation.description();
    }
    return "";
  }
};

inline ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails out;
  if (status.error_details().empty()) return out;  // not from our server: OK, or made by gRPC itself
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return out;
  EXPECT_EQ(details.code(), static_cast<int>(status.error_code()));
  EXPECT_EQ(details.message(), status.error_message());
  for (const auto& any : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad_request;
    if (any.UnpackTo(&info)) {
      out.reason = info.reason();
      out.domain = info.domain();
      out.metadata = {info.metadata().begin(), info.metadata().end()};
    }
    if (any.UnpackTo(&bad_request)) {
      out.violations = {bad_request.field_violations().begin(), bad_request.field_violations().end()};
    }
  }
  return out;
}

inline v1::ModelShape TinyShape() {
  v1::ModelShape shape;
  shape.set_family("llama");
  shape.set_layers(2);
  shape.set_hidden(64);
  shape.set_intermediate(128);
  shape.set_heads(4);
  shape.set_kv_heads(2);
  shape.set_head_dim(16);
  shape.set_vocab(256);
  shape.set_max_position_embeddings(512);
  shape.set_rms_norm_eps(1e-5);
  shape.mutable_rope()->set_theta(10000);
  shape.mutable_rope()->set_scaling("none");
  shape.mutable_rope()->set_factor(1);
  return shape;
}

struct Stubs {
  explicit Stubs(int port)
      : Stubs(grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials())) {}
  explicit Stubs(std::shared_ptr<grpc::Channel> of)
      : channel(std::move(of)),
        jobs(v1::FineTuneService::NewStub(channel)),
        blobs(v1::BlobService::NewStub(channel)),
        workers(v1::WorkerService::NewStub(channel)),
        admin(v1::WorkerAdminService::NewStub(channel)) {}

  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::FineTuneService::Stub> jobs;
  std::unique_ptr<v1::BlobService::Stub> blobs;
  std::unique_ptr<v1::WorkerService::Stub> workers;
  std::unique_ptr<v1::WorkerAdminService::Stub> admin;
};

// Calls one unary method: Call(*stubs.jobs, &v1::FineTuneService::Stub::GetFineTuneJob, request, &job).
template <typename Stub, typename Request, typename Response>
grpc::Status Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                  const Request& request, Response* response) {
  grpc::ClientContext context;
  return (stub.*method)(&context, request, response);
}

// The agent's side of the protocol, a step at a time.
class FakeAgent {
 public:
  explicit FakeAgent(Stubs* stubs, std::string id = "worker-1") : stubs_(*stubs), id_(std::move(id)) {}

  v1::OpenSessionRequest Hello(int64_t host_bytes) const {
    v1::OpenSessionRequest request;
    request.set_worker_id(id_);
    request.set_protocol_version(1);
    request.set_build("test");
    request.set_plan_version(kPlanVersion);
    v1::WorkerInventory* inventory = request.mutable_inventory();
    inventory->set_host_name("host-1");
    inventory->set_host_bytes_total(host_bytes);
    inventory->set_disk_bytes_total(int64_t{100} << 30);
    inventory->set_cpu_threads_total(2);
    v1::Device* device = inventory->add_devices();
    device->set_id("cpu-0");
    v1::DeviceFacts* facts = device->mutable_facts();
    facts->set_device_class("cpu-avx2-2t");
    facts->set_kind(v1::DEVICE_KIND_CPU);
    facts->set_host_bytes(host_bytes);
    facts->set_disk_bytes(int64_t{100} << 30);
    facts->set_cpu_threads(2);
    facts->set_isa("avx2");
    facts->set_gemm_flops(1e11);
    facts->set_copy_bytes_per_second(1e10);
    facts->set_runtime_host_bytes(int64_t{64} << 20);
    v1::Model* model = inventory->add_models();
    model->set_name("tiny-llama");
    model->set_digest(Sha256Hex("tiny-llama"));
    *model->mutable_shape() = TinyShape();
    model->set_tokenizer_digest(Sha256Hex("tokenizer"));
    model->set_size_bytes(1 << 20);
    model->set_storage("safetensors:F32");
    return request;
  }

  grpc::Status Open(int64_t host_bytes = int64_t{8} << 30) {
    v1::OpenSessionResponse response;
    const grpc::Status status =
        Call(*stubs_.workers, &v1::WorkerService::Stub::OpenSession, Hello(host_bytes), &response);
    session_id_ = response.session_id();
    sync_number_ = 0;
    return status;
  }

  grpc::Status Sync(const std::vector<v1::AttemptStatus>& attempts, v1::SyncResponse* response) {
    v1::SyncRequest request;
    request.set_session_id(session_id_);
    request.set_sync_number(++sync_number_);
    request.set_host_bytes_available(int64_t{8} << 30);
    request.set_disk_bytes_available(int64_t{100} << 30);
    for (const v1::AttemptStatus& attempt : attempts) *request.add_attempts() = attempt;
    grpc::ClientContext context;
    context.AddMetadata(kSessionMetadata, session_id_);
    return stubs_.workers->Sync(&context, request, response);
  }

  // Syncs, each parked until there is a command, until one tells to start something.
  v1::StartAttempt AwaitStart() {
    return AwaitCommand({}, [](const auto& c) { return c.has_start(); }).start();
  }
  v1::StopAttempt AwaitStop(const v1::AttemptStatus& status) {
    return AwaitCommand({status}, [](const auto& c) { return c.has_stop(); }).stop();
  }

  // Reports an ended attempt until the scheduler says that it is durable.
  void End(const v1::AttemptStatus& ended) {
    for (int i = 0; i < kMostSyncs; ++i) {
      v1::SyncResponse response;
      LH_CHECK(Sync({ended}, &response).ok(), "Sync");
      for (const auto& command : response.commands()) held_.push_back(command);
      for (const v1::AttemptKey& key : response.acknowledged()) {
        if (key.job_id() == ended.key().job_id() && key.attempt() == ended.key().attempt()) return;
      }
    }
    LH_CHECK(false, "never acknowledged");
  }

  // The validation attempt: a clean report.
  void Validate() {
    const v1::StartAttempt start = AwaitStart();
    LH_CHECK(start.spec().kind() == v1::ATTEMPT_KIND_VALIDATE, "kind");
    v1::AttemptStatus ended;
    *ended.mutable_key() = start.key();
    ended.set_phase(v1::ATTEMPT_PHASE_ENDED);
    ended.mutable_exit()->set_reason(v1::TRAINER_EXIT_SUCCEEDED);
    v1::DataReport* report = ended.mutable_data_report();
    report->set_examples(10);
    report->set_tokens(1000);
    report->set_trained_tokens(500);
    report->set_longest_tokens(100);
    report->set_total_steps(4);
    End(ended);
  }

  const std::string& session_id() const { return session_id_; }

 private:
  static constexpr int kMostSyncs = 200;

  template <typename Wanted>
  v1::WorkerCommand AwaitCommand(const std::vector<v1::AttemptStatus>& running, Wanted wanted) {
    for (int i = 0; i < kMostSyncs; ++i) {
      for (size_t j = 0; j < held_.size(); ++j) {
        if (!wanted(held_[j])) continue;
        const v1::WorkerCommand command = held_[j];
        held_.clear();
        return command;
      }
      v1::SyncResponse response;
      const grpc::Status status = Sync(running, &response);
      LH_CHECK(status.ok(), status.error_message());
      held_.assign(response.commands().begin(), response.commands().end());
    }
    LH_CHECK(false, "the command never came");
    return {};
  }

  Stubs& stubs_;
  const std::string id_;
  std::string session_id_;
  int64_t sync_number_ = 0;
  std::vector<v1::WorkerCommand> held_;  // came with an answer that was awaited for something else
};

// The machine's, and ahead of it by what a test has let pass: for times that are longer than a slow machine keeps
// anything waiting, and that nobody waits for.
class PassingClock final : public Clock {
 public:
  int64_t BootNanos() const override { return real_.BootNanos() + passed_ms_ * 1'000'000; }
  int64_t WallMicros() const override { return real_.WallMicros() + passed_ms_ * 1'000; }
  void Pass(int64_t milliseconds) { passed_ms_ += milliseconds; }

 private:
  const RealClock real_;
  std::atomic<int64_t> passed_ms_ = 0;
};

class RpcTest : public testing::Test {
 protected:
  virtual ServerOptions Options() const {
    ServerOptions options;
    options.state_dir = dir_.path();
    options.listen = "127.0.0.1:0";
    options.http_listen = "";
    options.sync_hold_ms = 50;
    return options;
  }

  void SetUp() override { Start(); }
  void TearDown() override {
    stubs_.reset();
    server_.reset();
  }

  void Start() {
    auto server = Server::Start(Options(), &clock_);
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = *std::move(server);
    stubs_.emplace(server_->grpc_port());
  }

  grpc::Status Upload(const std::string& bytes, int64_t offset = 0, size_t chunk = 1 << 20) {
    return UploadAs(*stubs_, bytes, offset, chunk);
  }
  static grpc::Status UploadAs(const Stubs& stubs, const std::string& bytes, int64_t offset = 0,
                               size_t chunk = 1 << 20) {
    grpc::ClientContext context;
    v1::WriteBlobResponse response;
    const auto writer = stubs.blobs->Write(&context, &response);
    v1::WriteBlobRequest request;
    request.mutable_blob()->set_sha256(Sha256Hex(bytes));
    request.mutable_blob()->set_size_bytes(static_cast<int64_t>(bytes.size()));
    for (size_t at = static_cast<size_t>(offset);;) {
      request.set_offset(static_cast<int64_t>(at));
      request.set_data(bytes.substr(at, chunk));
      at += request.data().size();
      request.set_finish(at == bytes.size());
      if (!writer->Write(request) || request.finish()) break;
      request.clear_blob();
    }
    writer->WritesDone();
    return writer->Finish();
  }

  // A good request whose dataset is uploaded.
  v1::CreateFineTuneJobRequest GoodRequest() {
    const std::string data = "{\"text\":\"hello\"}\n";
    EXPECT_TRUE(Upload(data).ok());
    return RequestFor(data);
  }
  static v1::CreateFineTuneJobRequest RequestFor(const std::string& data) {
    v1::CreateFineTuneJobRequest request;
    v1::JobSpec* spec = request.mutable_spec();
    spec->set_model("tiny-llama");
    spec->mutable_dataset()->set_sha256(Sha256Hex(data));
    spec->mutable_dataset()->set_size_bytes(static_cast<int64_t>(data.size()));
    spec->mutable_dataset()->set_file_name("train.jsonl");
    spec->mutable_hyperparameters()->set_max_sequence_length(128);
    spec->mutable_hyperparameters()->set_max_steps(4);
    return request;
  }

  grpc::Status Create(const v1::CreateFineTuneJobRequest& request, v1::Job* job) {
    return Call(*stubs_->jobs, &v1::FineTuneService::Stub::CreateFineTuneJob, request, job);
  }
  v1::Job MustCreate(const v1::CreateFineTuneJobRequest& request) {
    v1::Job job;
    const grpc::Status status = Create(request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  v1::Job Get(const std::string& id) {
    v1::GetFineTuneJobRequest request;
    request.set_id(id);
    v1::Job job;
    const grpc::Status status = Call(*stubs_->jobs, &v1::FineTuneService::Stub::GetFineTuneJob, request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  grpc::Status Cancel(const std::string& id, v1::Job* job) {
    v1::CancelFineTuneJobRequest request;
    request.set_id(id);
    return Call(*stubs_->jobs, &v1::FineTuneService::Stub::CancelFineTuneJob, request, job);
  }
  grpc::Status Delete(const std::string& id) {
    v1::DeleteFineTuneJobRequest request;
    request.set_id(id);
    google::protobuf::Empty response;
    return Call(*stubs_->jobs, &v1::FineTuneService::Stub::DeleteFineTuneJob, request, &response);
  }
  size_t CountJobs() {
    v1::ListFineTuneJobsResponse response;
    const grpc::Status status =
        Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, v1::ListFineTuneJobsRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return static_cast<size_t>(response.jobs_size());
  }

  PassingClock clock_;
  TempDir dir_;
  std::unique_ptr<Server> server_;
  std::optional<Stubs> stubs_;
};

}  // namespace longhaul::server
