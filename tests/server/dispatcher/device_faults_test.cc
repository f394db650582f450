// A device that fails jobs again and again is given to nobody for a while; one job that fails again and again takes it
// from nobody.
#include <map>

#include "base/limits.h"
#include "base/units.h"
#include "tests/server/dispatcher/scheduling_fixture.h"

namespace longhaul::server {
namespace {

class DeviceFaultsTest : public SchedulingTest {
 protected:
  void SetUp() override {
    Worker worker = TestWorker("w1", 64 * kGiB, 4);
    worker.devices[0].id = "gpu-0";
    worker.devices[0].facts.kind = DeviceKind::kCuda;
    worker.devices[0].facts.device_class = "gpu";
    worker.devices[0].facts.device_bytes = 8 * kGiB;
    session_ = Open(worker);
  }

  std::string CreateJob() {
    Job job = TestJob(blobs.Add("dataset"));
    job.retry_limit = 10;
    return Do(core->Create({job, "body"}))->id;
  }
  // It runs: for the first time, or again after its backoff.
  void Train(const std::string& id) {
    if (!keys_.contains(id)) return Start(session_, id, &keys_[id]);
    Pass(session_, {}, 600);
    const std::optional<AttemptKey> again = StartOf(*Sync(session_), id);
    ASSERT_TRUE(again.has_value()) << Get(id).reason_detail;
    keys_[id] = *again;
    ASSERT_TRUE(Sync(session_, {Running(*again)}).ok());
  }
  void Fail(const std::string& id, bool device_at_fault = true) {
    Train(id);
    AttemptReport report = Failed(keys_[id], Reason::kDeviceFault);
    report.device_at_fault = device_at_fault;
    ASSERT_TRUE(Sync(session_, {report}).ok());
  }
  void Cancel(const std::string& id) { ASSERT_TRUE(Do(core->Cancel(id)).ok()); }
  std::vector<WorkerView::Rest> Rests() { return core->Workers().at(0).rests; }
  size_t DevicesWithFaults() { return core->workers().at("w1").faults.size(); }
  // Three faults of two jobs; returns the second, which waits.
  std::string BringToRest() {
    const std::string one = CreateJob();
    for (int i = 0; i < limits::kDeviceFaultsToRest - 1; ++i) Fail(one);
    Cancel(one);
    EXPECT_TRUE(Rests().empty());
    const std::string two = CreateJob();
    Fail(two);
    return two;
  }

  std::string session_;
  std::map<std::string, AttemptKey> keys_;
};

TEST_F(DeviceFaultsTest, ADeviceThatFailsSeveralJobsRests) {
  const std::string id = BringToRest();
  ASSERT_EQ(Rests().size(), 1u);
  EXPECT_EQ(Rests()[0].device_id, "gpu-0");
  EXPECT_EQ(Rests()[0].faults, limits::kDeviceFaultsToRest);
  Pass(session_, {}, 600);
  EXPECT_EQ(Get(id).reason, Reason::kWaitingForVram);
  EXPECT_NE(Get(id).reason_detail.find("gpu-0 of worker w1 rests until"), std::string::npos) << Get(id).reason_detail;
  EXPECT_EQ(core->ExplainWait(id).value()->places.at(0).why, Get(id).reason_detail);
  Pass(session_, {}, limits::kDeviceRestMs / 1000 - 600);
  EXPECT_TRUE(Rests().empty());
  EXPECT_TRUE(StartOf(*Sync(session_), id).has_value()) << Get(id).reason_detail;
  EXPECT_EQ(DevicesWithFaults(), 0u) << "rested and forgotten";
}

TEST_F(DeviceFaultsTest, OneJobAloneNeverBringsADeviceToRest) {
  const std::string id = CreateJob();
  for (int i = 0; i < limits::kDeviceFaultsToRest + limits::kDefaultRetryLimit; ++i) {
    Fail(id);
    ASSERT_TRUE(Rests().empty()) << i;
  }
  Cancel(id);
  // Its last ones count beside another's.
  Fail(CreateJob());
  ASSERT_EQ(Rests().size(), 1u);
  EXPECT_EQ(Rests()[0].faults, limits::kDeviceFaultsToRest);
}

TEST_F(DeviceFaultsTest, MemoryThatOthersTookAndMissingLibrariesAreNoFaultsOfTheDevice) {
  for (int i = 0; i < limits::kDeviceFaultsToRest + 1; ++i) {
    const std::string id = CreateJob();
    Fail(id, false);
    EXPECT_EQ(store.GetJob(id)->attempt.reason, Reason::kDeviceFault);
    Cancel(id);
  }
  EXPECT_TRUE(Rests().empty());
  EXPECT_EQ(DevicesWithFaults(), 0u);
}

TEST_F(DeviceFaultsTest, FaultsAreForgottenAfterTheWindow) {
  const std::string one = CreateJob();
  Fail(one);
  Fail(one);
  Cancel(one);
  EXPECT_EQ(DevicesWithFaults(), 1u);
  Pass(session_, {}, limits::kDeviceFaultWindowMs / 1000);
  Fail(CreateJob());
  EXPECT_TRUE(Rests().empty());
  EXPECT_EQ(core->workers().at("w1").faults.at("gpu-0").counted.size(), 1u);
}

TEST_F(DeviceFaultsTest, UndrainingAWorkerEndsTheRestsOfItsDevices) {
  const std::string id = BringToRest();
  ASSERT_EQ(Rests().size(), 1u);
  Pass(session_, {}, 600);
  EXPECT_FALSE(StartOf(*Sync(session_), id).has_value());
  ASSERT_TRUE(Do(core->SetDraining("w1", true)).ok());
  EXPECT_EQ(Rests().size(), 1u);
  ASSERT_TRUE(Do(core->SetDraining("w1", false)).ok());
  EXPECT_TRUE(Rests().empty());
  EXPECT_EQ(DevicesWithFaults(), 0u);
  EXPECT_TRUE(StartOf(*Sync(session_), id).has_value()) << Get(id).reason_detail;
}

TEST_F(DeviceFaultsTest, AnAttemptThatSucceedsClearsItsDevice) {
  const std::string one = CreateJob();
  Fail(one);
  Fail(one);
  Train(one);
  EXPECT_EQ(DevicesWithFaults(), 1u);
  End(session_, keys_[one]);
  EXPECT_EQ(DevicesWithFaults(), 0u);
  Fail(CreateJob());
  EXPECT_TRUE(Rests().empty());
}

TEST_F(DeviceFaultsTest, AFailedCommitTakesAFaultBack) {
  const std::string one = CreateJob();
  Fail(one);
  Train(one);
  store.FailCommits(1);
  AttemptReport report = Failed(keys_[one], Reason::kDeviceFault);
  EXPECT_FALSE(Sync(session_, {report}).ok());
  EXPECT_EQ(core->workers().at("w1").faults.at("gpu-0").counted.size(), 1u);
}

}  // namespace
}  // namespace longhaul::server
