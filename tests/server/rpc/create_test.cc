#include <barrier>
#include <chrono>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {
namespace {

class CreateTest : public RpcTest {
 protected:
  void SetUp() override {
    RpcTest::SetUp();
    agent_.emplace(&*stubs_);
    ASSERT_TRUE(agent_->Open().ok());
  }
  std::optional<FakeAgent> agent_;
};

TEST_F(CreateTest, ResolvesEveryDefaultOnce) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  request.set_suffix("first");
  (*request.mutable_labels())["team"] = "blue";
  const v1::Job job = MustCreate(request);
  EXPECT_EQ(job.id().rfind("ftjob-", 0), 0u) << job.id();
  EXPECT_EQ(job.project(), "default");
  EXPECT_EQ(job.suffix(), "first");
  EXPECT_EQ(job.labels().at("team"), "blue");
  EXPECT_EQ(job.state(), v1::VALIDATING);
  EXPECT_EQ(job.model_digest(), Sha256Hex("tiny-llama"));
  EXPECT_FALSE(job.spec().hyperparameters().has_lora_rank());
  EXPECT_EQ(job.resolved_spec().hyperparameters().lora_rank(), 16);
  EXPECT_EQ(job.resolved_spec().hyperparameters().target_modules_size(), 7);
  EXPECT_GT(job.estimate().host_bytes(), 0);
  EXPECT_EQ(job.estimate().device_class(), "cpu-avx2-2t");
  EXPECT_GT(job.create_time().seconds(), 0);
  EXPECT_EQ(Get(job.id()).resolved_spec().SerializeAsString(), job.resolved_spec().SerializeAsString());
}

TEST_F(CreateTest, NamesEveryFaultAtOnceAndStoresNothing) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  v1::Hyperparameters* hyper = request.mutable_spec()->mutable_hyperparameters();
  hyper->set_lora_rank(0);
  hyper->set_learning_rate(-1);
  hyper->set_max_sequence_length(100'000);
  request.set_suffix(std::string(limits::kMaxSuffixBytes + 1, 's'));
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(details.reason, "INVALID_FIELD");
  EXPECT_NE(details.Of("spec.hyperparameters.lora_rank"), "");
  EXPECT_NE(details.Of("spec.hyperparameters.learning_rate"), "");
  EXPECT_NE(details.Of("spec.hyperparameters.max_sequence_length"), "");
  EXPECT_NE(details.Of("suffix"), "");
  EXPECT_EQ(CountJobs(), 0u);
}

TEST_F(CreateTest, RefusesUnknownFields) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  auto* hyper = request.mutable_spec()->mutable_hyperparameters();
  hyper->GetReflection()->MutableUnknownFields(hyper)->AddVarint(900, 1);
  request.GetReflection()->MutableUnknownFields(&request)->AddVarint(901, 1);
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(status.error_message().find("900"), std::string::npos) << status.error_message();
  EXPECT_NE(status.error_message().find("901"), std::string::npos) << status.error_message();
  EXPECT_EQ(CountJobs(), 0u);
}

TEST_F(CreateTest, SuggestsTheNearestModel) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  request.mutable_spec()->set_model("tiny-lama");
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailsOf(status).reason, "MODEL_UNKNOWN");
  EXPECT_NE(DetailsOf(status).Of("spec.model").find("did you mean \"tiny-llama\""), std::string::npos);
  EXPECT_EQ(CountJobs(), 0u);
}

TEST_F(CreateTest, WantsTheDatasetFirst) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  request.mutable_spec()->mutable_dataset()->set_sha256(Sha256Hex("never uploaded"));
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(DetailsOf(status).reason, "DATASET_NOT_UPLOADED");
  EXPECT_NE(DetailsOf(status).Of("spec.dataset"), "");
  // Who only asks whether it would be taken need not send it first.
  request.set_validate_only(true);
  EXPECT_GT(MustCreate(request).estimate().host_bytes(), 0);
  EXPECT_EQ(CountJobs(), 0u);
}

TEST_F(CreateTest, ValidateOnlyStoresNothing) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  request.set_validate_only(true);
  request.set_request_id("dry");
  const v1::Job job = MustCreate(request);
  EXPECT_EQ(job.id(), "");
  EXPECT_EQ(job.resolved_spec().hyperparameters().lora_rank(), 16);
  EXPECT_GT(job.estimate().host_bytes(), 0);
  EXPECT_EQ(CountJobs(), 0u);
}

TEST_F(CreateTest, OneRequestIdIsOneJobFromManyThreads) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  request.set_request_id("same");
  (*request.mutable_labels())["a"] = "1";
  (*request.mutable_labels())["b"] = "2";
  std::vector<std::string> ids(64);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < ids.size(); ++i) threads.emplace_back([&, i] { ids[i] = MustCreate(request).id(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), 1u);
  EXPECT_EQ(CountJobs(), 1u);

  request.set_suffix("another body");
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailsOf(status).reason, "REQUEST_ID_REUSED");
}

TEST_F(CreateTest, ARequestIdOutlivesItsJob) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  request.set_request_id("once");
  const v1::Job job = MustCreate(request);
  v1::Job cancelled;
  ASSERT_TRUE(Cancel(job.id(), &cancelled).ok());
  ASSERT_EQ(Get(job.id()).state(), v1::CANCELLED);
  ASSERT_TRUE(Delete(job.id()).ok());
  v1::Job again;
  const grpc::Status status = Create(request, &again);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "request_id \"once\" made job " + job.id() + ", which was deleted");
  EXPECT_EQ(CountJobs(), 0u);
}

TEST_F(CreateTest, RefusesWhatFitsNowhereWithTheBytesByPart) {
  FakeAgent small(&*stubs_);  // the same worker, come back smaller: 70 MiB, of which 64 are the runtime
  ASSERT_TRUE(small.Open(int64_t{70} << 20).ok());
  v1::CreateFineTuneJobRequest request = GoodRequest();
  request.mutable_spec()->mutable_hyperparameters()->set_max_sequence_length(512);
  request.mutable_spec()->mutable_hyperparameters()->set_batch_size(64);
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << status.error_message();
  EXPECT_EQ(DetailsOf(status).reason, "EXCEEDS_EVERY_DEVICE");
  const std::string& message = status.error_message();
  for (const char* part : {"cpu-avx2-2t", "needs", "weights", "MiB", "longest sequence that would fit is"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
  EXPECT_EQ(CountJobs(), 0u);

  // The length that the refusal names is the truth: it fits, and one more does not.
  const std::string marker = "longest sequence that would fit is ";
  const int64_t longest = std::stoll(message.substr(message.find(marker) + marker.size()));
  ASSERT_GT(longest, 0);
  request.set_validate_only(true);
  request.mutable_spec()->mutable_hyperparameters()->set_max_sequence_length(longest + 1);
  EXPECT_EQ(Create(request, &job).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  request.mutable_spec()->mutable_hyperparameters()->set_max_sequence_length(longest);
  EXPECT_TRUE(Create(request, &job).ok());
}

TEST_F(CreateTest, EstimateAnswersByClassAndTakesABareShape) {
  v1::EstimateFineTuneJobRequest request;
  request.mutable_spec()->set_model("tiny-llama");
  request.mutable_spec()->mutable_hyperparameters()->set_max_steps(10);
  v1::EstimateFineTuneJobResponse by_name;
  grpc::Status status = Call(*stubs_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, request, &by_name);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(by_name.fits_somewhere());
  ASSERT_EQ(by_name.classes_size(), 1);
  const v1::DeviceClassEstimate& one = by_name.classes(0);
  EXPECT_TRUE(one.fits());
  EXPECT_EQ(one.workers(), 1);
  EXPECT_EQ(one.longest_sequence_length(), 512);
  EXPECT_GT(one.estimate().step_seconds(), 0);
  EXPECT_NEAR(one.estimate().total_seconds(), 10 * one.estimate().step_seconds(), 1e-9);
  int64_t parts = 0;
  for (const auto& part : one.estimate().host_parts()) parts += part.bytes();
  EXPECT_EQ(parts, one.estimate().host_bytes());

  v1::EstimateFineTuneJobRequest bare;
  *bare.mutable_model_shape() = TinyShape();
  bare.mutable_spec()->mutable_hyperparameters()->set_max_steps(10);
  v1::EstimateFineTuneJobResponse by_shape;
  status = Call(*stubs_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, bare, &by_shape);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(by_shape.classes(0).estimate().host_bytes(), one.estimate().host_bytes());

  request.mutable_spec()->set_model("nobody-has-it");
  EXPECT_EQ(DetailsOf(Call(*stubs_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, request, &by_name)).reason,
            "MODEL_UNKNOWN");
}

TEST_F(CreateTest, EstimateOfAGpuClassIsInItsOwnMemory) {
  FakeAgent gpu(&*stubs_, "gpu-worker");
  v1::OpenSessionRequest hello = gpu.Hello(int64_t{8} << 30);
  v1::Device* device = hello.mutable_inventory()->add_devices();
  device->set_id("gpu-0");
  v1::DeviceFacts* facts = device->mutable_facts();
  facts->set_device_class("NVIDIA-H100");
  facts->set_kind(v1::DEVICE_KIND_CUDA);
  facts->set_isa("sm_90");
  facts->set_has_bf16(true);
  facts->set_device_bytes(int64_t{80} << 30);
  facts->set_host_bytes(int64_t{64} << 30);
  facts->set_disk_bytes(int64_t{100} << 30);
  facts->set_cpu_threads(8);
  facts->set_gemm_flops(7e14);
  v1::OpenSessionResponse session;
  ASSERT_TRUE(Call(*stubs_->workers, &v1::WorkerService::Stub::OpenSession, hello, &session).ok());

  v1::EstimateFineTuneJobRequest request;  // an 8B Llama: far too large for the CPU workers of 8 GiB
  v1::ModelShape* shape = request.mutable_model_shape();
  *shape = TinyShape();
  shape->set_layers(32);
  shape->set_hidden(4096);
  shape->set_intermediate(14336);
  shape->set_heads(32);
  shape->set_kv_heads(8);
  shape->set_head_dim(128);
  shape->set_vocab(128256);
  shape->set_max_position_embeddings(8192);
  request.mutable_spec()->mutable_hyperparameters()->set_max_steps(10);
  v1::EstimateFineTuneJobResponse response;
  grpc::Status status = Call(*stubs_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(response.fits_somewhere());
  ASSERT_EQ(response.classes_size(), 2);
  const v1::DeviceClassEstimate& on_gpu = response.classes(0);
  EXPECT_EQ(on_gpu.device_class(), "NVIDIA-H100");
  EXPECT_TRUE(on_gpu.fits()) << on_gpu.why();
  EXPECT_EQ(on_gpu.workers(), 1);
  EXPECT_GE(on_gpu.longest_sequence_length(), response.resolved_spec().hyperparameters().max_sequence_length());
  const v1::Estimate& estimate = on_gpu.estimate();
  EXPECT_GT(estimate.device_bytes(), int64_t{4} << 30) << "the weights alone, at half a byte each";
  EXPECT_LE(estimate.device_bytes(), facts->device_bytes());
  EXPECT_GT(estimate.host_bytes(), 0);
  EXPECT_LT(estimate.host_bytes(), facts->host_bytes());
  EXPECT_GT(estimate.step_seconds(), 0);
  int64_t parts = 0;
  for (const auto& part : estimate.device_parts()) parts += part.bytes();
  EXPECT_EQ(parts, estimate.device_bytes());
  EXPECT_EQ(estimate.host_parts_size(), 0);
  const v1::DeviceClassEstimate& on_cpu = response.classes(1);
  EXPECT_FALSE(on_cpu.fits());
  EXPECT_NE(on_cpu.why().find("needs"), std::string::npos) << on_cpu.why();
  EXPECT_EQ(on_cpu.workers(), 2);
  EXPECT_EQ(estimate.warnings_size(), 0);
  const double seconds = estimate.step_seconds();

  // The same model with heads that the library has no kernels for: slower by the hundred, and it is said beforehand.
  shape->set_heads(16);
  shape->set_kv_heads(4);
  shape->set_head_dim(256);
  status = Call(*stubs_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.classes(0).estimate().warnings_size(), 1);
  EXPECT_NE(response.classes(0).estimate().warnings(0).find("reference kernels"), std::string::npos);
  EXPECT_GT(response.classes(0).estimate().step_seconds(), 3 * seconds);

  // What a GPU cannot do is its class's answer, not an error of the call.
  request.mutable_spec()->mutable_hyperparameters()->set_compute_type(v1::COMPUTE_TYPE_F32);
  status = Call(*stubs_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_FALSE(response.fits_somewhere());
  EXPECT_NE(response.classes(0).why().find("compute type f32"), std::string::npos) << response.classes(0).why();
}

TEST_F(CreateTest, ListPagesFilterAndRefuseForeignTokens) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) {
    (*request.mutable_labels())["even"] = i % 2 == 0 ? "yes" : "no";
    ids.push_back(MustCreate(request).id());
  }
  v1::ListFineTuneJobsRequest list;
  list.set_page_size(2);
  list.set_oldest_first(true);
  std::vector<std::string> seen;
  do {
    v1::ListFineTuneJobsResponse page;
    ASSERT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, list, &page).ok());
    for (const v1::Job& job : page.jobs()) seen.push_back(job.id());
    list.set_page_token(page.next_page_token());
  } while (!list.page_token().empty());
  EXPECT_EQ(seen, ids);

  v1::ListFineTuneJobsRequest even;
  (*even.mutable_labels())["even"] = "yes";
  v1::ListFineTuneJobsResponse page;
  ASSERT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, even, &page).ok());
  EXPECT_EQ(page.jobs_size(), 3);

  even.set_page_token("made up");
  EXPECT_EQ(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, even, &page).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  even.clear_page_token();
  even.set_page_size(-1);
  EXPECT_EQ(DetailsOf(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, even, &page)).reason,
            "INVALID_FIELD");
}

TEST_F(CreateTest, ListPagesEndBeforeTheyAreTooLargeForAMessage) {
  v1::CreateFineTuneJobRequest request = GoodRequest();
  for (int i = 0; i < limits::kMaxMetadata; ++i) {
    (*request.mutable_metadata())["key " + std::to_string(i)] =
        std::string(static_cast<size_t>(limits::kMaxMetadataValueBytes), 'm');
  }
  std::vector<std::string> ids;
  for (int i = 0; i < 130; ++i) ids.push_back(MustCreate(request).id());
  v1::ListFineTuneJobsRequest list;
  list.set_page_size(limits::kMaxPageSize);
  list.set_oldest_first(true);
  std::vector<std::string> seen;
  int pages = 0;
  do {
    v1::ListFineTuneJobsResponse page;
    const grpc::Status status = Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, list, &page);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_LE(static_cast<int64_t>(page.ByteSizeLong()), limits::kMaxGrpcMessageBytes);
    for (const v1::Job& job : page.jobs()) seen.push_back(job.id());
    list.set_page_token(page.next_page_token());
    ++pages;
  } while (!list.page_token().empty());
  EXPECT_EQ(seen, ids);
  EXPECT_EQ(pages, 2);
}

TEST_F(CreateTest, ListFiltersAreLimited) {
  v1::ListFineTuneJobsRequest list;
  for (int i = 0; i < 100; ++i) list.add_states(v1::QUEUED);  // one state, said often
  v1::ListFineTuneJobsResponse page;
  EXPECT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, list, &page).ok());
  for (int i = 0; i <= limits::kMaxLabelsInFilter; ++i) (*list.mutable_labels())["l" + std::to_string(i)] = "v";
  const auto details = DetailsOf(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, list, &page));
  EXPECT_EQ(details.reason, "INVALID_FIELD");
}

TEST_F(CreateTest, UnknownJobsAreNotFound) {
  v1::GetFineTuneJobRequest request;
  request.set_id("ftjob-nothere");
  v1::Job job;
  const grpc::Status status = Call(*stubs_->jobs, &v1::FineTuneService::Stub::GetFineTuneJob, request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(status).reason, "JOB_NOT_FOUND");
  EXPECT_NE(status.error_message().find("ftjob-nothere"), std::string::npos);
}

// What is remembered of a plan is what the same plan says anew; the steps and the workers are those of the request.
TEST_F(CreateTest, EstimatesThatAreRememberedAreThoseThatAreMade) {
  v1::EstimateFineTuneJobRequest request;
  *request.mutable_spec() = GoodRequest().spec();
  const auto ask = [&](int64_t max_steps, int64_t length) {
    request.mutable_spec()->mutable_hyperparameters()->set_max_steps(max_steps);
    request.mutable_spec()->mutable_hyperparameters()->set_max_sequence_length(length);
    v1::EstimateFineTuneJobResponse response;
    EXPECT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::EstimateFineTuneJob, request, &response).ok());
    EXPECT_EQ(response.classes_size(), 1);
    return response.classes(0);
  };
  const v1::DeviceClassEstimate first = ask(10, 64);
  const v1::DeviceClassEstimate longer = ask(10, 128);
  const v1::DeviceClassEstimate again = ask(10, 64);
  EXPECT_EQ(again.SerializeAsString(), first.SerializeAsString());
  EXPECT_GT(longer.estimate().host_bytes(), first.estimate().host_bytes());
  const v1::DeviceClassEstimate more = ask(30, 64);
  EXPECT_EQ(more.estimate().total_steps(), 30);
  EXPECT_DOUBLE_EQ(more.estimate().total_seconds(), 3 * first.estimate().total_seconds());
  EXPECT_EQ(more.estimate().host_bytes(), first.estimate().host_bytes());
}

// However they come together, over connections of their own. LONGHAUL_SOAK_ROUNDS: the long form.
TEST_F(CreateTest, OneRequestIdFrom64ClientsIsOneJob) {
  constexpr int kClients = 64;
  const char* const asked = std::getenv("LONGHAUL_SOAK_ROUNDS");
  const int rounds = asked == nullptr ? 3 : std::atoi(asked);
  ASSERT_GE(rounds, 1);
  const v1::CreateFineTuneJobRequest good = GoodRequest();  // its dataset is uploaded once
  std::vector<std::string> ids(kClients);
  std::barrier together(kClients + 1);
  std::vector<std::jthread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      const auto stub = v1::FineTuneService::NewStub(grpc::CreateCustomChannel(
          "127.0.0.1:" + std::to_string(server_->grpc_port()), grpc::InsecureChannelCredentials(), arguments));
      for (int round = 0; round < rounds; ++round) {
        v1::CreateFineTuneJobRequest request = good;
        request.set_request_id("round-" + std::to_string(round));
        together.arrive_and_wait();
        v1::Job job;
        // As a client does whose connection breaks: the same request again, which is what its id is for.
        grpc::Status status = grpc::Status::CANCELLED;
        for (int tries = 0; tries < 100 && !status.ok(); ++tries) {
          if (tries > 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
          status = Call(*stub, &v1::FineTuneService::Stub::CreateFineTuneJob, request, &job);
          if (!status.ok() && status.error_code() != grpc::StatusCode::UNAVAILABLE) break;
        }
        ids[static_cast<size_t>(i)] = status.ok() ? job.id() : status.error_message();
        together.arrive_and_wait();
      }
    });
  }
  std::set<std::string> jobs;
  for (int round = 0; round < rounds; ++round) {
    together.arrive_and_wait();
    together.arrive_and_wait();
    const std::set<std::string> answered(ids.begin(), ids.end());
    EXPECT_EQ(answered.size(), 1u) << *answered.begin() << " and " << *answered.rbegin();
    EXPECT_TRUE(jobs.insert(*answered.begin()).second) << "an earlier round's job";
    v1::CancelFineTuneJobRequest cancel;
    cancel.set_id(*answered.begin());
    v1::Job job;
    EXPECT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::CancelFineTuneJob, cancel, &job).ok());
  }
  clients.clear();
  int count = 0;
  v1::ListFineTuneJobsRequest list;
  do {
    v1::ListFineTuneJobsResponse page;
    ASSERT_TRUE(Call(*stubs_->jobs, &v1::FineTuneService::Stub::ListFineTuneJobs, list, &page).ok());
    count += page.jobs_size();
    list.set_page_token(page.next_page_token());
  } while (!list.page_token().empty());
  EXPECT_EQ(count, rounds);
}

}  // namespace
}  // namespace longhaul::server
