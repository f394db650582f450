// What `longhaul-train --devices` finds out about this machine's GPUs, as the text between it and the agent: the agent
// itself holds no CUDA context, which would take device memory for as long as it lives. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/device_facts.h"

namespace longhaul::wire {

struct ProbedGpu {
  std::string id;              // its UUID: "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
  std::string name;            // "NVIDIA H100 80GB HBM3"
  int compute_capability = 0;  // 90 for 9.0
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t used_bytes = 0;  // by every process, the probe's own context among them
  int driver_version = 0;  // 13000 for CUDA 13.0
  int runtime_version = 0;
  std::string libraries;  // "cuBLASLt 13.1.0, cuDNN 9.14.0"
  int cudnn_version = 0;  // 91400 for 9.14.0
  bool has_fp8 = false;   // cuBLASLt multiplies E4M3 operands with a scale a row
  double gemm_flops = 0;  // 0 = not measured
  double copy_bytes_per_second = 0;
  double memory_bytes_per_second = 0;
  std::string problem;  // why nothing can train on it, and what to do; "" = it can
};

struct DeviceProbe {
  std::vector<ProbedGpu> gpus;
  std::string problem;  // why there are none to look at, and what to do
};

std::string DeviceProbeToJson(const DeviceProbe& probe);
// INVALID_ARGUMENT where the text is not DeviceProbeToJson's.
absl::StatusOr<DeviceProbe> DeviceProbeFromJson(const std::string& text);

// What a GPU's speed belongs to: measured again for another driver or other libraries.
std::string GpuSpeedKey(const ProbedGpu& gpu);

// Memory that other programs hold: what is in use beyond a context of ours. Less than kIgnoredGpuBytes is 0.
inline constexpr int64_t kIgnoredGpuBytes = int64_t{256} << 20;
int64_t GpuBytesOfOthers(const ProbedGpu& gpu);

// Host memory of a trainer on a GPU outside its arena: what the driver and NVIDIA's libraries map and allocate.
inline constexpr int64_t kGpuRuntimeHostBytes = int64_t{1} << 30;

// Of the machine that the GPU is in.
struct GpuHost {
  int64_t host_bytes = 0;
  int64_t disk_bytes = 0;
  int cpu_threads = 1;  // that one attempt on it takes
};
// With `device_bytes` of its memory. A class is what has the same plans and gives the same bits: the kind of GPU, the
// memory of both sides and the threads; and, as a short hash, driver, CUDA runtime and libraries.
DeviceFacts FactsOfGpu(const ProbedGpu& gpu, int64_t device_bytes, const GpuHost& host);

// "126g", or "400m" where it is not a whole number of GiB: for class names.
std::string ClassBytes(int64_t bytes);

}  // namespace longhaul::wire
