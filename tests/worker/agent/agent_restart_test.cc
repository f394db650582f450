// An agent that is killed and started again finds what the one before it left.
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>

#include "base/env.h"
#include "base/failpoints.h"
#include "model/memory_plan.h"
#include "tests/model/shapes.h"
#include "tests/worker/agent/agent_fixture.h"
#include "worker/formats/model_source.h"

namespace longhaul::agent {
namespace {

TEST_F(AgentTest, ARestartedAgentFindsALiveTrainer) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait go\nprogress 2\nfinal 2\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilStep("job", 1));
  const ProcessId trainer = Trainer(key);
  StartAgent();
  EXPECT_EQ(core_->attempts(), 1u);
  EXPECT_TRUE(ProcessAlive(trainer));
  const size_t opens = scheduler_.seen().opens.size();
  ASSERT_TRUE(Until([&] { return scheduler_.seen().opens.size() > opens; }));
  EXPECT_EQ(scheduler_.seen().opens.back().attempts(0).key().job_id(), "job");
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  EXPECT_EQ(Last("job").exit().signal(), 0);
  EXPECT_EQ(scheduler_.seen().artifacts.size(), 1u);
}

TEST_F(AgentTest, ARestartedAgentReportsWhatEndedWithoutIt) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait go\nfinal 2\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilStep("job", 1));
  const ProcessId trainer = Trainer(key);
  StopAgent();
  Release(key, "go");
  // Our child still: it ends while no agent looks.
  while (!ReapProcess(trainer).exited) ::usleep(1'000);
  StartAgent();
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  EXPECT_EQ(scheduler_.seen().artifacts.size(), 1u);
  EXPECT_EQ(scheduler_.seen().checkpoints.back().checkpoint().step(), 2);
}

TEST_F(AgentTest, ATrainerThatDiedWithoutItsAgentHasCrashed) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\ndeaf\n");
  ASSERT_TRUE(UntilStep("job", 1));
  const ProcessId trainer = Trainer(key);
  StopAgent();
  ASSERT_TRUE(SignalProcess(trainer, SIGKILL).ok());
  while (!ReapProcess(trainer).exited) ::usleep(1'000);
  StartAgent();
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_CRASHED);
}

TEST_F(AgentTest, WhatIsCommittedIsNotCommittedAgain) {
  scheduler_.set_acknowledge(false);
  const v1::AttemptKey key = Start("job", "started\nstderr one\ncheckpoint 1\nwait go\nartifact\nexit 1\n");
  ASSERT_TRUE(Until([&] { return Dir(key).ReadAgentNote().ok(); }));
  Trainer(key);
  StartAgent();
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_RUNNING));
  EXPECT_EQ(scheduler_.seen().checkpoints.size(), 1u);
  Release(key, "go");
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_ENDED));
  StartAgent();
  scheduler_.set_acknowledge(true);
  ASSERT_TRUE(UntilForgotten());
  const auto seen = scheduler_.seen();
  EXPECT_EQ(seen.checkpoints.size(), 1u);
  EXPECT_EQ(seen.artifacts.size(), 1u);
  EXPECT_EQ(seen.logs.at("job"), "one\n");  // once, though each agent begins at its first byte
  EXPECT_TRUE(Last("job").artifact_committed());
}

TEST_F(AgentTest, ALogWhoseEndTheSchedulerLostIsSentAgain) {
  const v1::AttemptKey key = Start("job", "started\nstderr one\nwait go\nstderr two\nartifact\nexit 1\n");
  ASSERT_TRUE(Until([&] { return scheduler_.seen().logs["job"] == "one\n"; }));
  Trainer(key);
  scheduler_.CutLog("job", 1);
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(scheduler_.seen().logs.at("job"), "one\ntwo\n");
  EXPECT_EQ(scheduler_.seen().complete_logs.count("job"), 1u);
}

TEST_F(AgentTest, ALogOfWhichAPartWasRotatedAwaySaysSoAndGoesOn) {
  const v1::AttemptKey key = Start("job", "started\nstderr one\nwait go\nstderr two\nartifact\nexit 1\n");
  ASSERT_TRUE(Until([&] { return scheduler_.seen().logs["job"] == "one\n"; }));
  Trainer(key);
  StopAgent();
  // What was written while no agent looked: up to 1000 it is gone, "kept" is in the rotated file, "one" counts as the
  // first line of the new one.
  ASSERT_TRUE(WriteFileAtomic(Dir(key).StderrPath() + ".1000", "kept\n").ok());
  StartAgent();
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  const std::string log = scheduler_.seen().logs.at("job");
  EXPECT_EQ(log.substr(0, 6), "one\n\n[") << log;
  EXPECT_EQ(log.find("missing"), log.rfind("missing")) << log;
  EXPECT_EQ(log.substr(log.find("]\n") + 2), "kept\none\ntwo\n") << log;
  EXPECT_EQ(scheduler_.seen().complete_logs.count("job"), 1u);
}

TEST_F(AgentTest, WhatALongOutageGatheredComesInSyncsThatTheSchedulerTakes) {
  // Twelve attempts with 400 KB each: more than a message may have.
  std::string script = "started\nprogress 1\nwait go\n";
  for (int i = 0; i < 100; ++i) script += "warn " + std::to_string(i) + " " + std::string(4000, 'w') + "\n";
  script += "artifact\nexit 1\n";
  std::vector<v1::AttemptKey> keys;
  for (int i = 0; i < 12; ++i) keys.push_back(Start("job" + std::to_string(i), script));
  for (const v1::AttemptKey& key : keys) ASSERT_TRUE(UntilStep(key.job_id(), 1));
  scheduler_.set_down(true);
  for (const v1::AttemptKey& key : keys) {
    const ProcessId trainer = Trainer(key);
    Release(key, "go");
    ASSERT_TRUE(Until([&] { return !ProcessAlive(trainer); }));
  }
  scheduler_.set_down(false);
  ASSERT_TRUE(UntilForgotten());
  const auto seen = scheduler_.seen();
  for (const v1::AttemptKey& key : keys) {
    EXPECT_GE(seen.warnings.at(key.job_id()).size(), 100u);
    EXPECT_EQ(seen.warnings.at(key.job_id()).back().substr(0, 3), "99 ") << "before its end is told";
    EXPECT_EQ(seen.last.at(key.job_id()).exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  }
}

// Its pid may be gone and its inputs be there: what had succeeded would run again.
TEST_F(AgentTest, AnAgentThatDiesOverAFolderOfWhatHasEndedRunsNothingAgain) {
  ArmFailpoint("agent_spec_removed", "error");  // as where it dies: the rest of the folder stays
  const v1::AttemptKey key = Start("job", "started\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  DisarmFailpoints();
  EXPECT_FALSE(FileExists(Dir(key).SpecPath()));
  ASSERT_TRUE(FileExists(Dir(key).DatasetPath()));
  StartAgent();
  EXPECT_EQ(core_->attempts(), 0u);
  EXPECT_FALSE(FileExists(Dir(key).path()));
}

TEST_F(AgentTest, ARestartDuringTheFetchBeginsItAgain) {
  v1::AttemptSpec spec = StartCommand("job", "started\nartifact\nexit 1\n").start().spec();
  spec.set_job_id("job");
  spec.set_attempt(1);
  spec.set_lease_epoch(1);
  ASSERT_TRUE(Dir(Key("job")).Create().ok());
  ASSERT_TRUE(Dir(Key("job")).WriteSpec(spec).ok());
  ASSERT_TRUE(WriteFileAtomic(Dir(Key("job")).DatasetPath() + ".part", "star").ok());
  StartAgent();
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
}

// The host was started anew: the clock that a lease counts on begins again, and a deadline of before is far away.
TEST_F(AgentTest, ALeaseOfAnotherBootGivesWayToTheNextOne) {
  v1::AttemptSpec spec = StartCommand("job", "started\nprogress 1\nwait go\nartifact\nexit 1\n").start().spec();
  spec.set_job_id("job");
  spec.set_attempt(1);
  spec.set_lease_epoch(1);
  const attempt::AttemptDir dir = Dir(Key("job"));
  ASSERT_TRUE(dir.Create().ok());
  ASSERT_TRUE(dir.WriteSpec(spec).ok());
  v1::LeaseFile lease;
  lease.set_lease_epoch(1);
  const int64_t far = clock_.BootNanos() + int64_t{30} * 86'400 * 1'000'000'000;
  lease.set_deadline_boot_nanos(far);
  lease.set_boot_id("another boot");
  ASSERT_TRUE(dir.WriteLease(lease).ok());
  StartAgent();
  Trainer(Key("job"));
  ASSERT_TRUE(UntilStep("job", 1));
  const absl::StatusOr<v1::LeaseFile> now = dir.ReadLease();
  ASSERT_TRUE(now.ok()) << now.status();
  EXPECT_LT(now->deadline_boot_nanos(), far);
  EXPECT_EQ(now->boot_id(), attempt::BootId());
  Release(Key("job"), "go");
  ASSERT_TRUE(UntilForgotten());
}

TEST_F(AgentTest, AnAttemptFencedWhileTheAgentWasAwayIsKilled) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\ndeaf\n");
  ASSERT_TRUE(UntilStep("job", 1));
  const ProcessId trainer = Trainer(key);
  scheduler_.Fence(key);
  StartAgent();
  ASSERT_TRUE(UntilForgotten());
  EXPECT_FALSE(ProcessAlive(trainer));
  EXPECT_FALSE(FileExists(Dir(key).path()));
}

TEST_F(AgentTest, ASecondTrainerInAFolderLeadsToTheFirst) {
  // The agent died after the spawn and before the trainer wrote its pid; its successor spawns again.
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait go\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilStep("job", 1));
  const ProcessId first = Trainer(key);
  StopAgent();
  const std::string pid = *ReadFile(Dir(key).PidPath(), 100);
  ASSERT_TRUE(RemoveFile(Dir(key).PidPath()).ok());
  StartAgent();
  // It is back before the second one has looked at the lock.
  ASSERT_TRUE(WriteFileAtomic(Dir(key).PidPath(), pid).ok());
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_RUNNING));
  EXPECT_TRUE(ProcessAlive(first));
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
}

TEST_F(AgentTest, TheHolderOfAFolderIsLookedForUntilItWritesItsPid) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait go\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilStep("job", 1));
  const ProcessId first = Trainer(key);
  StopAgent();
  const std::string pid = *ReadFile(Dir(key).PidPath(), 100);
  ASSERT_TRUE(RemoveFile(Dir(key).PidPath()).ok());
  StartAgent();
  ASSERT_TRUE(Until([&] { return log_.find("holds the folder; looking for it") != std::string::npos; }));
  ASSERT_TRUE(WriteFileAtomic(Dir(key).PidPath(), pid).ok());
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED) << Last("job").exit().message();
  EXPECT_FALSE(ProcessAlive(first));
}

// Two trainers never share a processor, whichever agent has started the other.
TEST_F(AgentTest, TrainersComputeOnProcessorsOfTheirOwn) {
  const std::vector<int> all = ProcessorsOf(0);
  if (all.size() < 2) GTEST_SKIP() << "one processor";
  TrainShape train;
  train.sequence_length = 64;
  train.cpu_threads = 1;
  const absl::StatusOr<MemoryPlan> plan = MakePlan(SmolLm2Shape(), train, SmallCpu(), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto start = [&](const std::string& job) {
    v1::WorkerCommand command = StartCommand(job, "started\nprogress 1\nuntil_signal\n");
    command.mutable_start()->mutable_spec()->set_memory_plan_json(MemoryPlanToJson(*plan));
    scheduler_.Command(command);
    EXPECT_TRUE(UntilStep(job, 1));
    return ProcessorsOf(Trainer(Key(job)).pid);
  };
  const std::vector<int> first = start("first");
  EXPECT_EQ(first, std::vector<int>{all[0]});
  StartAgent();
  const std::vector<int> second = start("second");
  EXPECT_EQ(second, std::vector<int>{all[1]});
  if (all.size() > 2) return;
  // More than there are: these run wherever the kernel puts them.
  EXPECT_EQ(start("third"), all);
}

// Found by a look: told in a new session, while what runs goes on.
TEST_F(AgentTest, ModelsThatHaveChangedAreToldInANewSession) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait go\nprogress 2\nfinal 2\nartifact\nexit 1\n");
  Trainer(key);
  ASSERT_TRUE(UntilStep("job", 1));
  ModelOffer offer;
  offer.push_back({{}, {"/models/new", "fingerprint", ""}});
  offer.back().proto.set_name("new");
  offer.back().proto.set_digest("other");
  int looks = 0;  // by the looks' thread alone, until the agent is gone
  change_options_ = [&](AgentOptions* options) {
    options->model_look_ms = 1;
    options->look_for_models = [&](bool) -> absl::StatusOr<std::optional<ModelOffer>> {
      ++looks;
      if (looks == 1) return absl::UnavailableError("a folder cannot be read");
      return looks == 3 ? std::optional<ModelOffer>(offer) : std::nullopt;
    };
  };
  StartAgent();
  ASSERT_TRUE(Until([&] {
    const auto opens = scheduler_.seen().opens;
    return !opens.empty() && opens.back().inventory().models_size() == 1;
  }));
  EXPECT_NE(log_.find("the models stay as they were: a folder cannot be read"), std::string::npos) << log_;
  const v1::OpenSessionRequest open = scheduler_.seen().opens.back();
  EXPECT_EQ(open.inventory().models(0).name(), "new");
  EXPECT_EQ(open.attempts_size(), 1) << "it is told with what runs";
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED) << "with the model that it had";
  EXPECT_TRUE(log_.find("the models have changed: new") != std::string::npos) << log_;
  StopAgent();  // its looks use what is ours
}

// Found by a start, before a look: the attempt fails as one that goes on elsewhere, and the model is offered no more.
TEST_F(AgentTest, AModelThatWasReplacedIsNotGivenToAnAttempt) {
  const std::string path = temp_.At("tiny.gguf");
  ASSERT_TRUE(WriteFileAtomic(path, "as it was").ok());
  std::atomic<bool> ready = false;
  change_options_ = [&](AgentOptions* options) {
    options->models["digest"] = {path, formats::ModelSource::FingerprintOf({path}).value(), "", {path}};
    options->inventory.add_models()->set_digest("digest");
    options->model_look_ms = 1;
    options->look_for_models = [&ready, path](bool anyway) -> absl::StatusOr<std::optional<ModelOffer>> {
      if (!anyway || !ready) return std::nullopt;
      ModelOffer offer;
      offer.push_back({{}, {path, formats::ModelSource::FingerprintOf({path}).value(), "", {path}}});
      offer.back().proto.set_digest("as it is now");
      return std::optional<ModelOffer>(offer);
    };
  };
  StartAgent();
  Start("first", "started\nprogress 1\nfinal 1\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("first").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  ASSERT_TRUE(WriteFileAtomic(path, "another one").ok());
  const size_t opens = scheduler_.seen().opens.size();
  Start("second", "started\nexit 1\n");
  ASSERT_TRUE(UntilPhase("second", v1::ATTEMPT_PHASE_ENDED));
  EXPECT_EQ(Last("second").exit().failure(), v1::INTERNAL) << "which is tried again";
  EXPECT_NE(Last("second").exit().message().find("have changed"), std::string::npos) << Last("second").exit().message();
  ASSERT_TRUE(Until([&] { return scheduler_.seen().opens.size() > opens; }));
  EXPECT_EQ(scheduler_.seen().opens.back().inventory().models_size(), 0) << "taken back at once";
  ready = true;
  ASSERT_TRUE(Until([&] { return scheduler_.seen().opens.back().inventory().models_size() == 1; }));
  EXPECT_EQ(scheduler_.seen().opens.back().inventory().models(0).digest(), "as it is now");
  StopAgent();  // its looks use what is ours
}

// What lies beside a model is no part of it: no attempt fails for it, and nobody is told of another model.
TEST_F(AgentTest, AFileBesideAModelWithdrawsNothing) {
  const std::string path = temp_.At("models/tiny");
  ASSERT_TRUE(CreateDirs(path).ok());
  ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "weights"), "as they were").ok());
  std::atomic<int> looks = 0;
  change_options_ = [&](AgentOptions* options) {
    const std::vector<std::string> own = {JoinPath(path, "weights")};
    options->models["digest"] = {path, formats::ModelSource::FingerprintOf(own).value(), "", own};
    options->inventory.add_models()->set_digest("digest");
    options->model_look_ms = 1;
    options->look_for_models = [&looks, offer = ModelOffer{{options->inventory.models(0), options->models["digest"]}}](
                                   bool) -> absl::StatusOr<std::optional<ModelOffer>> {
      ++looks;
      return std::optional<ModelOffer>(offer);
    };
  };
  StartAgent();
  ASSERT_TRUE(Until([&] { return !scheduler_.seen().opens.empty(); }));
  ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "README.md"), "about it").ok());
  Start("first", "started\nprogress 1\nfinal 1\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("first").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED) << Last("first").exit().message();
  const int before = looks;
  ASSERT_TRUE(Until([&] { return looks > before + 2; }));
  EXPECT_EQ(scheduler_.seen().opens.size(), 1u);
  // Its own files are.
  ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "weights"), "others").ok());
  Start("second", "started\nexit 1\n");
  ASSERT_TRUE(UntilPhase("second", v1::ATTEMPT_PHASE_ENDED));
  EXPECT_NE(Last("second").exit().message().find("have changed"), std::string::npos) << Last("second").exit().message();
  StopAgent();  // its looks use what is ours
}

TEST_F(AgentTest, FoldersThatNameNoAttemptAreRemoved) {
  StopAgent();
  ASSERT_TRUE(CreateDirs(temp_.At("attempts/half/inputs")).ok());
  StartAgent();
  EXPECT_EQ(core_->attempts(), 0u);
  EXPECT_TRUE(ListDir(temp_.At("attempts"))->empty());
}

TEST_F(AgentTest, AFolderThatCannotBeReadStopsTheAgentAndStays) {
  StopAgent();
  const std::string spec = temp_.At("attempts/newer/spec.textproto");
  ASSERT_TRUE(CreateDirs(temp_.At("attempts/newer")).ok());
  ASSERT_TRUE(WriteFileAtomic(spec, "field_of_a_newer_build: 1").ok());
  MakeAgent();
  const absl::Status recovered = core_->Recover();
  EXPECT_EQ(recovered.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(recovered.message().find("attempts/newer"), std::string::npos) << recovered;
  EXPECT_TRUE(FileExists(spec));
}

}  // namespace
}  // namespace longhaul::agent
