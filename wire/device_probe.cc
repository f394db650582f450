#include "wire/device_probe.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/units.h"
#include "model/cuda_plan.h"
#include "model/json_fields.h"
#include "nlohmann/json.hpp"

namespace longhaul::wire {
namespace {

constexpr size_t kMaxTextBytes = 4096;
constexpr int64_t kMaxMemoryBytes = int64_t{1} << 50;
constexpr double kMaxRate = 1e20;
constexpr int kMaxVersion = 1'000'000;

nlohmann::json ToJson(const ProbedGpu& gpu) {
  return {{"id", gpu.id},
          {"name", gpu.name},
          {"compute_capability", gpu.compute_capability},
          {"multiprocessors", gpu.multiprocessors},
          {"memory_bytes", gpu.memory_bytes},
          {"used_bytes", gpu.used_bytes},
          {"driver_version", gpu.driver_version},
          {"runtime_version", gpu.runtime_version},
          {"libraries", gpu.libraries},
          {"cudnn_version", gpu.cudnn_version},
          {"has_fp8", gpu.has_fp8},
          {"gemm_flops", gpu.gemm_flops},
          {"copy_bytes_per_second", gpu.copy_bytes_per_second},
          {"memory_bytes_per_second", gpu.memory_bytes_per_second},
          {"problem", gpu.problem}};
}

absl::StatusOr<ProbedGpu> GpuFromJson(const nlohmann::json& json) {
  ProbedGpu gpu;
  JsonFields fields(json, "device probe: gpu");
  fields.String("id", kMaxTextBytes, &gpu.id);
  fields.String("name", kMaxTextBytes, &gpu.name);
  fields.Int("compute_capability", 0, kMaxVersion, &gpu.compute_capability);
  fields.Int("multiprocessors", 0, kMaxVersion, &gpu.multiprocessors);
  fields.Int("memory_bytes", 0, kMaxMemoryBytes, &gpu.memory_bytes);
  fields.Int("used_bytes", 0, kMaxMemoryBytes, &gpu.used_bytes);
  fields.Int("driver_version", 0, kMaxVersion, &gpu.driver_version);
  fields.Int("runtime_version", 0, kMaxVersion, &gpu.runtime_version);
  fields.String("libraries", kMaxTextBytes, &gpu.libraries);
  fields.Int("cudnn_version", 0, kMaxVersion, &gpu.cudnn_version);
  fields.Bool("has_fp8", &gpu.has_fp8);
  fields.Double("gemm_flops", 0, kMaxRate, &gpu.gemm_flops);
  fields.Double("copy_bytes_per_second", 0, kMaxRate, &gpu.copy_bytes_per_second);
  fields.Double("memory_bytes_per_second", 0, kMaxRate, &gpu.memory_bytes_per_second);
  fields.String("problem", kMaxTextBytes, &gpu.problem);
  if (!fields.status().ok()) return fields.status();
  return gpu;
}

std::string Version(int value) { return std::to_string(value / 1000) + "." + std::to_string(value % 1000 / 10); }

}  // namespace

std::string DeviceProbeToJson(const DeviceProbe& probe) {
  nlohmann::json gpus = nlohmann::json::array();
  for (const ProbedGpu& gpu : probe.gpus) gpus.push_back(ToJson(gpu));
  const nlohmann::json json = {{"gpus", std::move(gpus)}, {"problem", probe.problem}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<DeviceProbe> DeviceProbeFromJson(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidField("device probe", "is not a JSON object");
  DeviceProbe probe;
  JsonFields fields(json, "device probe");
  fields.String("problem", kMaxTextBytes, &probe.problem);
  const nlohmann::json* const gpus = fields.RequiredArray("gpus", limits::kMaxDevicesPerWorker - 1);
  if (!fields.status().ok()) return fields.status();
  for (const nlohmann::json& one : *gpus) {
    if (!one.is_object()) return InvalidField("device probe: gpu", "is not a JSON object");
    auto gpu = GpuFromJson(one);
    if (!gpu.ok()) return gpu.status();
    probe.gpus.push_back(*std::move(gpu));
  }
  return probe;
}

std::string GpuSpeedKey(const ProbedGpu& gpu) {
  return gpu.id + "|driver " + Version(gpu.driver_version) + "|" + gpu.libraries;
}

int64_t GpuBytesOfOthers(const ProbedGpu& gpu) {
  const int64_t others = gpu.used_bytes - kDefaultContextBytes;
  return others < kIgnoredGpuBytes ? 0 : others;
}

DeviceFacts FactsOfGpu(const ProbedGpu& gpu, int64_t device_bytes, const GpuHost& host) {
  std::string name = gpu.name;
  std::replace(name.begin(), name.end(), ' ', '-');
  const std::string bits = gpu.name + "\n" + std::to_string(gpu.multiprocessors) + "\n" + Version(gpu.driver_version) +
                           "\n" + Version(gpu.runtime_version) + "\n" + gpu.libraries;
  DeviceFacts facts;
  facts.device_class = name + "-" + ClassBytes(device_bytes) + "-" + std::to_string(host.cpu_threads) + "t-" +
                       ClassBytes(host.host_bytes) + "-" + Sha256Hex(bits).substr(0, 6);
  facts.kind = DeviceKind::kCuda;
  facts.device_bytes = device_bytes;
  facts.host_bytes = host.host_bytes;
  facts.disk_bytes = host.disk_bytes;
  facts.cpu_threads = host.cpu_threads;
  facts.isa = "sm_" + std::to_string(gpu.compute_capability);
  facts.compute_capability =
      std::to_string(gpu.compute_capability / 10) + "." + std::to_string(gpu.compute_capability % 10);
  facts.has_bf16 = true;
  facts.has_fp8 = gpu.has_fp8;
  facts.cudnn_version = gpu.cudnn_version;
  // context_bytes stays open: what the plan knows of it was measured with all libraries at work, which no short probe
  // loads.
  facts.runtime_host_bytes = kGpuRuntimeHostBytes;
  facts.gemm_flops = gpu.gemm_flops;
  facts.copy_bytes_per_second = gpu.copy_bytes_per_second;
  facts.memory_bytes_per_second = gpu.memory_bytes_per_second;
  return facts;
}

std::string ClassBytes(int64_t bytes) {
  return bytes % (1024 * kMiB) == 0 ? std::to_string(bytes / (1024 * kMiB)) + "g" : std::to_string(bytes / kMiB) + "m";
}

}  // namespace longhaul::wire
