// What hostile clients send, through everything that reads it before anything is stored: the checks of Create and
// Estimate with the memory plan behind them, headers, tokens, page tokens. Nothing may crash, take unbounded memory, or
// be refused without a reason.
#include "base/error.h"
#include "base/hash.h"
#include "gtest/gtest.h"
#include "server/authenticator.h"
#include "server/core/page_token.h"
#include "server/http/http_request.h"
#include "server/rpc/admission.h"
#include "server/rpc/convert.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fuzz/allocation_meter.h"
#include "tests/fuzz/fuzz_loop.h"
#include "tests/fuzz/proto_mutator.h"
#include "wire/job_spec.h"
#include "wire/model_values.h"

namespace longhaul::server {
namespace {

constexpr uint32_t kCiSeeds = 400;
constexpr int64_t kMaxExtraBytes = 256 << 20;

ModelShape SmallShape() {
  ModelShape shape;
  shape.family = "llama";
  shape.layers = 2;
  shape.hidden = 64;
  shape.intermediate = 128;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = 16;
  shape.vocab = 256;
  shape.max_position_embeddings = 512;
  return shape;
}

// One CPU and one GPU class, and one model.
FleetView SmallFleet() {
  FleetView fleet;
  Worker worker = TestWorker("w1");
  DeviceFacts cpu = worker.devices[0].facts;
  cpu.gemm_flops = 1e11;
  cpu.copy_bytes_per_second = 1e10;
  DeviceFacts gpu = cpu;
  gpu.kind = DeviceKind::kCuda;
  gpu.device_class = "gpu";
  gpu.device_bytes = int64_t{80} << 30;
  fleet.classes = {{cpu, 1}, {gpu, 1}};
  worker.models[0].shape = SmallShape();
  worker.models[0].storage = "safetensors:BF16";
  fleet.models = worker.models;
  return fleet;
}

v1::CreateFineTuneJobRequest GoodCreate() {
  v1::CreateFineTuneJobRequest request;
  request.set_request_id("r-1");
  request.set_project("default");
  request.set_suffix("first");
  (*request.mutable_labels())["team"] = "red";
  (*request.mutable_metadata())["ticket"] = "1";
  v1::JobSpec* spec = request.mutable_spec();
  spec->set_model(kTestModel);
  for (v1::Dataset* dataset : {spec->mutable_dataset(), spec->mutable_eval_dataset()}) {
    dataset->set_sha256(Sha256Hex("dataset"));
    dataset->set_size_bytes(1000);
    dataset->set_file_name("train.jsonl");
  }
  v1::Hyperparameters* hyper = spec->mutable_hyperparameters();
  hyper->set_lora_rank(8);
  hyper->set_lora_alpha(16);
  hyper->add_target_modules("q_proj");
  hyper->set_learning_rate(1e-4);
  hyper->set_max_steps(10);
  hyper->set_batch_size(2);
  hyper->set_gradient_accumulation_steps(2);
  hyper->set_max_sequence_length(128);
  spec->mutable_resources()->set_device_share(v1::DEVICE_SHARE_BYTES);
  spec->mutable_resources()->set_device_share_bytes(int64_t{1} << 30);
  spec->mutable_retry()->set_limit(2);
  spec->set_deadline_seconds(1000);
  return request;
}

class RequestsFuzzTest : public ::testing::Test {
 protected:
  // One request through `read`, damaged or not, with its memory watched.
  template <class Message>
  void Send(ProtoMutator* mutator, Message message, const std::function<absl::Status(const Message&)>& read) {
    if (mutator->Chance(90)) mutator->Mutate(&message);
    std::string bytes = message.SerializeAsString();
    if (mutator->Chance(10)) bytes = mutator->MutateBytes(std::move(bytes));
    if (!message.ParseFromString(bytes)) return;
    ResetAllocationPeak();
    const int64_t before = AllocatedBytes();
    const absl::Status status = read(message);
    EXPECT_LE(AllocatedBytesPeak() - before, kMaxExtraBytes) << message.ShortDebugString().substr(0, 2000);
    status.ok() ? ++accepted_ : ++refused_;
    if (status.ok()) return;
    EXPECT_FALSE(ErrorReason(status).empty()) << status;
    EXPECT_NE(status.code(), absl::StatusCode::kInternal) << status;
  }
  void ExpectBothHappened() const {
    EXPECT_GT(accepted_, refused_ / 20);
    EXPECT_GT(refused_, accepted_ / 20);
  }

  // What Create and Estimate do with a spec that has passed its checks.
  absl::Status PlanEverywhere(v1::JobSpec spec, const ModelShape& shape, const std::string& storage) {
    wire::ResolveJobSpec(&spec, shape, storage);
    std::vector<v1::DeviceClassEstimate> estimates;
    for (const FleetView::Class& device_class : fleet_.classes) {
      absl::StatusOr<ClassPlan> plan = PlanOn(&plans_, spec, nullptr, shape, device_class);
      if (!plan.ok()) return plan.status();
      if (plan->estimate.fits()) {
        EXPECT_GT(plan->estimate.estimate().host_bytes() + plan->estimate.estimate().device_bytes(), 0);
      } else {
        EXPECT_FALSE(plan->estimate.why().empty());
      }
      estimates.push_back(std::move(plan->estimate));
    }
    EXPECT_FALSE(ExceedsEveryDevice(estimates, spec.hyperparameters().max_sequence_length()).ok());
    return absl::OkStatus();
  }

  const FleetView fleet_ = SmallFleet();
  PlanMemo plans_{&MemoryPlanner()};
  int accepted_ = 0;
  int refused_ = 0;
};

TEST_F(RequestsFuzzTest, Create) {
  FuzzSeeds(kCiSeeds, [&](uint32_t seed) {
    ProtoMutator mutator(seed);
    mutator.SetWords({kTestModel, "q_proj", "down_proj", Sha256Hex("dataset"), "default"});
    for (int i = 0; i < 5; ++i) {
      Send<v1::CreateFineTuneJobRequest>(&mutator, GoodCreate(), [&](const v1::CreateFineTuneJobRequest& request) {
        const absl::Status checked = CheckCreate(request, fleet_);
        if (!checked.ok()) return checked;
        const ModelEntry& model = *FindModel(fleet_, request.spec().model());
        return PlanEverywhere(request.spec(), model.shape, model.storage);
      });
    }
  });
  ExpectBothHappened();
}

TEST_F(RequestsFuzzTest, Estimate) {
  v1::EstimateFineTuneJobRequest good;
  *good.mutable_spec() = GoodCreate().spec();
  good.mutable_spec()->clear_model();
  *good.mutable_model_shape() = wire::ToProto(SmallShape());
  FuzzSeeds(kCiSeeds, [&](uint32_t seed) {
    ProtoMutator mutator(seed);
    mutator.SetWords({"llama", "none", "llama3", "linear"});
    for (int i = 0; i < 5; ++i) {
      Send<v1::EstimateFineTuneJobRequest>(&mutator, good, [&](const v1::EstimateFineTuneJobRequest& request) {
        const absl::StatusOr<ModelShape> shape = wire::FromProto(request.model_shape());
        if (!shape.ok()) return shape.status();
        const absl::Status valid =
            wire::ValidateJobSpec(request.spec(), &*shape, {.require_model = false, .require_dataset = false});
        if (!valid.ok()) return valid;
        return PlanEverywhere(request.spec(), *shape, "");
      });
    }
  });
  ExpectBothHappened();
}

// Text that comes from outside without a proto around it.
TEST_F(RequestsFuzzTest, HeadersTokensAndPageTokens) {
  const std::string token = MakeToken().text;
  JobFilter filter;
  filter.project = "default";
  const std::string page_token = MakePageToken(filter, 12345);
  const std::string head =
      "GET /metrics?x=1 HTTP/1.1\r\nHost: localhost:7071\r\nAuthorization: Bearer " + token + "\r\nAccept: */*\r\n\r\n";
  FuzzSeeds(kCiSeeds, [&](uint32_t seed) {
    ProtoMutator mutator(seed);
    for (int i = 0; i < 20; ++i) {
      const HttpHead parsed = ParseHttpHead(mutator.MutateBytes(head));
      EXPECT_TRUE(parsed.status == 200 || parsed.status == 400 || parsed.status == 505) << parsed.status;
      NamesLoopback(parsed.request.host);
      for (const char* scheme : {"Bearer ", "Basic bWU6"}) {
        Credentials credentials;
        ReadAuthorization(mutator.MutateBytes(scheme + token), &credentials);
        EXPECT_EQ(credentials.malformed, credentials.token.empty());
        EXPECT_NE(CheckToken(nullptr, credentials.token, 0), TokenVerdict::kValid);
      }
      const std::string damaged = mutator.MutateBytes(token);
      EXPECT_EQ(TokenId(damaged).value_or(*TokenId(token)).size(), TokenId(token)->size());
      filter.page_token = mutator.MutateBytes(page_token);
      const auto number = ReadPageToken(filter);
      EXPECT_EQ(number.ok(), ErrorReason(number.status()).empty());
      if (const auto scopes = ParseScopes("scopes", mutator.MutateBytes("viewer,worker")); scopes.ok()) {
        EXPECT_LE(*scopes, kAllScopes);
      }
    }
  });
}

}  // namespace
}  // namespace longhaul::server
