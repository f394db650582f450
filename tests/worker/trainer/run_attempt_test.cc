// Whole attempts on a tiny model: real files, the real engine, no agent.
#include "worker/trainer/run_attempt.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <map>
#include <memory>

#include "base/disk_seam.h"
#include "base/env.h"
#include "base/failpoints.h"
#include "base/hash.h"
#include "base/limits.h"
#include "kernels/exec.h"
#include "model/memory_plan.h"
#include "tests/fakes/tiny_model.h"
#include "tests/worker/attempt/temp_dir.h"
#include "wire/job_spec.h"
#include "wire/train_shape_of_spec.h"
#include "worker/formats/model_source.h"

namespace longhaul::trainer {
namespace {

std::string Chat(int i) {
  const std::string n = std::to_string(i);
  return R"({"messages":[{"role":"user","content":"What is )" + n +
         R"(?"},{"role":"assistant","content":"It is number )" + n + R"(."}]})" + "\n";
}

std::string Chats(int n) {
  std::string all;
  for (int i = 0; i < n; ++i) all += Chat(i);
  return all;
}

// What an attempt told, by kind.
struct Told {
  std::vector<v1::TrainerEvent> events;
  std::vector<int64_t> steps;
  std::vector<v1::CheckpointWritten> checkpoints;
  std::vector<bool> holds;
  v1::ArtifactWritten artifact;
  v1::DataReport report;
  v1::TrainerStarted started;
};

class RunAttemptTest : public ::testing::Test {
 protected:
  RunAttemptTest() {
    WriteTinyModel(temp_.At("model"));
    spec_.set_job_id("job");
    spec_.set_attempt(1);
    spec_.set_lease_epoch(1);
    spec_.set_kind(v1::ATTEMPT_KIND_TRAIN);
    spec_.set_model_path(temp_.At("model"));
    spec_.set_model_name("tiny");
    v1::Hyperparameters* hyper = spec_.mutable_spec()->mutable_hyperparameters();
    hyper->set_lora_rank(4);
    hyper->set_max_sequence_length(128);
    hyper->set_max_steps(6);
    hyper->set_learning_rate(1e-2);
    hyper->set_checkpoint_every_steps(2);
    hyper->set_eval_examples(4);
    hyper->set_base_storage(v1::BASE_STORAGE_AS_STORED);
    hyper->set_compute_type(v1::COMPUTE_TYPE_F32);
  }
  ~RunAttemptTest() override { DisarmFailpoints(); }

  // The attempt directory with its data and, for training, its plan.
  attempt::AttemptDir Make(const std::string& name, const std::string& data) {
    const attempt::AttemptDir dir(temp_.At(name));
    EXPECT_TRUE(dir.Create().ok());
    EXPECT_TRUE(WriteFileAtomic(dir.DatasetPath(), data).ok());
    v1::LeaseFile lease;
    lease.set_lease_epoch(spec_.lease_epoch());
    lease.set_deadline_boot_nanos(clock_.BootNanos() + int64_t{1'000'000'000'000});
    EXPECT_TRUE(dir.WriteLease(lease).ok());
    v1::JobSpec* spec = spec_.mutable_spec();
    spec->set_model("tiny");
    spec->mutable_dataset()->set_sha256(Sha256Hex(data));
    spec->mutable_dataset()->set_size_bytes(static_cast<int64_t>(data.size()));
    spec->mutable_dataset()->set_file_name("train.jsonl");
    wire::ResolveJobSpec(spec, TinyModelShape(), "safetensors:F32");
    DeviceFacts facts;
    const kernels::CpuFacts cpu = kernels::ProbeCpu();
    facts.isa = cpu.isa;
    facts.has_bf16 = cpu.has_bf16;
    facts.cpu_threads = 1;
    facts.host_bytes = int64_t{4} << 30;
    facts.disk_bytes = int64_t{4} << 30;
    const auto train = wire::TrainShapeOfSpec(*spec, nullptr, facts);
    EXPECT_TRUE(train.ok()) << train.status();
    const auto plan = MakePlan(TinyModelShape(), *train, facts, PlanBudget());
    EXPECT_TRUE(plan.ok()) << plan.status();
    spec_.set_memory_plan_json(MemoryPlanToJson(*plan));
    return dir;
  }

  v1::TrainerExit Run(const attempt::AttemptDir& dir) {
    auto events = Events::Open(dir.EventsPath(), &clock_);
    EXPECT_TRUE(events.ok());
    AttemptContext context{dir,
                           spec_,
                           {temp_.At("model"), dir.DatasetPath(), ""},
                           &clock_,
                           signals_.get(),
                           &*events,
                           [this](const std::string& line) { log_ += line + "\n"; },
                           false};
    return RunAttempt(context);
  }

  Told Read(const attempt::AttemptDir& dir) {
    Told told;
    attempt::EventLogReader reader(dir.EventsPath());
    told.events = *reader.ReadNew();
    for (const auto& event : told.events) {
      if (event.has_progress() && (told.steps.empty() || told.steps.back() != event.progress().step())) {
        told.steps.push_back(event.progress().step());
      }
      if (event.has_checkpoint()) told.checkpoints.push_back(event.checkpoint());
      if (event.has_hold()) told.holds.push_back(event.hold().held());
      if (event.has_artifact()) told.artifact = event.artifact();
      if (event.has_data_report()) told.report = event.data_report();
      if (event.has_started()) told.started = event.started();
    }
    return told;
  }

  std::string Adapter(const attempt::AttemptDir& dir) {
    return ReadFile(dir.ArtifactDir() + "/adapter_model.safetensors", 1 << 26).value_or("");
  }

  // The next attempt of the job, from a checkpoint of `from`.
  void ResumeFrom(const attempt::AttemptDir& from, int64_t step, const attempt::AttemptDir& to) {
    spec_.mutable_resume_from()->set_step(step);
    ASSERT_TRUE(CreateDirs(to.ResumeDir()).ok());
    const std::vector<std::string> names = ListDir(from.CheckpointDir(step)).value();
    for (const std::string& name : names) {
      const auto bytes = ReadFile(JoinPath(from.CheckpointDir(step), name), 1 << 26);
      ASSERT_TRUE(WriteFileAtomic(JoinPath(to.ResumeDir(), name), *bytes).ok());
    }
  }

  RealClock clock_;
  TempDir temp_;
  std::unique_ptr<SignalInbox> signals_ = std::make_unique<SignalInbox>();
  v1::AttemptSpec spec_;
  std::string log_;
};

TEST_F(RunAttemptTest, TrainsToAnAdapterAndTellsAllOfIt) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  const v1::TrainerExit exit = Run(dir);
  ASSERT_EQ(exit.reason(), v1::TRAINER_EXIT_SUCCEEDED) << exit.message() << log_;
  EXPECT_NE(log_.find("computes with oneDNN"), std::string::npos) << log_;
  const Told told = Read(dir);
  EXPECT_EQ(told.started.total_steps(), 6);
  EXPECT_EQ(told.steps, (std::vector<int64_t>{1, 2, 3, 4, 5, 6}));
  ASSERT_EQ(told.checkpoints.size(), 3u);  // of steps 2, 4 and the final one
  EXPECT_TRUE(told.checkpoints.back().final());
  EXPECT_FALSE(told.checkpoints.front().final());
  const std::string& made_with = told.checkpoints.front().made_with();
  for (const std::string& part :
       {std::string("1 threads"), std::string(ComputeTypeName(ComputeType::kF32)), kernels::ProbeCpu().isa}) {
    EXPECT_NE(made_with.find(part), std::string::npos) << part << " in " << made_with;
  }
  for (const std::string& file : told.checkpoints.back().files()) {
    EXPECT_TRUE(FileExists(JoinPath(dir.CheckpointDir(6), file))) << file;
  }
  ASSERT_EQ(told.artifact.files_size(), 3);
  for (const std::string& file : told.artifact.files())
    EXPECT_TRUE(FileExists(JoinPath(dir.ArtifactDir(), file))) << file;
  const v1::TrainingResult& result = told.artifact.result();
  EXPECT_EQ(result.steps(), 6);
  ASSERT_TRUE(result.has_eval_loss_before());
  ASSERT_TRUE(result.has_eval_loss_after());
  EXPECT_LT(result.eval_loss_after(), result.eval_loss_before());
  const auto last =
      std::find_if(told.events.rbegin(), told.events.rend(), [](const auto& e) { return e.has_progress(); });
  EXPECT_EQ(last->progress().eval_loss(), result.eval_loss_after());
  EXPECT_GT(last->progress().host_bytes_used(), 0);
  EXPECT_GT(last->progress().host_bytes_planned(), 0);
}

// Looks into the attempt's folder, as the agent does, whenever a checkpoint's file is about to change.
class CheckpointLooks final : public DiskSeam {
 public:
  explicit CheckpointLooks(const attempt::AttemptDir& dir) : dir_(dir) { InstallDiskSeam(this); }
  ~CheckpointLooks() override { InstallDiskSeam(nullptr); }
  int Before(const DiskChange& change) override {
    if (change.path.find("state.json") == std::string::npos) return 0;
    ++looks_;
    seen_ += dir_.WritesCheckpoint();
    return 0;
  }
  int looks() const { return looks_; }
  int seen() const { return seen_; }

 private:
  const attempt::AttemptDir dir_;
  int looks_ = 0;
  int seen_ = 0;
};

TEST_F(RunAttemptTest, TheAgentSeesThatACheckpointIsBeingWritten) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  const CheckpointLooks looks(dir);
  ASSERT_EQ(Run(dir).reason(), v1::TRAINER_EXIT_SUCCEEDED) << log_;
  EXPECT_GE(looks.looks(), 3) << "one for each checkpoint, at least";
  EXPECT_EQ(looks.seen(), looks.looks());
  EXPECT_FALSE(dir.WritesCheckpoint());
}

TEST_F(RunAttemptTest, AHeldOutLossIsOfTheStepThatWasEvaluated) {
  spec_.mutable_spec()->mutable_hyperparameters()->set_eval_every_steps(3);
  const attempt::AttemptDir dir = Make("a", Chats(40));
  ASSERT_EQ(Run(dir).reason(), v1::TRAINER_EXIT_SUCCEEDED) << log_;
  // Of what a step's points say the last counts. The first carries the evaluation before it.
  std::map<int64_t, v1::TrainingProgress> points;
  int evaluations = 0;
  for (const v1::TrainerEvent& event : Read(dir).events) {
    if (!event.has_progress()) continue;
    points[event.progress().step()] = event.progress();
    evaluations += event.progress().has_eval_loss();
  }
  EXPECT_EQ(evaluations, 3);
  ASSERT_EQ(points.size(), 6u);
  EXPECT_EQ(points[1].eval_step(), 0);
  EXPECT_TRUE(points[1].has_eval_step());
  for (const int64_t step : {3, 6}) EXPECT_EQ(points[step].eval_step(), step);
  for (const int64_t step : {2, 4, 5}) EXPECT_FALSE(points[step].has_eval_loss()) << step;
  EXPECT_NE(points[3].eval_loss(), points[1].eval_loss());
}

TEST_F(RunAttemptTest, AResumedRunEndsWithTheSameBytes) {
  const attempt::AttemptDir whole = Make("whole", Chats(40));
  ASSERT_EQ(Run(whole).reason(), v1::TRAINER_EXIT_SUCCEEDED);
  const attempt::AttemptDir rest = Make("rest", Chats(40));
  ResumeFrom(whole, 2, rest);
  ASSERT_EQ(Run(rest).reason(), v1::TRAINER_EXIT_SUCCEEDED) << log_;
  EXPECT_EQ(Read(rest).started.first_step(), 2);
  EXPECT_EQ(Read(rest).steps, (std::vector<int64_t>{3, 4, 5, 6}));
  EXPECT_EQ(Adapter(rest), Adapter(whole));
  EXPECT_GT(Adapter(rest).size(), 1000u);
  // From the final checkpoint nothing is trained again.
  const attempt::AttemptDir last = Make("last", Chats(40));
  ResumeFrom(whole, 6, last);
  ASSERT_EQ(Run(last).reason(), v1::TRAINER_EXIT_SUCCEEDED) << log_;
  EXPECT_TRUE(Read(last).steps.empty());
  EXPECT_EQ(Adapter(last), Adapter(whole));
  EXPECT_EQ(Read(last).artifact.result().eval_loss_before(), Read(whole).artifact.result().eval_loss_before());
}

TEST_F(RunAttemptTest, ACheckpointOfOtherDataIsRefused) {
  const attempt::AttemptDir whole = Make("whole", Chats(40));
  ASSERT_EQ(Run(whole).reason(), v1::TRAINER_EXIT_SUCCEEDED);
  const attempt::AttemptDir other = Make("other", Chats(41));
  ResumeFrom(whole, 2, other);
  const v1::TrainerExit exit = Run(other);
  EXPECT_EQ(exit.reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(exit.failure(), v1::INVALID_CHECKPOINT);
}

TEST_F(RunAttemptTest, ARunThatNoCheckpointCouldHoldIsRefusedBeforeItTrains) {
  v1::Hyperparameters* hyper = spec_.mutable_spec()->mutable_hyperparameters();
  hyper->clear_max_steps();
  hyper->set_epochs(limits::kMaxEpochs);
  hyper->set_packing(false);
  hyper->set_max_sequence_length(2);
  hyper->set_train_on_responses_only(false);
  hyper->set_eval_examples(0);
  std::string lines;
  for (int i = 0; i <= limits::kMaxSteps / limits::kMaxEpochs; ++i) lines += "{\"text\":\"a\"}\n";
  const attempt::AttemptDir dir = Make("a", lines);
  for (const v1::AttemptKind kind : {v1::ATTEMPT_KIND_VALIDATE, v1::ATTEMPT_KIND_TRAIN}) {
    spec_.set_kind(kind);
    const v1::TrainerExit exit = Run(dir);
    EXPECT_EQ(exit.failure(), v1::INVALID_FIELD) << exit.message();
    EXPECT_TRUE(exit.user_can_fix());
    EXPECT_NE(exit.message().find("epochs is 1000"), std::string::npos) << exit.message();
  }
  EXPECT_TRUE(Read(dir).steps.empty());
}

TEST_F(RunAttemptTest, AStopLeavesACheckpointOfItsStep) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  ASSERT_EQ(::kill(::getpid(), SIGTERM), 0);
  // Seen before the engine is made: nothing was trained, nothing is lost.
  EXPECT_EQ(Run(dir).reason(), v1::TRAINER_EXIT_CHECKPOINTED);
  EXPECT_TRUE(Read(dir).checkpoints.empty());
}

TEST_F(RunAttemptTest, ACancelKeepsNothing) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  ASSERT_EQ(::kill(::getpid(), SIGUSR1), 0);
  EXPECT_EQ(Run(dir).reason(), v1::TRAINER_EXIT_CANCELLED);
  EXPECT_TRUE(Read(dir).checkpoints.empty());
  EXPECT_EQ(Adapter(dir), "");
}

TEST_F(RunAttemptTest, ASignalEndsTheReadingOfTheData) {
  const attempt::AttemptDir dir = Make("attempt", Chats(40));
  for (const v1::AttemptKind kind : {v1::ATTEMPT_KIND_VALIDATE, v1::ATTEMPT_KIND_TRAIN}) {
    spec_.set_kind(kind);
    signals_ = nullptr;
    signals_ = std::make_unique<SignalInbox>();
    ASSERT_EQ(::kill(::getpid(), SIGTERM), 0);
    EXPECT_EQ(Run(dir).reason(), v1::TRAINER_EXIT_CHECKPOINTED);
    ASSERT_EQ(::kill(::getpid(), SIGUSR1), 0);
    EXPECT_EQ(Run(dir).reason(), v1::TRAINER_EXIT_CANCELLED);
    EXPECT_EQ(Read(dir).report.examples(), 0) << "nothing was read to its end";
  }
}

TEST_F(RunAttemptTest, WithoutALeaseItHoldsUntilASignal) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  v1::LeaseFile lease;
  lease.set_lease_epoch(1);
  lease.set_deadline_boot_nanos(clock_.BootNanos());
  ASSERT_TRUE(dir.WriteLease(lease).ok());
  // The hold itself asks for the stop, once it has begun.
  std::string log;
  auto events = Events::Open(dir.EventsPath(), &clock_);
  ASSERT_TRUE(events.ok());
  AttemptContext context{dir,
                         spec_,
                         {temp_.At("model"), dir.DatasetPath(), ""},
                         &clock_,
                         signals_.get(),
                         &*events,
                         [&log](const std::string& line) {
                           log += line + "\n";
                           if (line.find("holding") == std::string::npos) return;
                           ASSERT_EQ(::kill(::getpid(), SIGTERM), 0);
                         },
                         false};
  const v1::TrainerExit exit = RunAttempt(context);
  EXPECT_EQ(exit.reason(), v1::TRAINER_EXIT_CHECKPOINTED) << exit.message();
  const Told told = Read(dir);
  EXPECT_EQ(told.holds, (std::vector<bool>{true, false}));
  EXPECT_TRUE(told.checkpoints.empty());  // no update was made: there is nothing to keep
  EXPECT_TRUE(told.steps.empty());
}

TEST_F(RunAttemptTest, ALeaseOfAnotherEpochEndsIt) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  v1::LeaseFile lease;
  lease.set_lease_epoch(2);
  lease.set_deadline_boot_nanos(clock_.BootNanos() + int64_t{1'000'000'000'000});
  ASSERT_TRUE(dir.WriteLease(lease).ok());
  EXPECT_EQ(Run(dir).reason(), v1::TRAINER_EXIT_LEASE_LOST);
  EXPECT_TRUE(Read(dir).steps.empty());
}

TEST_F(RunAttemptTest, AnErrorAtAFailpointIsAFailureWithItsMessage) {
  for (const char* name : {"train_step_3", "train_checkpoint_written", "train_artifact_written"}) {
    SCOPED_TRACE(name);
    const attempt::AttemptDir dir = Make(name, Chats(40));
    ArmFailpoint(name, "error");
    const v1::TrainerExit exit = Run(dir);
    DisarmFailpoints();
    EXPECT_EQ(exit.reason(), v1::TRAINER_EXIT_FAILED);
    EXPECT_EQ(exit.failure(), v1::INTERNAL);
    EXPECT_NE(exit.message().find(name), std::string::npos) << exit.message();
  }
}

TEST_F(RunAttemptTest, ValidationReportsGoodData) {
  spec_.set_kind(v1::ATTEMPT_KIND_VALIDATE);
  spec_.mutable_spec()->mutable_hyperparameters()->clear_max_steps();
  spec_.mutable_spec()->mutable_hyperparameters()->set_epochs(2);
  spec_.mutable_spec()->mutable_hyperparameters()->set_packing(false);
  const attempt::AttemptDir dir = Make("a", Chats(40));
  EXPECT_EQ(Run(dir).reason(), v1::TRAINER_EXIT_SUCCEEDED);
  const v1::DataReport report = Read(dir).report;
  EXPECT_EQ(report.examples(), 40);
  EXPECT_EQ(report.eval_examples(), 4);
  EXPECT_EQ(report.error_count(), 0);
  EXPECT_EQ(report.total_steps(), 72);
  EXPECT_GT(report.tokens(), report.trained_tokens());
  EXPECT_GT(report.tokens_per_epoch(), 0);
  EXPECT_LT(report.tokens_per_epoch(), report.tokens());
  EXPECT_GT(report.longest_tokens(), 10);
  EXPECT_GT(report.length_histogram_size(), 0);
}

TEST_F(RunAttemptTest, ValidationNamesTheFirstBadLineAndCountsThem) {
  spec_.set_kind(v1::ATTEMPT_KIND_VALIDATE);
  const attempt::AttemptDir dir = Make(
      "a", Chat(1) + "{\"messages\": 3}\n" + Chat(2) + "no json \xff\n" + R"({"messages":[{"role":"user"}]})" + "\n");
  const v1::TrainerExit exit = Run(dir);
  EXPECT_EQ(exit.reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(exit.failure(), v1::INVALID_DATASET);
  EXPECT_TRUE(exit.user_can_fix());
  EXPECT_NE(exit.message().find("train.jsonl line 2, messages"), std::string::npos) << exit.message();
  EXPECT_NE(exit.message().find("2 more"), std::string::npos) << exit.message();
  const v1::DataReport report = Read(dir).report;
  EXPECT_EQ(report.error_count(), 3);
  ASSERT_EQ(report.errors_size(), 3);
  EXPECT_EQ(report.errors(1).line(), 4);
  EXPECT_EQ(report.errors(0).file_name(), "train.jsonl");
}

TEST_F(RunAttemptTest, DataThatTrainsNothingIsInvalid) {
  spec_.set_kind(v1::ATTEMPT_KIND_VALIDATE);
  for (const std::string& data : {std::string("\n\n"), Chats(3)}) {
    // Nothing at all; then as many held out as there are.
    spec_.mutable_spec()->mutable_hyperparameters()->set_eval_examples(3);
    const attempt::AttemptDir dir = Make("d" + std::to_string(data.size()), data);
    const v1::TrainerExit exit = Run(dir);
    EXPECT_EQ(exit.reason(), v1::TRAINER_EXIT_FAILED);
    EXPECT_EQ(exit.failure(), v1::INVALID_DATASET) << exit.message();
  }
}

TEST_F(RunAttemptTest, AMissingOrBrokenModelIsTheModelsFault) {
  const attempt::AttemptDir dir = Make("a", Chats(4));
  ASSERT_TRUE(WriteFileAtomic(temp_.At("model/model.safetensors"), "short").ok());
  EXPECT_EQ(Run(dir).failure(), v1::INVALID_MODEL);
  ASSERT_TRUE(RemoveTree(temp_.At("model")).ok());
  EXPECT_EQ(Run(dir).failure(), v1::INVALID_MODEL);
}

TEST_F(RunAttemptTest, AModelReplacedSinceItsDigestIsRefusedAndNotCached) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  {
    const auto model = formats::ModelSource::Open(temp_.At("model"));
    ASSERT_TRUE(model.ok());
    spec_.set_model_digest(*model->ComputeDigest());
    spec_.set_model_fingerprint(*model->Fingerprint());
  }
  spec_.set_cache_dir(temp_.At("cache"));
  WriteTinyModel(temp_.At("model"), /*seed=*/2);
  for (const v1::AttemptKind kind : {v1::ATTEMPT_KIND_TRAIN, v1::ATTEMPT_KIND_VALIDATE}) {
    spec_.set_kind(kind);
    const v1::TrainerExit exit = Run(dir);
    EXPECT_EQ(exit.failure(), v1::INVALID_MODEL) << exit.message();
    EXPECT_NE(exit.message().find("changed since the worker took their digest"), std::string::npos) << exit.message();
  }
  EXPECT_FALSE(FileExists(temp_.At("cache")));
  // With the fingerprint of what is there now it trains, and the base is kept.
  spec_.set_kind(v1::ATTEMPT_KIND_TRAIN);
  spec_.set_model_fingerprint(*formats::ModelSource::Open(temp_.At("model"))->Fingerprint());
  const attempt::AttemptDir again = Make("b", Chats(40));
  EXPECT_EQ(Run(again).reason(), v1::TRAINER_EXIT_SUCCEEDED) << log_;
  EXPECT_FALSE(ListDir(temp_.At("cache/base")).value().empty());
}

TEST_F(RunAttemptTest, ABrokenPlanIsOurFault) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  spec_.set_memory_plan_json("{\"version\": 1}");
  const v1::TrainerExit exit = Run(dir);
  EXPECT_EQ(exit.failure(), v1::INTERNAL);
  EXPECT_NE(exit.message().find("memory plan"), std::string::npos) << exit.message();
}

// The plan decides what it runs on and the spec names the device: the CPU does not stand in for a GPU that is gone.
TEST_F(RunAttemptTest, AGpuThatIsNotThereIsTheDevicesFault) {
  const attempt::AttemptDir dir = Make("a", Chats(40));
  DeviceFacts gpu;
  gpu.kind = DeviceKind::kCuda;
  gpu.isa = "sm_90";
  gpu.has_bf16 = true;
  gpu.device_bytes = int64_t{80} << 30;
  gpu.host_bytes = int64_t{8} << 30;
  spec_.mutable_spec()->mutable_hyperparameters()->set_compute_type(v1::COMPUTE_TYPE_UNSPECIFIED);
  const auto train = wire::TrainShapeOfSpec(spec_.spec(), nullptr, gpu);
  ASSERT_TRUE(train.ok()) << train.status();
  const auto plan = MakePlan(TinyModelShape(), *train, gpu, PlanBudget());
  ASSERT_TRUE(plan.ok()) << plan.status();
  spec_.set_memory_plan_json(MemoryPlanToJson(*plan));
  spec_.set_device_id("GPU-that-is-gone");
  const v1::TrainerExit exit = Run(dir);
  EXPECT_EQ(exit.reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(exit.failure(), v1::DEVICE_FAULT) << exit.message();
  EXPECT_TRUE(Read(dir).steps.empty());
}

}  // namespace
}  // namespace longhaul::trainer
