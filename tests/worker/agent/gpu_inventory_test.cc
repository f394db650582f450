// The agent's view of GPUs, from what a program in longhaul-train's place prints. No GPU is needed.
#include "worker/agent/gpu_inventory.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/format.h"
#include "base/process.h"
#include "base/units.h"
#include "model/cuda_plan.h"
#include "nlohmann/json.hpp"
#include "tests/worker/attempt/temp_dir.h"
#include "wire/device_probe.h"
#include "wire/model_values.h"
#include "worker/agent/inventory.h"
#include "worker/attempt/attempt_dir.h"

namespace longhaul::agent {
namespace {

class GpuInventoryTest : public ::testing::Test {
 protected:
  GpuInventoryTest() {
    options_.state_dir = temp_.At("state");
    options_.trainer_path = temp_.At("probe.sh");
    EXPECT_TRUE(CreateDirs(options_.state_dir).ok());
    gpu_.id = "GPU-1";
    gpu_.name = "NVIDIA H100 80GB HBM3";
    gpu_.compute_capability = 90;
    gpu_.memory_bytes = 79 * kGiB;
    gpu_.used_bytes = 500 << 20;
    gpu_.driver_version = 13000;
    gpu_.libraries = "cuBLASLt 13.1.0, cuDNN 9.14.0";
  }

  // The program answers `list` with the GPUs and `measure` with their speed, too, and notes what it was asked.
  void Script(const std::vector<wire::ProbedGpu>& gpus, const std::string& problem = "") {
    wire::DeviceProbe probe{gpus, problem};
    Write("list.json", wire::DeviceProbeToJson(probe));
    for (wire::ProbedGpu& gpu : probe.gpus) {
      gpu.gemm_flops = 7e14;
      gpu.copy_bytes_per_second = 5e10;
      gpu.memory_bytes_per_second = 4e12;
    }
    Write("measure.json", wire::DeviceProbeToJson(probe));
    Program("echo \"$2\" >> " + temp_.At("asked") + "\ncat " + temp_.path() + "/$2.json\n");
  }
  void Program(const std::string& body) {
    Write("probe.sh", "#!/bin/sh\n" + body);
    ASSERT_EQ(::chmod(options_.trainer_path.c_str(), 0755), 0);
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileAtomic(temp_.At(name), text).ok());
  }
  std::string Asked() {
    std::string asked = ReadFile(temp_.At("asked"), 1 << 10).value_or("");
    (void)RemoveTree(temp_.At("asked"));
    return asked;
  }

  // What is offered beside a CPU of 16 threads.
  std::vector<DeviceFacts> Take() {
    v1::WorkerInventory inventory;
    inventory.set_cpu_threads_total(16);
    inventory.set_disk_bytes_total(50 * kGiB);
    v1::Device* const cpu = inventory.add_devices();
    cpu->set_id("cpu-0");
    cpu->mutable_facts()->set_host_bytes(125 * kGiB);
    lines_.clear();
    const absl::Status status = AddGpus(
        options_, [this](const std::string& line) { lines_ += line + "\n"; }, nullptr, &inventory);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(inventory.devices(0).id(), "cpu-0") << "the CPU serves in any case";
    std::vector<DeviceFacts> gpus;
    for (int i = 1; i < inventory.devices_size(); ++i) {
      const auto facts = wire::FromProto(inventory.devices(i).facts());
      EXPECT_TRUE(facts.ok()) << facts.status();
      gpus.push_back(*facts);
      ids_.insert(inventory.devices(i).id());
    }
    return gpus;
  }

  TempDir temp_;
  InventoryOptions options_;
  wire::ProbedGpu gpu_;
  std::string lines_;
  std::set<std::string> ids_;
};

TEST_F(GpuInventoryTest, OffersWhatTheProbeSaysAndMeasuresOnce) {
  Script({gpu_});
  const std::vector<DeviceFacts> first = Take();
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(ids_, std::set<std::string>({"GPU-1"}));
  EXPECT_EQ(first[0].kind, DeviceKind::kCuda);
  EXPECT_EQ(first[0].isa, "sm_90");
  EXPECT_EQ(first[0].device_bytes, 79 * kGiB);
  EXPECT_EQ(first[0].host_bytes, 125 * kGiB);
  EXPECT_EQ(first[0].cpu_threads, 8);
  EXPECT_DOUBLE_EQ(first[0].gemm_flops, 7e14);
  EXPECT_EQ(Asked(), "list\nmeasure\n");
  EXPECT_NE(lines_.find("measured 700 TFLOP/s"), std::string::npos) << lines_;

  const std::vector<DeviceFacts> second = Take();
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].device_class, first[0].device_class);
  EXPECT_DOUBLE_EQ(second[0].gemm_flops, 7e14);
  EXPECT_DOUBLE_EQ(second[0].memory_bytes_per_second, 4e12);
  EXPECT_EQ(Asked(), "list\n");
  EXPECT_EQ(lines_, "");

  gpu_.driver_version = 13010;
  Script({gpu_});
  EXPECT_NE(Take().at(0).device_class, first[0].device_class);
  EXPECT_EQ(Asked(), "list\nmeasure\n") << "another driver may be faster";
}

TEST_F(GpuInventoryTest, RatesOfAnEarlierVersionAreMeasuredAgain) {
  Script({gpu_});
  Write("state/gpus.json", nlohmann::json({{wire::GpuSpeedKey(gpu_), {7e14, 5e10}}}).dump());
  EXPECT_DOUBLE_EQ(Take().at(0).memory_bytes_per_second, 4e12);
  EXPECT_EQ(Asked(), "list\nmeasure\n");
  EXPECT_DOUBLE_EQ(Take().at(0).memory_bytes_per_second, 4e12);
  EXPECT_EQ(Asked(), "list\n");
}

TEST_F(GpuInventoryTest, SeveralGpusShareTheThreads) {
  wire::ProbedGpu other = gpu_;
  other.id = "GPU-2";
  Script({gpu_, other});
  const std::vector<DeviceFacts> gpus = Take();
  ASSERT_EQ(gpus.size(), 2u);
  EXPECT_EQ(ids_.size(), 2u);
  EXPECT_EQ(gpus[0].device_class, gpus[1].device_class);
  EXPECT_EQ(gpus[0].cpu_threads, 5) << "two GPUs and the CPU at once";
}

TEST_F(GpuInventoryTest, WhatOthersHoldIsNotOffered) {
  gpu_.used_bytes = 20 * kGiB;
  Script({gpu_});
  EXPECT_EQ(Take().at(0).device_bytes, 59 * kGiB);
  const std::string others = FormatBytes(20 * kGiB - kDefaultContextBytes);  // the probe's own context is not theirs
  EXPECT_NE(lines_.find("other programs hold " + others + " of its 79.00 GiB; the other 59.00 GiB are offered"),
            std::string::npos)
      << lines_;
  gpu_.used_bytes = 78 * kGiB;
  Script({gpu_});
  EXPECT_TRUE(Take().empty());
  EXPECT_NE(lines_.find("it is left out"), std::string::npos) << lines_;
}

// A restarted agent finds its trainers at work: their memory is offered, for the scheduler knows that they have it.
TEST_F(GpuInventoryTest, WhatOwnTrainersHoldIsOffered) {
  Script({gpu_});
  ASSERT_EQ(Take().at(0).device_bytes, 79 * kGiB);
  const attempt::AttemptDir dir(options_.state_dir + "/attempts/job.1.1");
  ASSERT_TRUE(dir.Create().ok());
  v1::AttemptSpec spec;
  spec.set_device_id("GPU-1");
  ASSERT_TRUE(dir.WriteSpec(spec).ok());
  ASSERT_TRUE(dir.WritePid(SelfProcessId().value()).ok());
  gpu_.used_bytes = 60 * kGiB;
  Script({gpu_});
  // Nor is its speed measured beside one: an earlier version's has to do.
  Asked();
  Write("state/gpus.json", nlohmann::json({{wire::GpuSpeedKey(gpu_), {6e14, 5e10}}, {"GPU-1", 79 * kGiB}}).dump());
  const DeviceFacts busy = Take().at(0);
  EXPECT_EQ(busy.device_bytes, 79 * kGiB);
  EXPECT_DOUBLE_EQ(busy.gemm_flops, 6e14);
  EXPECT_EQ(busy.memory_bytes_per_second, 0);
  EXPECT_EQ(Asked(), "list\n");
  ASSERT_TRUE(RemoveTree(dir.path()).ok());
  const DeviceFacts free = Take().at(0);
  EXPECT_EQ(free.device_bytes, 19 * kGiB);
  EXPECT_DOUBLE_EQ(free.gemm_flops, 7e14);
  EXPECT_EQ(Asked(), "list\nmeasure\n");
}

TEST_F(GpuInventoryTest, WhatCannotBeUsedIsALineInTheLog) {
  wire::ProbedGpu old = gpu_;
  old.id = "GPU-old";
  old.problem = "has compute capability 7.5; bf16 needs 8.0 or newer";
  Script({old, gpu_});
  EXPECT_EQ(Take().size(), 1u);
  EXPECT_NE(lines_.find("(GPU-old) is left out: has compute capability 7.5"), std::string::npos) << lines_;

  Script({}, "there is no NVIDIA driver on this machine; install one, or run on the CPU");
  EXPECT_TRUE(Take().empty());
  EXPECT_EQ(lines_, "no GPU: there is no NVIDIA driver on this machine; install one, or run on the CPU\n");
}

TEST_F(GpuInventoryTest, AProbeThatFailsIsALineInTheLog) {
  Program("exit 3\n");
  EXPECT_TRUE(Take().empty());
  EXPECT_NE(lines_.find("ended with code 3"), std::string::npos) << lines_;
  Program("kill -SEGV $$\n");
  EXPECT_TRUE(Take().empty());
  EXPECT_NE(lines_.find("was ended by signal 11"), std::string::npos) << lines_;
  Program("echo nonsense\n");
  EXPECT_TRUE(Take().empty());
  EXPECT_NE(lines_.find("is not a JSON object"), std::string::npos) << lines_;
}

TEST_F(GpuInventoryTest, ASignalEndsTheProbe) {
  Program("sleep 600\n");
  v1::WorkerInventory inventory;
  inventory.add_devices();
  const absl::Status status = AddGpus(
      options_, [](const std::string&) {}, [] { return true; }, &inventory);
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

}  // namespace
}  // namespace longhaul::agent
