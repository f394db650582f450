// Exact actions in exact order, on values.
#include "server/core/scheduler.h"

#include <deque>

#include "base/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_server_parts.h"

namespace longhaul::server {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kNow = 1'000'000'000;

class SchedulerTest : public ::testing::Test {
 protected:
  Worker& AddWorker(const std::string& id, int64_t host_bytes = 8 * kGiB, int threads = 4) {
    workers_.push_back(TestWorker(id, host_bytes, threads));
    return workers_.back();
  }

  // A job of `gib` at the minimum point, twice that balanced, four times whole.
  Job& AddJob(const std::string& id, int64_t gib, int threads = 1) {
    Job job;
    job.id = id;
    job.model = kTestModel;
    job.model_digest = kTestDigest;
    job.state = JobState::kQueued;
    job.create_number = jobs_.size() + 1;
    job.train_shape.sequence_length = gib * (1 << 20);
    job.train_shape.cpu_threads = threads;
    jobs_.push_back(job);
    return jobs_.back();
  }

  std::vector<Action> Run() {
    Snapshot snapshot;
    demands_.clear();
    for (const Job& job : jobs_) {
      JobDemands demands;
      for (const Worker& worker : workers_) {
        for (const DeviceEntry& device : worker.devices) {
          demands[device.facts.device_class] = DemandsOn(FakePlanner(), PlanRequestOf(job), device.facts);
        }
      }
      demands_.push_back(std::move(demands));
      snapshot.waiting.push_back({&job, &demands_.back()});
    }
    for (const Worker& worker : workers_) {
      WorkerSlot slot;
      slot.worker = &worker;
      slot.reachable = !unreachable_;
      slot.plan_matches = worker.plan_version == kPlanVersion;
      slot.host_bytes_free = worker.host_bytes_total;
      slot.disk_bytes_free = worker.disk_bytes_total;
      slot.cpu_threads_free = worker.cpu_threads_total;
      for (const DeviceEntry& device : worker.devices) slot.device_bytes_free.push_back(device.facts.device_bytes);
      snapshot.workers.push_back(slot);
    }
    return Plan(snapshot, kNow);
  }

  // "a>w1:whole b?WAITING_FOR_HOST_RAM@1"
  std::string Text(const std::vector<Action>& actions) {
    std::string text;
    for (const Action& action : actions) {
      if (!text.empty()) text += " ";
      if (action.kind == Action::Kind::kStart) {
        text += action.job_id + ">" + action.worker_id + ":" +
                (action.attempt == AttemptKind::kValidate ? "validate" : Name(action.point));
      } else {
        text += action.job_id + "?" + Name(action.reason) + "@" + std::to_string(action.position);
      }
    }
    return text;
  }

  std::deque<Worker> workers_;
  std::deque<Job> jobs_;
  std::deque<JobDemands> demands_;
  bool unreachable_ = false;
};

TEST_F(SchedulerTest, AloneAJobGetsTheWholeDevice) {
  AddWorker("w1");
  AddJob("a", 1);
  const std::vector<Action> actions = Run();
  EXPECT_EQ(Text(actions), "a>w1:whole");
  EXPECT_EQ(actions[0].device_id, "cpu-0");
  EXPECT_EQ(actions[0].demand.host_bytes, 4 * kGiB);
}

TEST_F(SchedulerTest, WhileAnotherWaitsWholeIsLeftOut) {
  AddWorker("w1");
  AddJob("a", 1);
  AddJob("b", 1);
  AddJob("c", 1);
  // a: balanced, 2 GiB; b: balanced, 2; c is the last one: whole where it fits now, 4.
  EXPECT_EQ(Text(Run()), "a>w1:balanced b>w1:balanced c>w1:whole");
}

TEST_F(SchedulerTest, WholeStaysWhereNoThreadIsLeftForOthers) {
  AddWorker("w1");
  AddJob("a", 1, 4);
  AddJob("b", 1, 1);
  EXPECT_EQ(Text(Run()), "a>w1:whole b?WAITING_FOR_CPU_THREADS@1");
}

TEST_F(SchedulerTest, SmallerPointWhereTheLargerDoesNotFitNow) {
  AddWorker("w1", 3 * kGiB);
  AddJob("a", 1);
  EXPECT_EQ(Text(Run()), "a>w1:balanced");
  jobs_[0].train_shape.sequence_length = 2 * (1 << 20);
  EXPECT_EQ(Text(Run()), "a>w1:minimum");
}

TEST_F(SchedulerTest, FirstFitLetsASmallerJobPass) {
  AddWorker("w1", 4 * kGiB);
  AddJob("a", 3);
  AddJob("b", 2);
  AddJob("c", 1);
  const std::vector<Action> actions = Run();
  EXPECT_EQ(Text(actions), "a>w1:minimum b?WAITING_FOR_HOST_RAM@1 c>w1:minimum");
  EXPECT_EQ(actions[1].detail, "needs 2.00 GiB of host RAM; worker w1 has 1.00 GiB free of 4.00 GiB");
}

TEST_F(SchedulerTest, PriorityBeforeAgeAndAgeBeforeNothing) {
  AddWorker("w1", kGiB);
  AddJob("old", 1);
  AddJob("low", 1).priority = PriorityClass::kLow;
  AddJob("high", 1).priority = PriorityClass::kHigh;
  jobs_[1].create_number = 0;
  EXPECT_EQ(Text(Run()), "high>w1:minimum old?WAITING_FOR_HOST_RAM@1 low?WAITING_FOR_HOST_RAM@2");
}

TEST_F(SchedulerTest, EachResourceHasItsReason) {
  Worker& worker = AddWorker("w1", 64 * kGiB);
  DeviceFacts& gpu = worker.devices[0].facts;
  gpu.kind = DeviceKind::kCuda;
  gpu.device_class = "gpu";
  gpu.device_bytes = 4 * kGiB;
  AddJob("a", 4);
  AddJob("b", 1);
  EXPECT_EQ(Text(Run()), "a>w1:minimum b?WAITING_FOR_VRAM@1");
  worker.disk_bytes_total = 1000;
  EXPECT_EQ(Text(Run()), "a?WAITING_FOR_DISK@1 b?WAITING_FOR_DISK@2");
  worker.disk_bytes_total = kGiB;
  worker.host_bytes_total = 1000;
  EXPECT_EQ(Text(Run()), "a?WAITING_FOR_HOST_RAM@1 b?WAITING_FOR_HOST_RAM@2");
}

TEST_F(SchedulerTest, WhyNoWorkerTakesIt) {
  AddJob("a", 1);
  EXPECT_EQ(Text(Run()), "a?NO_WORKER@1");
  Worker& worker = AddWorker("w1");
  worker.draining = true;
  std::vector<Action> actions = Run();
  EXPECT_EQ(Text(actions), "a?NO_WORKER@1");
  EXPECT_NE(actions[0].detail.find("draining"), std::string::npos) << actions[0].detail;
  worker.draining = false;
  worker.plan_version = kPlanVersion + 1;
  actions = Run();
  EXPECT_EQ(Text(actions), "a?NO_WORKER@1");
  EXPECT_NE(actions[0].detail.find("another build"), std::string::npos);
  worker.plan_version = kPlanVersion;
  worker.models[0].digest = "another";
  EXPECT_EQ(Text(Run()), "a?MODEL_NOT_ON_ANY_WORKER@1");
  worker.models[0].digest = kTestDigest;
  unreachable_ = true;
  EXPECT_EQ(Text(Run()), "a?NO_WORKER@1");
}

TEST_F(SchedulerTest, ModelOnAnOfflineWorkerOnly) {
  AddWorker("w1").draining = true;
  AddWorker("w2").models.clear();
  AddJob("a", 1);
  EXPECT_EQ(Text(Run()), "a?MODEL_NOT_ON_ANY_WORKER@1");
}

TEST_F(SchedulerTest, TooLargeForTheConnectedDevices) {
  AddWorker("w1", kGiB);
  AddJob("a", 2);
  const std::vector<Action> actions = Run();
  EXPECT_EQ(Text(actions), "a?EXCEEDS_EVERY_DEVICE@1");
  EXPECT_NE(actions[0].detail.find("needs"), std::string::npos);
}

TEST_F(SchedulerTest, BackoffHoldsAndDoesNotCountAsWaiting) {
  AddWorker("w1");
  AddJob("a", 1);
  AddJob("b", 1).not_before_wall_micros = kNow + 1;
  EXPECT_EQ(Text(Run()), "a>w1:whole b?BACKOFF@1");
  jobs_[1].not_before_wall_micros = kNow;
  EXPECT_EQ(Text(Run()), "a>w1:balanced b>w1:whole");
}

TEST_F(SchedulerTest, ValidationsNeedNoDeviceAndNoThread) {
  Worker& worker = AddWorker("w1", 2 * kGiB, 3);
  worker.devices.clear();
  for (const char* id : {"a", "b", "c", "d"}) AddJob(id, 1).state = JobState::kValidating;
  EXPECT_EQ(Text(Run()), "a>w1:validate b>w1:validate c>w1:validate d?WAITING_FOR_VALIDATION@1");
  worker.host_bytes_total = limits::kValidateHostBytes;
  EXPECT_EQ(Text(Run()), "a>w1:validate b?WAITING_FOR_HOST_RAM@1 c?WAITING_FOR_HOST_RAM@2 d?WAITING_FOR_HOST_RAM@3");
}

TEST_F(SchedulerTest, AValidationIsCountedWithItsDataset) {
  Worker& worker = AddWorker("w1", 2 * kGiB, 3);
  worker.devices.clear();
  for (const char* id : {"a", "b"}) {
    Job& job = AddJob(id, 1);
    job.state = JobState::kValidating;
    job.train_shape.dataset_bytes = kGiB / 4;
  }
  EXPECT_EQ(Text(Run()), "a>w1:validate b?WAITING_FOR_HOST_RAM@1");
  worker.host_bytes_total = 64 * kGiB;
  worker.disk_bytes_total = kGiB / 2;
  EXPECT_EQ(Text(Run()), "a>w1:validate b?WAITING_FOR_DISK@1");
}

TEST_F(SchedulerTest, ACheckpointPinsClassAndPoint) {
  AddWorker("w1", 64 * kGiB, 4);
  AddWorker("w2", 64 * kGiB, 8);
  Job& job = AddJob("a", 1);
  job.pinned_device_class = workers_[1].devices[0].facts.device_class;
  job.pinned_point = PlanPoint::kBalanced;
  EXPECT_EQ(Text(Run()), "a>w2:balanced");
  workers_[1].draining = true;
  const std::vector<Action> actions = Run();
  EXPECT_EQ(Text(actions), "a?NO_WORKER@1");
  EXPECT_NE(actions[0].detail.find("bit for bit"), std::string::npos) << actions[0].detail;
  // Also where no registered worker has the class any more, for another's trainer would refuse the checkpoint.
  workers_.pop_back();
  EXPECT_EQ(Text(Run()), "a?NO_WORKER@1");
  job.allow_nonidentical_resume = true;
  EXPECT_EQ(Text(Run()), "a>w1:whole");
}

TEST_F(SchedulerTest, SeveralWorkersAreFilledInOrder) {
  AddWorker("w1", 2 * kGiB);
  AddWorker("w2", 2 * kGiB);
  for (const char* id : {"a", "b", "c"}) AddJob(id, 2);
  EXPECT_EQ(Text(Run()), "a>w1:minimum b>w2:minimum c?WAITING_FOR_HOST_RAM@1");
}

TEST_F(SchedulerTest, PureAndRepeatable) {
  AddWorker("w1", 8 * kGiB);
  AddWorker("w2", 4 * kGiB);
  for (int i = 0; i < 20; ++i) AddJob("j" + std::to_string(i), 1 + i % 3);
  EXPECT_EQ(Text(Run()), Text(Run()));
}

}  // namespace
}  // namespace longhaul::server
