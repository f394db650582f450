// Reservations, backfill, preemption, expected starts: exact, on values.
#include "base/limits.h"
#include "tests/server/core/scheduler_rig.h"

namespace longhaul::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using BackfillTest = SchedulerRig;

constexpr int64_t kOverhead = limits::kAttemptOverheadSeconds;

TEST_F(BackfillTest, TheFirstThatDoesNotFitIsKeptItsPlace) {
  AddWorker("w1", 4 * kGiB);
  Run("w1", "r", 3, 1, 1'000);
  AddFitJob("big", 4, 1, 500);
  AddFitJob("short", 1, 1, 900);   // over before `big` starts
  AddFitJob("long", 1, 1, 5'000);  // would hold it up
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "short>w1:minimum big?WAITING_FOR_HOST_RAM@1 long?WAITING_FOR_HOST_RAM@2");
  ASSERT_EQ(result.reservations.size(), 2u);
  EXPECT_EQ(result.reservations[0].job_id, "big");
  EXPECT_EQ(result.reservations[0].start_boot_micros, kNow.boot_micros + 1'000 * kSecond);
  EXPECT_THAT(result.reservations[0].after, ElementsAre("r"));
  EXPECT_EQ(ExpectedIn(result, 0), 1'000);
  EXPECT_EQ(ExpectedIn(result, 1), 1'000 + 500 + kOverhead) << "behind big";
}

TEST_F(BackfillTest, WhatWouldDelayIsSaid) {
  AddWorker("w1", 4 * kGiB);
  Run("w1", "r", 2, 1, 1'000);
  AddFitJob("big", 4, 1, 500);
  AddFitJob("long", 1, 1, 5'000);
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "big?WAITING_FOR_HOST_RAM@1 long?BEHIND_HIGHER_PRIORITY@2");
  EXPECT_THAT(DetailOf(result, 1), HasSubstr("would delay job big, for which worker w1 is kept from"));
}

TEST_F(BackfillTest, WhatFitsBesideTheReservationStarts) {
  AddWorker("w1", 8 * kGiB, 8);
  Run("w1", "r", 6, 1, 1'000);
  AddFitJob("big", 7, 1, 500);
  AddFitJob("beside", 1, 1, 50'000);  // 7 + 1 is all there is
  AddFitJob("over", 1, 1, 50'000);
  EXPECT_EQ(PassText(), "beside>w1:minimum big?WAITING_FOR_HOST_RAM@1 over?BEHIND_HIGHER_PRIORITY@2");
}

TEST_F(BackfillTest, AnotherWorkerIsFree) {
  AddWorker("w1", 4 * kGiB);
  AddWorker("w2", 2 * kGiB);
  Run("w1", "r", 3, 1, 1'000);
  AddFitJob("big", 4, 1, 500);
  AddFitJob("long", 2, 1, 50'000);
  EXPECT_EQ(PassText(), "long>w2:minimum big?WAITING_FOR_HOST_RAM@1");
}

TEST_F(BackfillTest, TheLargerPointIsLeftOutWhereItWouldDelay) {
  AddWorker("w1", 8 * kGiB, 8);
  Run("w1", "r", 4, 1, 1'000);
  AddFitJob("big", 6, 1, 500);
  AddJob("x", 1, 1, 50'000);  // minimum 1, balanced 2, whole 4: only 2 are left beside big
  EXPECT_EQ(PassText(), "x>w1:balanced big?WAITING_FOR_HOST_RAM@1");
}

TEST_F(BackfillTest, EightReservationsAndNoMore) {
  for (int i = 0; i < 12; ++i) {
    const std::string id = "w" + std::to_string(100 + i);
    AddWorker(id, 4 * kGiB);
    Run(id, "r" + std::to_string(i), 3, 1, 1'000 + i);
  }
  for (int i = 0; i < 10; ++i) AddFitJob("big" + std::to_string(i), 4, 1, 500);
  AddFitJob("long", 1, 1, 50'000);
  const PlanResult result = Pass();
  ASSERT_EQ(result.reservations.size(), static_cast<size_t>(limits::kMaxReservations));
  for (int i = 0; i < limits::kMaxReservations; ++i) {
    EXPECT_EQ(result.reservations[static_cast<size_t>(i)].worker->id, "w" + std::to_string(100 + i));
    EXPECT_EQ(ExpectedIn(result, static_cast<size_t>(i)), 1'000 + i);
  }
  ASSERT_EQ(result.starts.size(), 1u);
  EXPECT_EQ(result.starts[0].worker_id, "w108") << "the first worker that is kept for nobody";
  EXPECT_EQ(result.waits[8].reservation, -1);
  EXPECT_GE(ExpectedIn(result, 8), 1'007) << "no sooner than those before it";
}

TEST_F(BackfillTest, OnOneDeviceReservationsFollowEachOther) {
  AddWorker("w1", 4 * kGiB);
  Run("w1", "r", 4, 1, 100);
  for (const char* id : {"a", "b", "c"}) AddFitJob(id, 4, 1, 1'000);
  const PlanResult result = Pass();
  EXPECT_EQ(ExpectedIn(result, 0), 100);
  EXPECT_EQ(ExpectedIn(result, 1), 100 + 1'000 + kOverhead);
  EXPECT_EQ(ExpectedIn(result, 2), 100 + 2 * (1'000 + kOverhead));
}

TEST_F(BackfillTest, OverdueAttemptsEndInAMoment) {
  AddWorker("w1", 4 * kGiB);
  Run("w1", "r", 4, 1, -500);
  AddFitJob("a", 4, 1, 10);
  EXPECT_EQ(ExpectedIn(Pass(), 0), 1);
}

TEST_F(BackfillTest, TheTailIsExpectedByTheWorkBeforeIt) {
  AddWorker("w1", 4 * kGiB);
  Run("w1", "r", 4, 1, 1'000);
  for (int i = 0; i < 20; ++i) AddFitJob("j" + std::to_string(i), 4, 1, 980);  // 1,000 s each with the overhead
  const PlanResult result = Pass();
  ASSERT_EQ(result.waits.size(), 20u);
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(ExpectedIn(result, i), 1'000 * static_cast<int64_t>(i + 1)) << i;
}

TEST_F(BackfillTest, JobsOfAnotherClassDoNotMakeItLater) {
  AddWorker("w1", 4 * kGiB);
  AddGpuWorker("w2", 4 * kGiB).models[0].digest = "other";
  Run("w1", "r", 4, 1, 1'000);
  Run("w2", "s", 4, 1, 50);
  for (int i = 0; i < 12; ++i) AddFitJob("j" + std::to_string(i), 4, 1, 980);
  AddFitJob("gpu", 4, 1, 980).model_digest = "other";
  EXPECT_EQ(ExpectedIn(Pass(), 12), 50);
}

TEST_F(BackfillTest, AShapeThatDoesNotFitIsTriedOnceAndTheDepthIsBounded) {
  AddWorker("w1", 4 * kGiB);
  Run("w1", "r", 4, 4, 1'000);
  for (int i = 0; i < limits::kMaxSchedulingDepth + 20; ++i) {
    // All different, none larger than another in everything.
    Job& job = AddFitJob("j" + std::to_string(i), 1, 1, 100 + i);
    job.train_shape.sequence_length = (1 << 20) - i;
  }
  const PlanResult result = Pass();
  ASSERT_EQ(result.waits.size(), static_cast<size_t>(limits::kMaxSchedulingDepth + 20));
  const auto reason = [&](size_t i) { return result.verdicts.at(static_cast<size_t>(result.waits[i].verdict)).reason; };
  EXPECT_EQ(reason(limits::kMaxSchedulingDepth - 1), Reason::kWaitingForHostRam);
  EXPECT_EQ(reason(limits::kMaxSchedulingDepth), Reason::kBehindHigherPriority);
  for (int i = 0; i < 2'000; ++i) AddFitJob("same" + std::to_string(i), 1, 1, 100).train_shape = jobs_[0].train_shape;
  EXPECT_EQ(Pass().waits.size(), static_cast<size_t>(limits::kMaxSchedulingDepth + 2'020));
}

// ---- Preemption ----

class PreemptionTest : public SchedulerRig {
 protected:
  RunningAttempt& RunFor(const std::string& worker, const std::string& job, int64_t gib, PriorityClass priority,
                         int64_t preemptible_in_seconds = -1, int device = 0) {
    RunningAttempt& running = Run(worker, job, gib, 1, 10'000, device);
    running.priority = priority;
    running.preemptible_boot_micros = kNow.boot_micros + preemptible_in_seconds * kSecond;
    return running;
  }
};

TEST_F(PreemptionTest, AHigherClassTakesTheDevice) {
  AddWorker("w1", 4 * kGiB);
  RunFor("w1", "victim", 4, PriorityClass::kNormal);
  AddFitJob("urgent", 4, 1, 100).priority = PriorityClass::kHigh;
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "victim!urgent urgent?WAITING_FOR_HOST_RAM@1");
  EXPECT_EQ(ExpectedIn(result, 0), limits::kStopSeconds);
  ASSERT_EQ(result.reservations.size(), 1u) << "and nobody takes it away meanwhile";
}

// Jobs that find no place even in time are looked at once, of a project with a quota, too: others come behind them.
TEST_F(BackfillTest, ACrowdWithAQuotaAndWithoutAPlaceStarvesNobody) {
  constexpr int kWorkers = 63;
  constexpr int kGpus = limits::kMaxDevicesPerWorker;
  for (int w = 0; w < kWorkers; ++w) {
    const std::string id = "gpus" + std::to_string(w);
    AddGpuWorker(id, 16 * kGiB, kGpus);
    for (int gpu = 0; gpu < kGpus; ++gpu) Run(id, "", 16, 0, 0, gpu).end_boot_micros = kNeverMicros;
  }
  AddWorker("cpus", 4 * kGiB);
  quotas_["crowd"].jobs = 1'000;
  for (int i = 0; i < 600; ++i) AddFitJob("crowd" + std::to_string(i), 16).project = "crowd";
  AddFitJob("small", 2);
  const PlanResult result = Pass();
  ASSERT_EQ(result.starts.size(), 1u) << DetailOf(result, result.waits.size() - 1);
  EXPECT_EQ(result.starts[0].job_id, "small");
}

// The quota leaves out one of two kinds of devices, and the other is full: one shape, however many jobs.
TEST_F(BackfillTest, ACrowdThatItsQuotaKeepsFromADeviceIsTriedOnce) {
  AddGpuWorker("gpus", 4 * kGiB);
  AddWorker("cpus", 4 * kGiB);
  Run("cpus", "long", 4, 1, 10'000).project = "others";
  quotas_["crowd"].device_bytes = kGiB;
  for (int i = 0; i < limits::kMaxSchedulingDepth + 100; ++i) {
    AddFitJob("crowd" + std::to_string(i), 4).project = "crowd";
  }
  AddFitJob("small", 2);
  const PlanResult result = Pass();
  ASSERT_EQ(result.starts.size(), 1u) << DetailOf(result, result.waits.size() - 1);
  EXPECT_EQ(result.starts[0].job_id, "small");
}

// The whole quota is kept for a reservation: nothing is tried of the others, of whatever shapes they are.
TEST_F(BackfillTest, ACrowdThatWaitsBehindItsOwnReservationCostsNoTries) {
  AddWorker("w1", 8 * kGiB);
  AddWorker("w2", 4 * kGiB);
  Run("w1", "long", 8, 1, 10'000).project = "others";
  quotas_["crowd"].jobs = 1;
  for (int i = 0; i < limits::kMaxSchedulingDepth + 100; ++i) {
    Job& job = AddFitJob("crowd" + std::to_string(i), 5, 1, 20'000);
    job.project = "crowd";
    job.train_shape.sequence_length += 1024 * i;
  }
  AddFitJob("small", 2);
  const PlanResult result = Pass();
  ASSERT_EQ(result.starts.size(), 1u) << DetailOf(result, result.waits.size() - 1);
  EXPECT_EQ(result.starts[0].job_id, "small");
}

TEST_F(PreemptionTest, OnlyLowerClassesOnlyAfterTenMinutesOnlyWhereItHelps) {
  AddWorker("w1", 4 * kGiB);
  RunningAttempt& victim = RunFor("w1", "victim", 4, PriorityClass::kNormal);
  AddFitJob("normal", 4, 1, 100);
  EXPECT_EQ(PassText(), "normal?WAITING_FOR_HOST_RAM@1") << "its own class is not lower";
  jobs_[0].priority = PriorityClass::kHigh;
  victim.preemptible_boot_micros = kNow.boot_micros + 240 * kSecond;
  PlanResult result = Pass();
  EXPECT_TRUE(result.preemptions.empty()) << "it has run for six minutes";
  EXPECT_EQ(result.look_again_boot_micros, kNow.boot_micros + 240 * kSecond);
  victim.preemptible_boot_micros = kNeverMicros;
  EXPECT_TRUE(Pass().preemptions.empty()) << "twice already";
  victim.preemptible_boot_micros = kNow.boot_micros - kSecond;
  victim.end_boot_micros = kNow.boot_micros + 30 * kSecond;
  EXPECT_TRUE(Pass().preemptions.empty()) << "it ends by itself in a moment";
  victim.end_boot_micros = kNow.boot_micros + 9'000 * kSecond;
  EXPECT_EQ(Pass().preemptions.size(), 1u);
  // The device would be too small even then.
  jobs_[0].train_shape.sequence_length = 5 << 20;
  EXPECT_TRUE(Pass().preemptions.empty());
  jobs_[0].priority = PriorityClass::kLow;
  jobs_[0].train_shape.sequence_length = 4 << 20;
  EXPECT_TRUE(Pass().preemptions.empty());
}

TEST_F(PreemptionTest, TheFewestOfTheLowestClass) {
  AddWorker("w1", 4 * kGiB);
  AddWorker("w2", 4 * kGiB);
  AddWorker("w3", 4 * kGiB);
  RunFor("w1", "normal", 4, PriorityClass::kNormal);
  RunFor("w2", "low1", 2, PriorityClass::kLow);
  RunFor("w2", "low2", 2, PriorityClass::kLow);
  RunFor("w3", "low3", 4, PriorityClass::kLow);
  AddFitJob("urgent", 4, 1, 100).priority = PriorityClass::kHigh;
  EXPECT_EQ(PassText(), "low3!urgent urgent?WAITING_FOR_HOST_RAM@1");
  workers_.pop_back();
  EXPECT_EQ(PassText(), "low1!urgent low2!urgent urgent?WAITING_FOR_HOST_RAM@1") << "two low before one normal";
}

TEST_F(PreemptionTest, NobodyMoreThanNeededAndTheYoungestFirst) {
  AddWorker("w1", 8 * kGiB, 8);
  RunFor("w1", "old", 3, PriorityClass::kLow, -900);
  RunFor("w1", "young", 2, PriorityClass::kLow, -10);
  RunFor("w1", "normal", 3, PriorityClass::kNormal, -5);
  AddFitJob("urgent", 2, 1, 100).priority = PriorityClass::kHigh;
  EXPECT_EQ(PassText(), "young!urgent urgent?WAITING_FOR_HOST_RAM@1");
  jobs_[0].train_shape.sequence_length = 3 << 20;
  EXPECT_EQ(PassText(), "old!urgent urgent?WAITING_FOR_HOST_RAM@1") << "young alone is not enough, old alone is";
}

TEST_F(PreemptionTest, TheRightDevice) {
  AddGpuWorker("w1", 4 * kGiB, 2);
  RunFor("w1", "on0", 4, PriorityClass::kHigh, -1, 0);
  RunFor("w1", "on1", 4, PriorityClass::kLow, -1, 1);
  AddFitJob("urgent", 4, 1, 100).priority = PriorityClass::kHigh;
  const PlanResult result = Pass();
  EXPECT_EQ(Text(result, jobs_), "on1!urgent urgent?WAITING_FOR_VRAM@1");
  EXPECT_EQ(result.reservations[0].device, 1);
}

TEST_F(PreemptionTest, TwoUrgentJobsTakeTwoVictims) {
  AddWorker("w1", 4 * kGiB);
  AddWorker("w2", 4 * kGiB);
  RunFor("w1", "v1", 4, PriorityClass::kLow);
  RunFor("w2", "v2", 4, PriorityClass::kLow);
  for (const char* id : {"u1", "u2", "u3"}) AddFitJob(id, 4, 1, 100).priority = PriorityClass::kHigh;
  EXPECT_EQ(PassText(), "v1!u1 v2!u2 u1?WAITING_FOR_HOST_RAM@1 u2?WAITING_FOR_HOST_RAM@2 u3?WAITING_FOR_HOST_RAM@3");
}

TEST_F(PreemptionTest, WhoIsOverItsQuotaPreemptsNobody) {
  AddWorker("w1", 4 * kGiB);
  RunFor("w1", "victim", 4, PriorityClass::kLow).project = "default";
  quotas_["default"].jobs = 1;
  AddFitJob("urgent", 4, 1, 100).priority = PriorityClass::kHigh;
  EXPECT_EQ(PassText(), "urgent?WAITING_FOR_QUOTA@1");
}

TEST_F(PreemptionTest, NobodyIsStoppedForADeviceThatTheQuotaLeavesOut) {
  AddGpuWorker("gpus", 4 * kGiB);
  AddWorker("cpus", 4 * kGiB);
  RunFor("gpus", "low", 4, PriorityClass::kLow).project = "others";
  RunFor("cpus", "high", 4, PriorityClass::kHigh).project = "others";
  AddFitJob("urgent", 4, 1, 100).priority = PriorityClass::kHigh;
  EXPECT_EQ(Pass().preemptions.size(), 1u);
  quotas_["default"].device_bytes = kGiB;
  EXPECT_TRUE(Pass().preemptions.empty()) << "it may only have the CPUs, which nobody leaves";
}

TEST_F(PreemptionTest, WhatIsStoppingAlreadyIsWaitedFor) {
  AddWorker("w1", 4 * kGiB);
  RunningAttempt& stopping = RunFor("w1", "stopping", 2, PriorityClass::kLow);
  stopping.end_boot_micros = kNow.boot_micros + 20 * kSecond;  // told to checkpoint
  stopping.preemptible_boot_micros = kNeverMicros;
  AddFitJob("urgent", 4, 1, 100).priority = PriorityClass::kHigh;
  AddFitJob("low", 2, 1, 1'000).priority = PriorityClass::kLow;
  EXPECT_EQ(PassText(), "urgent?WAITING_FOR_HOST_RAM@1 low?BEHIND_HIGHER_PRIORITY@2");
}

}  // namespace
}  // namespace longhaul::server
