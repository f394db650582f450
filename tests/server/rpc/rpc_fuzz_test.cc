// Every method of the running server gets damaged bytes: it answers each call, and the next good one.
#include <algorithm>

#include "longhaul/v1/worker_service.pb.h"
#include "server/rpc/method_table.h"
#include "tests/fuzz/fuzz_loop.h"
#include "tests/fuzz/proto_mutator.h"
#include "tests/server/rpc/raw_call.h"
#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {
namespace {

class RpcFuzzTest : public RpcTest {
 protected:
  void SetUp() override {
    RpcTest::SetUp();
    agent_.emplace(&*stubs_);
    ASSERT_TRUE(agent_->Open().ok());
  }

  // A good request of the method, or none that is known.
  std::unique_ptr<google::protobuf::Message> GoodFor(std::string_view method) {
    const auto* service = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(
        "longhaul.v1." + std::string(method.substr(0, method.find('/'))));
    if (service == nullptr) return nullptr;
    const auto* descriptor = service->FindMethodByName(std::string(method.substr(method.find('/') + 1)));
    std::unique_ptr<google::protobuf::Message> message(
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(descriptor->input_type())->New());
    if (method == "FineTuneService/CreateFineTuneJob") message->CopyFrom(RequestFor("{\"text\":\"hello\"}\n"));
    if (method == "WorkerService/OpenSession") message->CopyFrom(FakeAgent(&*stubs_).Hello(int64_t{8} << 30));
    const auto* reflection = message->GetReflection();
    const auto set = [&](const char* name, const std::string& value) {
      const auto* field = message->GetDescriptor()->FindFieldByName(name);
      if (field != nullptr) reflection->SetString(message.get(), field, value);
    };
    if (method != "WorkerService/OpenSession") set("id", job_.id());
    set("session_id", agent_->session_id());
    return message;
  }

  std::optional<FakeAgent> agent_;
  v1::Job job_;
};

TEST_F(RpcFuzzTest, EveryMethodAnswersDamagedBytes) {
  FuzzSeeds(4, [&](uint32_t seed) {
    job_ = MustCreate(GoodRequest());
    ProtoMutator mutator(seed);
    mutator.SetWords({job_.id(), agent_->session_id(), "worker-1", "tiny-llama"});
    for (const MethodRule& rule : kMethods) {
      const bool ours = rule.name.find('.') == std::string_view::npos;
      const std::string method = (ours ? "/longhaul.v1." : "/") + std::string(rule.name);
      for (int i = 0; i < 4; ++i) {
        const auto message = GoodFor(rule.name);
        if (message != nullptr) mutator.Mutate(message.get());
        std::string bytes = message == nullptr ? "" : message->SerializeAsString();
        if (message == nullptr || mutator.Chance(40)) bytes = mutator.MutateBytes(std::move(bytes));
        const RawAnswer answer = CallRaw(stubs_->channel, method, bytes);
        EXPECT_NE(answer.status.error_code(), grpc::StatusCode::UNKNOWN) << method;
        EXPECT_NE(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE) << method << answer.status.error_message();
      }
    }
    ASSERT_TRUE(agent_->Open().ok()) << "the agent gets its session back";
    EXPECT_NE(MustCreate(GoodRequest()).id(), "");
  });
}

}  // namespace
}  // namespace longhaul::server
