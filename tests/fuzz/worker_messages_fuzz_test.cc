// What hostile or broken agents send, all the way into the scheduler's state: a conversation of valid messages, most of
// them damaged on the way, interleaved with users' commands and time. Nothing may crash or break an invariant: every
// refusal has its code and reason, every batch commits, no command ends in an internal error.
#include "gtest/gtest.h"
#include "server/dispatcher_core.h"
#include "server/rpc/convert.h"
#include "server/rpc/convert_worker.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fakes/fake_store.h"
#include "tests/fuzz/fuzz_loop.h"
#include "tests/fuzz/proto_mutator.h"
#include "wire/model_values.h"

namespace longhaul::server {
namespace {

constexpr uint32_t kCiSeeds = 30;
constexpr int kSteps = 200;

class Conversation {
 public:
  explicit Conversation(uint32_t seed) : mutator_(seed) {
    EXPECT_TRUE(core_.Load().ok());
    Settle();
  }

  void Step() {
    mutator_.SetWords(Words());
    switch (mutator_.Draw(12)) {
      case 0:
      case 1:
        return OpenSession();
      case 2:
      case 3:
      case 4:
      case 5:
        return Sync();
      case 6:
        return CommitCheckpoint();
      case 7:
        return CommitArtifact();
      case 8:
        return CheckFence();
      case 9:
        return Check(core_.Create({TestJob(blobs_.Add("dataset"), 1), "body"}).status());
      case 10:
        return UserCommand();
      default:
        clock_.AdvanceMillis(static_cast<int64_t>(mutator_.Draw(120'000)));
        return Settle();
    }
  }

  int accepted() const { return accepted_; }
  int refused() const { return refused_; }

 private:
  std::vector<std::string> Words() const {
    std::vector<std::string> words = {"w1", "w2", kTestModel, "cpu-0", session_};
    for (const auto& [id, record] : core_.jobs()) words.push_back(id);
    return words;
  }

  // On the wire and back, damaged or not. False: the parser refuses it, as gRPC would.
  template <class Message>
  bool Send(Message* message) {
    if (mutator_.Chance(60)) mutator_.Mutate(message);
    std::string bytes = message->SerializeAsString();
    if (mutator_.Chance(10)) bytes = mutator_.MutateBytes(std::move(bytes));
    return message->ParseFromString(bytes);
  }

  void Check(const absl::Status& status) {
    status.ok() ? ++accepted_ : ++refused_;
    if (!status.ok()) {
      EXPECT_FALSE(ErrorReason(status).empty()) << status;
      EXPECT_NE(status.code(), absl::StatusCode::kInternal) << status;
      EXPECT_NE(status.code(), absl::StatusCode::kUnknown) << status;
    }
    Settle();
  }

  void Settle() {
    core_.Tick();
    const absl::Status committed = core_.CommitBatch();
    EXPECT_TRUE(committed.ok()) << committed;
    core_.TakeEffects();
    EXPECT_EQ(core_.Stats().internal_errors_total, 0u) << core_.Stats().last_internal_error;
    for (const WorkerView& view : core_.Workers()) ToProto(view);
    for (const auto& [id, record] : core_.jobs()) {
      EXPECT_FALSE(ToProto(record.job, std::nullopt).id().empty());
      const absl::StatusOr<Job> stored = store_.GetJob(id);
      ASSERT_TRUE(stored.ok()) << id;
      EXPECT_EQ(stored->state, record.job.state) << id << ": memory and store disagree";
      EXPECT_EQ(stored->lease_epoch, record.job.lease_epoch) << id;
    }
  }

  void OpenSession() {
    v1::OpenSessionRequest request;
    request.set_worker_id(mutator_.Chance(80) ? "w1" : "w2");
    request.set_protocol_version(kWorkerProtocolVersion);
    request.set_plan_version(kPlanVersion);
    const Worker worker = TestWorker(request.worker_id());
    v1::WorkerInventory* inventory = request.mutable_inventory();
    inventory->set_host_name(worker.host_name);
    inventory->set_host_bytes_total(worker.host_bytes_total);
    inventory->set_disk_bytes_total(worker.disk_bytes_total);
    inventory->set_cpu_threads_total(worker.cpu_threads_total);
    v1::Device* device = inventory->add_devices();
    device->set_id(worker.devices[0].id);
    *device->mutable_facts() = wire::ToProto(worker.devices[0].facts);
    v1::Model* model = inventory->add_models();
    model->set_name(kTestModel);
    model->set_digest(kTestDigest);
    *model->mutable_shape() = wire::ToProto(worker.models[0].shape);
    for (const v1::AttemptStatus& status : Statuses()) *request.add_attempts() = status;
    if (!Send(&request)) return;
    absl::StatusOr<SessionInput> input = FromProto(request);
    if (!input.ok()) return Check(input.status());
    input->caller = mutator_.Chance(90) ? "token:a" : "token:b";
    const absl::StatusOr<SessionReply> reply = core_.OpenSession(*std::move(input));
    Check(reply.status());
    if (!reply.ok()) return;
    session_ = reply->session_id;
    worker_ = request.worker_id();
    sync_number_ = 0;
    ToProto(*reply);
  }

  // What an agent that holds all that it was given would say.
  std::vector<v1::AttemptStatus> Statuses() {
    std::vector<v1::AttemptStatus> statuses;
    const auto worker = core_.workers().find(worker_);
    if (worker == core_.workers().end()) return statuses;
    for (const auto& [key, hold] : worker->second.holds) {
      v1::AttemptStatus status;
      *status.mutable_key() = ToProto(hold.key);
      status.set_phase(static_cast<v1::AttemptPhase>(1 + mutator_.Draw(5)));
      if (hold.kind == AttemptKind::kValidate) status.mutable_data_report()->set_longest_tokens(100);
      if (status.phase() == v1::ATTEMPT_PHASE_ENDED) {
        status.mutable_exit()->set_reason(static_cast<v1::TrainerExitReason>(1 + mutator_.Draw(6)));
        status.mutable_exit()->set_failure(v1::NON_FINITE_LOSS);
      } else {
        v1::TrainingProgress* progress = status.add_progress();
        progress->set_step(hold.last_step + 1);
        progress->set_loss(1);
      }
      statuses.push_back(std::move(status));
    }
    return statuses;
  }

  void Sync() {
    v1::SyncRequest request;
    request.set_session_id(session_);
    request.set_sync_number(++sync_number_);
    for (const v1::AttemptStatus& status : Statuses()) *request.add_attempts() = status;
    if (!Send(&request)) return;
    const absl::StatusOr<SyncInput> input = FromProto(request);
    if (!input.ok()) return Check(input.status());
    const absl::StatusOr<std::string> worker = core_.Sync(*input);
    Check(worker.status());
    if (!worker.ok()) return;
    const absl::StatusOr<v1::SyncResponse> answer = ToProto(core_.MakeReply(*worker, input->sync_number));
    EXPECT_TRUE(answer.ok()) << answer.status();
  }

  v1::AttemptKey SomeKey() {
    const auto worker = core_.workers().find(worker_);
    if (worker == core_.workers().end() || worker->second.holds.empty()) return {};
    auto hold = worker->second.holds.begin();
    std::advance(hold, static_cast<int64_t>(mutator_.Draw(worker->second.holds.size())));
    return ToProto(hold->second.key);
  }
  v1::BlobFile SomeFile() {
    const BlobRef blob = blobs_.Add("file " + std::to_string(mutator_.Draw(5)));
    v1::BlobFile file;
    file.set_path("adapter_model.safetensors");
    file.set_sha256(blob.sha256);
    file.set_size_bytes(blob.size_bytes);
    return file;
  }

  void CommitCheckpoint() {
    v1::CommitCheckpointRequest request;
    request.set_session_id(session_);
    *request.mutable_key() = SomeKey();
    request.mutable_checkpoint()->set_step(static_cast<int64_t>(1 + mutator_.Draw(100)));
    *request.mutable_checkpoint()->add_files() = SomeFile();
    if (!Send(&request)) return;
    absl::StatusOr<Checkpoint> checkpoint = FromProto(request.checkpoint());
    if (!checkpoint.ok()) return Check(checkpoint.status());
    const AttemptKey key = FromProto(request.key());
    checkpoint->attempt = key.attempt;
    Check(core_.CommitCheckpoint(request.session_id(), key, *std::move(checkpoint)));
  }

  void CommitArtifact() {
    v1::CommitArtifactRequest request;
    request.set_session_id(session_);
    *request.mutable_key() = SomeKey();
    *request.mutable_artifact()->add_files() = SomeFile();
    if (!Send(&request)) return;
    absl::StatusOr<std::vector<NamedBlob>> files = FromProto(request.artifact().files(), "artifact.files");
    if (!files.ok()) return Check(files.status());
    Check(core_.CommitArtifact(request.session_id(), FromProto(request.key()), *std::move(files),
                               request.result().SerializeAsString()));
  }

  void CheckFence() {
    v1::AppendLogRequest request;
    request.set_session_id(session_);
    *request.mutable_key() = SomeKey();
    if (!Send(&request)) return;
    Check(core_.CheckFence(request.session_id(), FromProto(request.key())));
  }

  void UserCommand() {
    const std::string id = mutator_.String();
    switch (mutator_.Draw(5)) {
      case 0:
        return Check(core_.Cancel(id).status());
      case 1:
        return Check(core_.Pause(id).status());
      case 2:
        return Check(core_.Resume(id).status());
      case 3:
        return Check(core_.Delete(id));
      default:
        return Check(core_.SetDraining(id, mutator_.Chance(50)));
    }
  }

  ProtoMutator mutator_;
  FakeClock clock_;
  FakeStore store_;
  FakeBlobs blobs_;
  FakePlanner planner_;
  DispatcherCore core_{Dispatcher::Options{60'000, 90'000, 10'000}, &store_, &blobs_, &clock_, &planner_};
  std::string session_;
  std::string worker_;
  int64_t sync_number_ = 0;
  int accepted_ = 0;
  int refused_ = 0;
};

TEST(WorkerMessagesFuzzTest, NothingThatAgentsSendBreaksTheScheduler) {
  int accepted = 0;
  int refused = 0;
  FuzzSeeds(kCiSeeds, [&](uint32_t seed) {
    Conversation conversation(seed);
    for (int i = 0; i < kSteps && !::testing::Test::HasFailure(); ++i) conversation.Step();
    accepted += conversation.accepted();
    refused += conversation.refused();
  });
  // Damage that never hurts, or always, would test nothing.
  EXPECT_GT(accepted, refused / 10);
  EXPECT_GT(refused, accepted / 10);
}

}  // namespace
}  // namespace longhaul::server
