// Who starts where, at which point of the plan, in which order; and why the others wait. Exact, on values.
#include "server/core/scheduler.h"

#include "base/format.h"
#include "base/limits.h"
#include "tests/server/core/scheduler_rig.h"

namespace longhaul::server {
namespace {

using ::testing::HasSubstr;
using SchedulerTest = SchedulerRig;

TEST_F(SchedulerTest, AloneAJobGetsTheWholeDevice) {
  AddWorker("w1");
  AddJob("a", 1);
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a>w1:whole");
  EXPECT_EQ(result.starts[0].device_id, "cpu-0");
  EXPECT_EQ(result.starts[0].demand.host_bytes, 4 * kGiB);
}

TEST_F(SchedulerTest, WhileAnotherWaitsWholeIsLeftOut) {
  AddWorker("w1");
  AddJob("a", 1);
  AddJob("b", 1);
  AddJob("c", 1);
  // a: balanced, 2 GiB; b: balanced, 2; c is the last one: whole where it fits now, 4.
  EXPECT_EQ(PassText(), "a>w1:balanced b>w1:balanced c>w1:whole");
}

TEST_F(SchedulerTest, AJobForAnotherClassDoesNotTakeTheWholeDeviceAway) {
  AddWorker("w1");
  AddGpuWorker("w2", 8 * kGiB).models[0].digest = "other";
  AddJob("a", 1);
  AddJob("b", 1).model_digest = "other";
  EXPECT_EQ(PassText(), "a>w1:whole b>w2:whole");
}

TEST_F(SchedulerTest, WholeStaysWhereNoThreadIsLeftForOthers) {
  AddWorker("w1");
  AddJob("a", 1, 4);
  AddJob("b", 1, 1);
  EXPECT_EQ(PassText(), "a>w1:whole b?WAITING_FOR_CPU_THREADS@1");
}

TEST_F(SchedulerTest, SmallerPointWhereTheLargerDoesNotFitNow) {
  AddWorker("w1", 3 * kGiB);
  AddJob("a", 1);
  EXPECT_EQ(PassText(), "a>w1:balanced");
  jobs_[0].train_shape.sequence_length = 2 * (1 << 20);
  EXPECT_EQ(PassText(), "a>w1:minimum");
}

TEST_F(SchedulerTest, DeviceShareChoosesThePoint) {
  AddWorker("w1", 64 * kGiB);
  AddFitJob("fit", 1);
  Job& bytes = AddJob("bytes", 1);
  bytes.device_share = DeviceShare::kBytes;
  bytes.device_share_bytes = 4 * kGiB;
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "fit>w1:minimum bytes>w1:whole");
  EXPECT_EQ(result.starts[1].demand.host_bytes, 4 * kGiB);
}

TEST_F(SchedulerTest, OrderIsClassThenShareThenAge) {
  AddWorker("w1", kGiB);
  AddJob("old", 1).project = "rich";
  AddJob("low", 1).priority = PriorityClass::kLow;
  AddJob("poor2", 1).project = "poor";
  AddJob("poor1", 1).project = "poor";
  AddJob("high", 1).priority = PriorityClass::kHigh;
  std::swap(jobs_[2].id, jobs_[3].id);
  shares_ = {{"rich", 0.5}, {"poor", 0.25}, {"default", 0.9}};
  EXPECT_EQ(PassText(),
            "high>w1:minimum poor1?WAITING_FOR_HOST_RAM@1 poor2?WAITING_FOR_HOST_RAM@2 old?WAITING_FOR_HOST_RAM@3 "
            "low?WAITING_FOR_HOST_RAM@4");
}

TEST_F(SchedulerTest, ProjectsOfEqualShareTakeTurnsByAge) {
  AddWorker("w1", kGiB);
  for (const char* id : {"a1", "b1", "a2", "b2", "c1"}) AddJob(id, 1).project = std::string(1, id[0]);
  shares_ = {{"c", 0.1}};
  EXPECT_EQ(PassText(),
            "a1>w1:minimum b1?WAITING_FOR_HOST_RAM@1 a2?WAITING_FOR_HOST_RAM@2 b2?WAITING_FOR_HOST_RAM@3 "
            "c1?WAITING_FOR_HOST_RAM@4");
}

TEST_F(SchedulerTest, EachResourceHasItsReason) {
  Worker& worker = AddGpuWorker("w1", 4 * kGiB);
  AddJob("a", 4);
  AddJob("b", 1);
  EXPECT_EQ(PassText(), "a>w1:minimum b?WAITING_FOR_VRAM@1");
  EXPECT_EQ(DetailOf(Pass(), 0), "needs 1.00 GiB of device memory; device gpu-0 of worker w1 has 0 B free of 4.00 GiB");
  Run("w1", "r", 0, 0, 100).need.disk_bytes = 100 * kGiB;
  EXPECT_EQ(PassText(), "a?WAITING_FOR_DISK@1 b?WAITING_FOR_DISK@2");
  running_["w1"][0].need = {0, 64 * kGiB, 0, 0};
  EXPECT_EQ(PassText(), "a?WAITING_FOR_HOST_RAM@1 b?WAITING_FOR_HOST_RAM@2");
  running_["w1"][0].need = {0, 0, 0, 64};
  EXPECT_EQ(PassText(), "a?WAITING_FOR_CPU_THREADS@1 b?WAITING_FOR_CPU_THREADS@2");
  worker.disk_bytes_total = 1000;
  EXPECT_EQ(PassText(), "a?EXCEEDS_EVERY_DEVICE@1 b?EXCEEDS_EVERY_DEVICE@2");
}

// A Sync that names more would be refused, and the worker be lost with everything that it runs.
TEST_F(SchedulerTest, AWorkerGetsNoMoreAttemptsThanItMayName) {
  AddWorker("w1", 4096 * kGiB, 4096);
  for (int i = 0; i + 2 < limits::kMaxAttemptsPerWorker; ++i) Run("w1", "r" + std::to_string(i), 0, 1, 10 + i);
  AddFitJob("a", 1);
  AddJob("v", 1).state = JobState::kValidating;
  AddFitJob("b", 1);
  AddJob("w", 1).state = JobState::kValidating;
  PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a>w1:minimum v>w1:validate b?WAITING_FOR_ATTEMPTS@1 w?WAITING_FOR_ATTEMPTS@2");
  EXPECT_EQ(DetailOf(result, 0), "needs room for another attempt; worker w1 has 1000, the most that a worker may have");
  EXPECT_EQ(DetailOf(result, 1), DetailOf(result, 0));
  ASSERT_EQ(result.reservations.size(), 1u);
  EXPECT_EQ(result.reservations[0].job_id, "b");
  EXPECT_EQ(result.reservations[0].after, std::vector<std::string>{"r0"});
  // What is fenced counts: its worker names it until it is gone.
  Run("w1", "f1", 0, 0, 30).project = "";
  Run("w1", "f2", 0, 0, 30).project = "";
  EXPECT_EQ(PassText(),
            "a?WAITING_FOR_ATTEMPTS@1 v?WAITING_FOR_ATTEMPTS@2 b?WAITING_FOR_ATTEMPTS@3 w?WAITING_FOR_ATTEMPTS@4");
}

TEST_F(SchedulerTest, SeveralJobsShareADeviceWhereAllFourResourcesDo) {
  AddGpuWorker("w1", 4 * kGiB, 2);
  for (const char* id : {"a", "b", "c", "d", "e"}) AddFitJob(id, 2);
  PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a>w1:minimum b>w1:minimum c>w1:minimum d>w1:minimum e?WAITING_FOR_VRAM@1");
  EXPECT_EQ(result.starts[1].device_id, "gpu-0");
  EXPECT_EQ(result.starts[2].device_id, "gpu-1");
  workers_[0].cpu_threads_total = 3;  // enough VRAM for four, threads for three
  EXPECT_EQ(PassText(),
            "a>w1:minimum b>w1:minimum c>w1:minimum d?WAITING_FOR_CPU_THREADS@1 e?WAITING_FOR_CPU_THREADS@2");
}

TEST_F(SchedulerTest, WhyNoWorkerTakesIt) {
  AddJob("a", 1);
  EXPECT_EQ(PassText(), "a?NO_WORKER@1");
  Worker& worker = AddWorker("w1");
  worker.draining = true;
  PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a?NO_WORKER@1");
  EXPECT_THAT(DetailOf(result, 0), HasSubstr("draining"));
  EXPECT_EQ(ExpectedIn(result, 0), -1) << "nobody can tell";
  worker.draining = false;
  worker.plan_version = kPlanVersion + 1;
  EXPECT_THAT(DetailOf(Pass(), 0), HasSubstr("another build"));
  worker.plan_version = kPlanVersion;
  worker.models[0].digest = "another";
  EXPECT_EQ(PassText(), "a?MODEL_NOT_ON_ANY_WORKER@1");
  worker.models[0].digest = kTestDigest;
  unreachable_ = {"w1"};
  EXPECT_EQ(PassText(), "a?NO_WORKER@1");
}

TEST_F(SchedulerTest, ModelOnAnOfflineWorkerOnly) {
  AddWorker("w1").draining = true;
  AddWorker("w2").models.clear();
  AddJob("a", 1);
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a?MODEL_NOT_ON_ANY_WORKER@1");
  EXPECT_EQ(DetailOf(result, 0), "worker w1, which has model tiny, is draining");
}

TEST_F(SchedulerTest, TooLargeForTheConnectedDevices) {
  AddWorker("w1", kGiB);
  AddJob("a", 2);
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a?EXCEEDS_EVERY_DEVICE@1");
  EXPECT_THAT(DetailOf(result, 0), HasSubstr("needs"));
  EXPECT_TRUE(result.reservations.empty()) << "there is nothing to reserve";
}

TEST_F(SchedulerTest, BackoffHoldsAndDoesNotCountAsWaiting) {
  AddWorker("w1");
  AddJob("a", 1);
  AddJob("b", 1).not_before_wall_micros = kNow.wall_micros + 5 * kSecond;
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a>w1:whole b?BACKOFF@1");
  EXPECT_EQ(result.look_again_boot_micros, kNow.boot_micros + 5 * kSecond);
  jobs_[1].not_before_wall_micros = kNow.wall_micros;
  EXPECT_EQ(PassText(), "a>w1:balanced b>w1:whole");
}

// Given by a clock that has been set back since: nobody waits a year for that.
TEST_F(SchedulerTest, ABackoffLongerThanAnyIsOver) {
  constexpr int64_t kLongest = (limits::kMaxBackoffSeconds + 60) * kSecond;
  AddWorker("w1");
  AddJob("a", 1).not_before_wall_micros = kNow.wall_micros + kLongest;
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a?BACKOFF@1");
  EXPECT_EQ(result.look_again_boot_micros, kNow.boot_micros + kLongest);
  jobs_[0].not_before_wall_micros = kNow.wall_micros + kLongest + 1;
  EXPECT_EQ(PassText(), "a>w1:whole");
}

TEST_F(SchedulerTest, ValidationsNeedNoDeviceAndNoThread) {
  Worker& worker = AddWorker("w1", 2 * kGiB, 3);
  worker.devices.clear();
  for (const char* id : {"a", "b", "c", "d"}) AddJob(id, 1).state = JobState::kValidating;
  EXPECT_EQ(PassText(), "a>w1:validate b>w1:validate c>w1:validate d?WAITING_FOR_VALIDATION@1");
  worker.host_bytes_total = limits::kValidateHostBytes;
  EXPECT_EQ(PassText(), "a>w1:validate b?WAITING_FOR_HOST_RAM@1 c?WAITING_FOR_HOST_RAM@2 d?WAITING_FOR_HOST_RAM@3");
}

TEST_F(SchedulerTest, AValidationIsCountedWithItsDataset) {
  Worker& worker = AddWorker("w1", 2 * kGiB, 3);
  worker.devices.clear();
  for (const char* id : {"a", "b"}) {
    Job& job = AddJob(id, 1);
    job.state = JobState::kValidating;
    job.train_shape.dataset_bytes = kGiB / 4;
  }
  EXPECT_EQ(PassText(), "a>w1:validate b?WAITING_FOR_HOST_RAM@1");
  worker.host_bytes_total = 64 * kGiB;
  worker.disk_bytes_total = kGiB / 2;
  EXPECT_EQ(PassText(), "a>w1:validate b?WAITING_FOR_DISK@1");
}

TEST_F(SchedulerTest, AfterAFaultOfTheDeviceAnotherOneGoesFirst) {
  AddGpuWorker("w1", 8 * kGiB, 2);
  Job& job = AddFitJob("a", 8, 1, 100);
  job.attempt.worker_id = "w1";
  job.attempt.device_id = "gpu-0";
  job.attempt.outcome = AttemptOutcome::kFailed;
  job.attempt.reason = Reason::kDeviceFault;
  EXPECT_EQ(Pass().starts.at(0).device_id, "gpu-1");
  jobs_[0].attempt.reason = Reason::kTrainerCrashed;
  EXPECT_EQ(Pass().starts.at(0).device_id, "gpu-0") << "a crash says nothing of the device";
  jobs_[0].attempt.reason = Reason::kDeviceFault;
  // It waits for the other one rather than to fail on the first again; others take it.
  Run("w1", "r", 8, 1, 50, 1);
  AddFitJob("b", 8);
  PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "b>w1:minimum a?WAITING_FOR_VRAM@1");
  EXPECT_EQ(result.starts[0].device_id, "gpu-0");
  ASSERT_EQ(result.reservations.size(), 1u);
  EXPECT_EQ(result.reservations[0].device, 1);
  // Another worker before another device; the same device where there is nothing else.
  AddGpuWorker("w2", 8 * kGiB);
  EXPECT_EQ(PassText(), "a>w2:minimum b>w1:minimum");
  workers_.pop_back();
  jobs_.pop_back();
  running_.clear();
  workers_[0].devices.pop_back();
  EXPECT_EQ(Pass().starts.at(0).device_id, "gpu-0");
}

TEST_F(SchedulerTest, ADeviceThatRestsIsGivenToNobodyUntilThen) {
  AddGpuWorker("w1", 8 * kGiB, 2);
  rests_["w1"] = {{0, 3, kNow.boot_micros + 600 * kSecond}};
  AddFitJob("a", 8, 1, 1'000);
  AddFitJob("b", 1);
  PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a>w1:minimum b?WAITING_FOR_VRAM@1");
  EXPECT_EQ(result.starts[0].device_id, "gpu-1");
  EXPECT_EQ(ExpectedIn(result, 0), 600);
  EXPECT_TRUE(result.reservations.at(0).after.empty()) << "no job has to end for it";
  workers_[0].devices.pop_back();
  jobs_.pop_front();
  jobs_[0].create_number = 1;
  result = Pass();
  EXPECT_EQ(DetailOf(result, 0), "device gpu-0 of worker w1 rests until " +
                                     FormatTimestamp(kNow.wall_micros + 600 * kSecond) + ": it has had 3 faults");
}

TEST_F(SchedulerTest, ACheckpointPinsClassAndPoint) {
  AddWorker("w1", 64 * kGiB, 4);
  AddWorker("w2", 64 * kGiB, 8);
  Job& job = AddJob("a", 1);
  job.pinned_device_class = workers_[1].devices[0].facts.device_class;
  job.pinned_point = PlanPoint::kBalanced;
  EXPECT_EQ(PassText(), "a>w2:balanced");
  workers_[1].draining = true;
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a?NO_WORKER@1");
  EXPECT_THAT(DetailOf(result, 0), HasSubstr("bit for bit"));
  // Also where no registered worker has the class any more, for another's trainer would refuse the checkpoint.
  workers_.pop_back();
  EXPECT_EQ(PassText(), "a?NO_WORKER@1");
  job.allow_nonidentical_resume = true;
  EXPECT_EQ(PassText(), "a>w1:whole");
}

TEST_F(SchedulerTest, SeveralWorkersAreFilledInOrder) {
  AddWorker("w1", 2 * kGiB);
  AddWorker("w2", 2 * kGiB);
  for (const char* id : {"a", "b", "c"}) AddJob(id, 2);
  EXPECT_EQ(PassText(), "a>w1:minimum b>w2:minimum c?WAITING_FOR_HOST_RAM@1");
}

TEST_F(SchedulerTest, TheFastestClassFirstAndNeverOneThatIsFarSlower) {
  AddWorker("w1", 64 * kGiB, 8);
  AddGpuWorker("w2", 4 * kGiB);
  step_seconds_ = {{"cpu-avx2-8t", 3}, {"gpu", 1}};
  AddFitJob("a", 4, 1, 100);
  AddFitJob("b", 4, 1, 100);
  EXPECT_EQ(PassText(), "a>w2:minimum b>w1:minimum") << "three times as slow is better than waiting";
  step_seconds_ = {{"cpu-avx2-8t", 30}, {"gpu", 1}};
  EXPECT_EQ(PassText(), "a>w2:minimum b?WAITING_FOR_VRAM@1") << "thirty times is not";
  workers_[1].draining = true;
  EXPECT_EQ(PassText(), "a>w1:minimum b>w1:minimum") << "while the fast one takes nothing it has to do";
}

TEST_F(SchedulerTest, AWorkerWhereItFailedIsAvoidedWhileThereIsAnother) {
  AddWorker("w1");
  AddWorker("w2");
  Job& job = AddFitJob("a", 2);
  job.attempt.number = 1;
  job.attempt.worker_id = "w1";
  job.attempt.end_wall_micros = 1;
  job.attempt.outcome = AttemptOutcome::kFailed;
  EXPECT_EQ(PassText(), "a>w2:minimum");
  job.attempt.outcome = AttemptOutcome::kLost;
  EXPECT_EQ(PassText(), "a>w1:minimum") << "by no fault of its worker";
  job.attempt.reason = Reason::kWorkerLost;
  EXPECT_EQ(PassText(), "a>w2:minimum");
  // Busy is no reason to go back; it waits for the other one.
  Run("w2", "r", 8, 1, 600);
  EXPECT_EQ(PassText(), "a?WAITING_FOR_HOST_RAM@1");
  EXPECT_THAT(DetailOf(Pass(), 0), HasSubstr("worker w2"));
  job.attempt.outcome = AttemptOutcome::kStopped;
  EXPECT_EQ(PassText(), "a>w1:minimum") << "a pause is no failure";
  job.attempt.outcome = AttemptOutcome::kFailed;
  workers_[1].host_bytes_total = kGiB;
  running_.clear();
  EXPECT_EQ(PassText(), "a>w1:minimum") << "the other one could never run it";
  workers_[1].host_bytes_total = 8 * kGiB;
  unreachable_ = {"w2"};
  EXPECT_EQ(PassText(), "a>w1:minimum");
  jobs_[0].state = JobState::kValidating;
  EXPECT_EQ(PassText(), "a>w1:validate");
  unreachable_.clear();
  EXPECT_EQ(PassText(), "a>w2:validate");
}

TEST_F(SchedulerTest, QuotasHoldAProjectAndNobodyElse) {
  AddWorker("w1", 64 * kGiB, 16);
  ASSERT_TRUE(ParseQuota("team:jobs=2", &quotas_).ok());
  for (const char* id : {"a", "b", "c"}) AddFitJob(id, 1).project = "team";
  AddFitJob("d", 1);
  PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a>w1:minimum b>w1:minimum d>w1:minimum c?WAITING_FOR_QUOTA@1");
  EXPECT_EQ(DetailOf(result, 0), "quota of project team: has 2 of 2 running jobs");
  EXPECT_TRUE(result.reservations.empty()) << "nothing is kept for whom the quota holds";
  Run("w1", "r", 1, 1, 60).project = "team";
  EXPECT_EQ(PassText(), "a>w1:minimum d>w1:minimum b?WAITING_FOR_QUOTA@1 c?WAITING_FOR_QUOTA@2");
  running_["w1"][0].project = "";
  EXPECT_EQ(PassText(), "a>w1:minimum b>w1:minimum d>w1:minimum c?WAITING_FOR_QUOTA@1") << "fenced: counts for nobody";
}

TEST_F(SchedulerTest, QuotasOfBytesAndThreadsTakeTheLargestPointThatTheyAllow) {
  AddWorker("w1", 64 * kGiB, 16);
  quotas_[kAnyProject].host_bytes = 3 * kGiB;
  AddJob("a", 1);
  EXPECT_EQ(PassText(), "a>w1:balanced");
  AddFitJob("b", 2);
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "a>w1:balanced b?WAITING_FOR_QUOTA@1");
  EXPECT_EQ(DetailOf(result, 0),
            "quota of project default: needs 2.00 GiB of host RAM; the project holds 2.00 GiB of its 3.00 GiB");
  quotas_[kAnyProject] = Quota{0, 0, 0, 1};
  EXPECT_EQ(PassText(), "a>w1:balanced b?WAITING_FOR_QUOTA@1");
}

TEST_F(SchedulerTest, ManyStartsGoOverSeveralPasses) {
  AddWorker("w1", 4096 * kGiB, 4096);
  for (int i = 0; i < limits::kMaxStartsPerPass + 10; ++i) AddFitJob("j" + std::to_string(i), 1);
  const PlanResult result = Pass();
  EXPECT_EQ(result.starts.size(), static_cast<size_t>(limits::kMaxStartsPerPass));
  EXPECT_EQ(result.waits.size(), 10u);
  EXPECT_EQ(result.look_again_boot_micros, kNow.boot_micros) << "at once";
}

TEST_F(SchedulerTest, PureAndRepeatable) {
  AddWorker("w1", 8 * kGiB);
  AddWorker("w2", 4 * kGiB);
  for (int i = 0; i < 20; ++i) AddJob("j" + std::to_string(i), 1 + i % 3);
  EXPECT_EQ(PassText(), PassText());
}

}  // namespace
}  // namespace longhaul::server
