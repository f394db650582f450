#include "worker/agent/agent_core.h"

#include <gtest/gtest.h>

#include <csignal>

#include "base/env.h"
#include "base/limits.h"
#include "tests/worker/agent/agent_fixture.h"

namespace longhaul::agent {
namespace {

TEST_F(AgentTest, RunsAnAttemptToItsCommittedAdapter) {
  const v1::AttemptKey key = Start("job",
                                   "started\nstderr hello\nprogress 1\nprogress 2 1 7000000000000\ncheckpoint 2\nwarn "
                                   "a b\nprogress 3\nfinal 3\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  const auto seen = scheduler_.seen();
  const v1::AttemptStatus last = Last("job");
  EXPECT_EQ(last.phase(), v1::ATTEMPT_PHASE_ENDED);
  EXPECT_EQ(last.exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  EXPECT_TRUE(last.artifact_committed());
  EXPECT_EQ(last.result().steps(), 3);
  EXPECT_NE(last.log_tail().find("hello"), std::string::npos);
  EXPECT_EQ(last.host_bytes_peak(), 7'000'000'000'000) << "the trainer's word, for a step that nobody else saw";
  ASSERT_EQ(seen.artifacts.size(), 1u);
  EXPECT_EQ(seen.artifacts[0].artifact().files(0).path(), "adapter_model.safetensors");
  EXPECT_EQ(scheduler_.Blob(seen.artifacts[0].artifact().files(0).sha256()), "adapter");
  ASSERT_FALSE(seen.checkpoints.empty());
  EXPECT_TRUE(seen.checkpoints.back().checkpoint().final());
  EXPECT_EQ(seen.checkpoints.back().checkpoint().step(), 3);
  EXPECT_EQ(seen.checkpoints.back().checkpoint().files_size(), 2);
  // Every point at least once, in order, and the attempt's number with it.
  EXPECT_EQ(seen.steps.at("job").front(), 1);
  EXPECT_EQ(seen.steps.at("job").back(), 3);
  EXPECT_EQ(seen.warnings.at("job").front(), "a b");
  EXPECT_EQ(seen.logs.at("job"), "hello\n");
  EXPECT_EQ(seen.complete_logs.count("job"), 1u);
  EXPECT_FALSE(FileExists(Dir(key).path()));
}

TEST_F(AgentTest, TheTrainerGetsItsSpecInputsAndLease) {
  scheduler_.AddBlob("old weights");
  v1::WorkerCommand command = StartCommand("job", "until_signal\n");
  v1::AttemptSpec* spec = command.mutable_start()->mutable_spec();
  spec->mutable_resume_from()->set_step(4);
  const v1::BlobName weights = scheduler_.AddBlob("old weights");
  v1::BlobFile* file = spec->mutable_resume_from()->add_files();
  file->set_path("adapter.safetensors");
  file->set_sha256(weights.sha256());
  file->set_size_bytes(weights.size_bytes());
  const v1::BlobName eval = scheduler_.AddBlob("held out");
  spec->mutable_spec()->mutable_eval_dataset()->set_sha256(eval.sha256());
  spec->mutable_spec()->mutable_eval_dataset()->set_size_bytes(eval.size_bytes());
  const int64_t before = clock_.BootNanos();
  scheduler_.Command(command);
  const v1::AttemptKey key = Key("job");
  Trainer(key);
  const auto written = Dir(key).ReadSpec();
  ASSERT_TRUE(written.ok());
  EXPECT_EQ(written->job_id(), "job");
  EXPECT_EQ(written->lease_epoch(), 1);
  EXPECT_EQ(written->model_path(), "/models/tiny");
  EXPECT_EQ(written->model_fingerprint(), "fingerprint");
  EXPECT_EQ(written->resume_from().step(), 4);
  EXPECT_EQ(*ReadFile(Dir(key).ResumeDir() + "/adapter.safetensors", 100), "old weights");
  EXPECT_EQ(*ReadFile(Dir(key).EvalDatasetPath(), 100), "held out");
  const auto lease = Dir(key).ReadLease();
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(lease->lease_epoch(), 1);
  EXPECT_GT(lease->deadline_boot_nanos(), before + int64_t{50} * 1'000'000'000);
  EXPECT_LE(lease->deadline_boot_nanos(), clock_.BootNanos() + int64_t{60} * 1'000'000'000);
}

TEST_F(AgentTest, NoTrainerStartsWithoutALease) {
  // The lease cannot be put there: a folder with something in it has its name.
  ASSERT_TRUE(CreateDirs(Dir(Key("job")).LeasePath() + "/x").ok());
  Start("job", "started\nprogress 1\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(Last("job").exit().failure(), v1::INTERNAL);  // another attempt may fare better
  EXPECT_NE(Last("job").exit().message().find("lease"), std::string::npos) << Last("job").exit().message();
  EXPECT_TRUE(scheduler_.seen().steps["job"].empty());
}

TEST_F(AgentTest, PhasesFollowTheEvents) {
  const v1::AttemptKey key =
      Start("job", "wait a\nstarted\nwait b\nhold\nwait c\nunhold\nwait d\nfinal 9\nwait e\nartifact\nexit 1\n");
  Trainer(key);
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_STARTING));
  Release(key, "a");
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_RUNNING));
  Release(key, "b");
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_HELD));
  Release(key, "c");
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_RUNNING));
  Release(key, "d");
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_FINALIZING));
  Release(key, "e");
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_ENDED));
}

TEST_F(AgentTest, ResetConnectionsCostNeitherACheckpointNorTheJob) {
  for (const absl::Status& reset :
       {absl::InternalError("Received RST_STREAM with error code 2"), absl::UnknownError("Stream removed")}) {
    SCOPED_TRACE(reset);
    const std::string job = "job" + std::to_string(static_cast<int>(reset.code()));
    scheduler_.ResetNext(1, reset);  // of the inputs
    const v1::AttemptKey key =
        Start(job, "started\nprogress 1\nwait a\ncheckpoint 1\nwait b\nfinal 2\nartifact\nexit 1\n");
    ASSERT_TRUE(UntilStep(job, 1));
    const size_t checkpoints = scheduler_.seen().checkpoints.size();
    scheduler_.ResetNext(2, reset);
    Release(key, "a");
    ASSERT_TRUE(Until([&] { return scheduler_.seen().checkpoints.size() > checkpoints; }));
    EXPECT_EQ(scheduler_.seen().checkpoints.back().checkpoint().step(), 1);
    scheduler_.ResetNext(3, reset);
    Release(key, "b");
    ASSERT_TRUE(UntilForgotten());
    EXPECT_EQ(Last(job).exit().reason(), v1::TRAINER_EXIT_SUCCEEDED) << Last(job).exit().message();
    EXPECT_TRUE(Last(job).artifact_committed());
    begun_ = false;
  }
}

TEST_F(AgentTest, FetchesThatStallHoldUpNoCommit) {
  const v1::AttemptKey key = Start("trains", "started\nprogress 1\nwait go\ncheckpoint 1\nuntil_signal\n");
  ASSERT_TRUE(UntilStep("trains", 1));
  scheduler_.set_stalled(true);
  for (const char* job : {"one", "two", "three"}) Start(job, std::string("started\nexit 1\nstderr ") + job + "\n");
  ASSERT_TRUE(Until([&] { return scheduler_.reads_waiting() == 2; }));  // as many as the pool has threads
  Release(key, "go");
  ASSERT_TRUE(Until([&] { return !scheduler_.seen().checkpoints.empty(); }));
  EXPECT_EQ(scheduler_.reads_waiting(), 2);
  scheduler_.set_stalled(false);
  scheduler_.Stop(key, v1::STOP_MODE_CANCEL);
  ASSERT_TRUE(UntilForgotten());
}

TEST_F(AgentTest, CheckpointStopHandsTheCheckpointBackFirst) {
  const v1::AttemptKey key = Start("job", "started\nprogress 5\nuntil_signal\n");
  ASSERT_TRUE(UntilStep("job", 5));
  scheduler_.Stop(key, v1::STOP_MODE_CHECKPOINT);
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_CHECKPOINTED);
  const auto seen = scheduler_.seen();
  ASSERT_EQ(seen.checkpoints.size(), 1u);
  EXPECT_EQ(seen.checkpoints[0].checkpoint().step(), 6);
  EXPECT_EQ(seen.checkpoints[0].checkpoint().made_with(), "2 threads, avx2");
}

TEST_F(AgentTest, CancelStopsTheTrainerAndKeepsNothing) {
  const v1::AttemptKey key = Start("job", "started\nprogress 5\nuntil_signal\n");
  ASSERT_TRUE(UntilStep("job", 5));
  const ProcessId trainer = Trainer(key);
  scheduler_.Stop(key, v1::STOP_MODE_CANCEL);
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_CANCELLED);
  EXPECT_TRUE(scheduler_.seen().checkpoints.empty());
  EXPECT_FALSE(ProcessAlive(trainer));
}

TEST_F(AgentTest, FencedIsKilledAtOnceAndForgotten) {
  const v1::AttemptKey key = Start("job", "started\nprogress 5\ndeaf\n");
  ASSERT_TRUE(UntilStep("job", 5));
  const ProcessId trainer = Trainer(key);
  scheduler_.Stop(key, v1::STOP_MODE_FENCED);
  ASSERT_TRUE(UntilForgotten());
  EXPECT_FALSE(ProcessAlive(trainer));
  EXPECT_NE(Last("job").phase(), v1::ATTEMPT_PHASE_ENDED);  // nothing to report: it is not ours
  EXPECT_FALSE(FileExists(Dir(key).path()));
}

TEST_F(AgentTest, ARefusedCommitFences) {
  const v1::AttemptKey key = Start("job", "started\nprogress 5\nwait go\ncheckpoint 5\ndeaf\n");
  ASSERT_TRUE(UntilStep("job", 5));
  const ProcessId trainer = Trainer(key);
  scheduler_.Fence(key);
  Release(key, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_FALSE(ProcessAlive(trainer));
}

TEST_F(AgentTest, ACrashIsReportedWithItsSignalAndLog) {
  Start("job", "started\nprogress 1\ncheckpoint 1\nstderr what happened\ncrash\n");
  ASSERT_TRUE(UntilForgotten());
  const v1::AttemptStatus last = Last("job");
  EXPECT_EQ(last.exit().reason(), v1::TRAINER_EXIT_CRASHED);
  EXPECT_EQ(last.exit().failure(), v1::TRAINER_CRASHED);
  EXPECT_EQ(last.exit().signal(), SIGKILL);
  EXPECT_NE(last.log_tail().find("what happened"), std::string::npos);
  EXPECT_EQ(scheduler_.seen().checkpoints.size(), 1u);  // a whole checkpoint is worth keeping
}

TEST_F(AgentTest, AnEndWithoutAnEventNamesTheCode) {
  Start("job", "started\nreturn 17\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_CRASHED);
  EXPECT_NE(Last("job").exit().message().find("code 17"), std::string::npos);
}

TEST_F(AgentTest, SuccessWithoutAnAdapterIsNone) {
  Start("job", "started\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(Last("job").exit().failure(), v1::INTERNAL);
}

TEST_F(AgentTest, AValidationReportsItsData) {
  v1::WorkerCommand command = StartCommand("job", "report\nexit 1\n");
  command.mutable_start()->mutable_spec()->set_kind(v1::ATTEMPT_KIND_VALIDATE);
  scheduler_.Command(command);
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  EXPECT_EQ(Last("job").data_report().examples(), 7);
}

TEST_F(AgentTest, AModelThatIsNotHereFailsTheAttempt) {
  v1::WorkerCommand command = StartCommand("job", "started\n");
  command.mutable_start()->mutable_spec()->set_model_digest("another");
  scheduler_.Command(command);
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(Last("job").exit().failure(), v1::INTERNAL) << "it was there when it was placed: tried again, elsewhere";
}

TEST_F(AgentTest, AnAbsentDatasetFailsTheAttempt) {
  v1::WorkerCommand command = StartCommand("job", "started\n");
  command.mutable_start()->mutable_spec()->mutable_spec()->mutable_dataset()->set_sha256(std::string(64, '0'));
  scheduler_.Command(command);
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_NE(Last("job").exit().message().find("inputs"), std::string::npos);
}

TEST_F(AgentTest, AnOutageOfTheSchedulerLosesNothing) {
  const v1::AttemptKey key =
      Start("job",
            "started\nprogress 1\nwait go\nprogress 2\ncheckpoint 2\nprogress 3\nwait on\nfinal 3\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilStep("job", 1));
  const ProcessId trainer = Trainer(key);
  scheduler_.set_down(true);
  Release(key, "go");
  ASSERT_TRUE(Until([&] { return FileExists(Dir(key).CheckpointDir(2) + "/state.json"); }));
  scheduler_.CloseSessions();  // it comes back without its memory of us
  scheduler_.set_down(false);
  ASSERT_TRUE(UntilStep("job", 3));
  EXPECT_TRUE(ProcessAlive(trainer));
  Release(key, "on");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  const auto seen = scheduler_.seen();
  EXPECT_GE(seen.opens.size(), 2u);
  EXPECT_EQ(seen.opens.back().attempts_size(), 1);
  for (int64_t step = 1; step <= 3; ++step) {
    EXPECT_NE(std::count(seen.steps.at("job").begin(), seen.steps.at("job").end(), step), 0) << step;
  }
}

TEST_F(AgentTest, AllProgressIsToldBeforeTheAdapterThatEndsTheJob) {
  std::string script = "started\n";
  const int points = 2 * static_cast<int>(limits::kMaxProgressPerSync) + 7;  // more than two Syncs carry
  for (int step = 1; step <= points; ++step) script += "progress " + std::to_string(step) + "\n";
  Start("job", script + "artifact\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  const auto seen = scheduler_.seen();
  ASSERT_EQ(seen.steps_before_artifact.size(), 1u);
  EXPECT_EQ(seen.steps_before_artifact[0].size(), static_cast<size_t>(points));
}

TEST_F(AgentTest, ASuccessWhoseEndCannotBeReadAtOnceIsStillOne) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait go\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilStep("job", 1));
  Trainer(key);
  // Its trainer has the file open and goes on writing to it.
  ASSERT_TRUE(RenameFile(Dir(key).EventsPath(), temp_.At("away")).ok());
  ASSERT_TRUE(CreateDirs(Dir(key).EventsPath()).ok());
  Release(key, "go");
  ASSERT_TRUE(Until([&] { return log_.find("waiting for what it wrote last") != std::string::npos; }));
  ASSERT_TRUE(RemoveTree(Dir(key).EventsPath()).ok());
  ASSERT_TRUE(RenameFile(temp_.At("away"), Dir(key).EventsPath()).ok());
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
  EXPECT_EQ(scheduler_.seen().artifacts.size(), 1u);
}

TEST_F(AgentTest, WhyAnAdapterIsNotStoredIsNotOverwritten) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nwait made\nartifact\nwait go\nexit 1\n");
  ASSERT_TRUE(UntilStep("job", 1));
  Trainer(key);
  scheduler_.ResetNext(1, absl::DataLossError("the store is damaged"));
  Release(key, "made");
  ASSERT_TRUE(Until([&] { return log_.find("the adapter is not stored: the store is damaged") != std::string::npos; }));
  Release(key, "go");  // the trainer knows nothing of it and says that it has succeeded
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_FAILED);
  EXPECT_EQ(Last("job").exit().message(), "the adapter is not stored: the store is damaged");
}

TEST_F(AgentTest, ACancelInTheAnswerToTheLastPointComesBeforeTheAdapter) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilStep("job", 1));
  scheduler_.Stop(key, v1::STOP_MODE_CANCEL);  // with the answer that says the point has come
  ASSERT_TRUE(UntilForgotten());
  EXPECT_TRUE(scheduler_.seen().artifacts.empty());
}

TEST_F(AgentTest, TheEndIsReportedUntilItIsAcknowledged) {
  scheduler_.set_acknowledge(false);
  const v1::AttemptKey key = Start("job", "started\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilPhase("job", v1::ATTEMPT_PHASE_ENDED));
  scheduler_.CloseSessions();
  const size_t opens = scheduler_.seen().opens.size();
  ASSERT_TRUE(Until([&] { return scheduler_.seen().opens.size() > opens; }));
  EXPECT_TRUE(FileExists(Dir(key).path()));
  EXPECT_EQ(scheduler_.seen().opens.back().attempts(0).phase(), v1::ATTEMPT_PHASE_ENDED);
  scheduler_.set_acknowledge(true);
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(scheduler_.seen().artifacts.size(), 1u);
}

TEST_F(AgentTest, AnAnswerThatWasLongOnItsWayStartsNothingThatHasEnded) {
  const v1::AttemptKey key = Start("job", "started\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilForgotten());
  Start("job", "started\nartifact\nexit 1\n");   // the same key
  Start("next", "started\nartifact\nexit 1\n");  // answers are looked at in their order: with this one's, that is past
  ASSERT_TRUE(UntilPhase("next", v1::ATTEMPT_PHASE_ENDED));
  EXPECT_FALSE(FileExists(Dir(key).path()));
  EXPECT_EQ(scheduler_.seen().artifacts.size(), 2u) << "one of each";
}

TEST_F(AgentTest, DrainingHandsBackAndRefusesMore) {
  const v1::AttemptKey key = Start("job", "started\nprogress 1\nuntil_signal\n");
  ASSERT_TRUE(UntilStep("job", 1));
  Trainer(key);
  EXPECT_FALSE(scheduler_.seen().leaving);
  core_->Drain();
  ASSERT_TRUE(Until([&] { return scheduler_.seen().leaving; })) << "it is said at once, not with the hold time's end";
  Start("late", "started\n");
  ASSERT_TRUE(UntilPhase("late", v1::ATTEMPT_PHASE_ENDED));
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("job").exit().reason(), v1::TRAINER_EXIT_CHECKPOINTED);
  EXPECT_EQ(Last("late").exit().reason(), v1::TRAINER_EXIT_CHECKPOINTED);
  EXPECT_EQ(scheduler_.seen().checkpoints.size(), 1u);
}

TEST_F(AgentTest, AnIdleAgentEndsOnceItsLeavingIsKnown) {
  ASSERT_TRUE(Until([&] { return !core_->session_id().empty() && !scheduler_.seen().sync_numbers.empty(); }));
  EXPECT_FALSE(core_->drained());
  core_->Drain();
  EXPECT_FALSE(core_->drained()) << "else the scheduler would place jobs here until it misses us";
  ASSERT_TRUE(Until([&] { return scheduler_.seen().leaving; }));
  scheduler_.set_hold(false);
  ASSERT_TRUE(Until([&] { return core_->drained(); }));
}

TEST_F(AgentTest, AnIdleAgentWithoutASchedulerEndsAtOnce) {
  scheduler_.set_down(true);
  core_->Drain();
  ASSERT_TRUE(Until([&] { return core_->drained(); }));
}

TEST_F(AgentTest, TwoAttemptsSideBySide) {
  const v1::AttemptKey a = Start("a", "started\nprogress 1\nwait go\nartifact\nexit 1\n");
  const v1::AttemptKey b = Start("b", "started\nprogress 1\nwait go\nartifact\nexit 1\n");
  ASSERT_TRUE(UntilStep("a", 1));
  ASSERT_TRUE(UntilStep("b", 1));
  Release(b, "go");
  ASSERT_TRUE(UntilPhase("b", v1::ATTEMPT_PHASE_ENDED));
  EXPECT_EQ(Last("a").phase(), v1::ATTEMPT_PHASE_RUNNING);
  Release(a, "go");
  ASSERT_TRUE(UntilForgotten());
  EXPECT_EQ(Last("a").exit().reason(), v1::TRAINER_EXIT_SUCCEEDED);
}

TEST_F(AgentTest, LocalCheckpointsGoOnceANewerOneIsStored) {
  const v1::AttemptKey key = Start("job", "started\ncheckpoint 1\nwait a\ncheckpoint 2\nwait b\n");
  ASSERT_TRUE(Until([&] { return scheduler_.seen().checkpoints.size() == 1; }));
  Release(key, "a");
  ASSERT_TRUE(Until([&] { return scheduler_.seen().checkpoints.size() == 2; }));
  ASSERT_TRUE(Until([&] { return !FileExists(Dir(key).CheckpointDir(1)); }));
  EXPECT_TRUE(FileExists(Dir(key).CheckpointDir(2)));
}

TEST_F(AgentTest, AHostileKeyTouchesNoFile) {
  v1::WorkerCommand command = StartCommand("../../evil", "started\n");
  scheduler_.Command(command);
  Start("good", "started\nartifact\nexit 1\n");
  ASSERT_TRUE(Until([&] { return scheduler_.seen().last.count("good") > 0 && core_->attempts() == 0; }));
  EXPECT_EQ(scheduler_.seen().last.count("../../evil"), 0u);
  EXPECT_FALSE(FileExists(temp_.path() + "/../evil.1.1"));
}

}  // namespace
}  // namespace longhaul::agent
