#include "worker/trainer/probe_devices.h"

#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/device_rates.h"
#include "kernels/cuda_error.h"

namespace longhaul::trainer {
namespace {

wire::ProbedGpu Described(const kernels::CudaDeviceFacts& facts) {
  wire::ProbedGpu gpu;
  gpu.id = facts.uuid;
  gpu.name = facts.name;
  gpu.compute_capability = facts.compute_capability;
  gpu.multiprocessors = facts.multiprocessors;
  gpu.memory_bytes = facts.memory_bytes;
  gpu.driver_version = facts.driver_version;
  gpu.runtime_version = facts.runtime_version;
  return gpu;
}

absl::Status Try(int device, bool measure, wire::ProbedGpu* gpu) {
  LH_ASSIGN_OR_RETURN(gpu->libraries, kernels::CudaLibraries());
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Exec> exec, kernels::Exec::CreateCuda(device));
  gpu->used_bytes = kernels::CudaUsedBytes(*exec);
  LH_ASSIGN_OR_RETURN(gpu->cudnn_version, kernels::CudnnVersion());
  LH_ASSIGN_OR_RETURN(gpu->has_fp8, kernels::HasFp8Products(*exec));
  if (!measure) return absl::OkStatus();
  LH_ASSIGN_OR_RETURN(const kernels::CudaRates rates, kernels::MeasureCudaRates(*exec));
  gpu->gemm_flops = rates.gemm_flops;
  gpu->copy_bytes_per_second = rates.copy_bytes_per_second;
  gpu->memory_bytes_per_second = rates.memory_bytes_per_second;
  return absl::OkStatus();
}

}  // namespace

wire::DeviceProbe ProbeDevices(bool measure) {
  wire::DeviceProbe probe;
  const auto devices = kernels::CudaDevices();
  if (!devices.ok()) {
    probe.problem = std::string(devices.status().message());
    return probe;
  }
  if (devices->empty()) probe.problem = "the NVIDIA driver shows no GPU; is one given to this container or machine?";
  for (const kernels::CudaDeviceFacts& facts : *devices) {
    wire::ProbedGpu gpu = Described(facts);
    try {
      gpu.problem = std::string(Try(facts.device, measure, &gpu).message());
    } catch (const kernels::CudaError& error) {
      gpu.problem = error.what();
    }
    probe.gpus.push_back(std::move(gpu));
  }
  return probe;
}

absl::StatusOr<int> CudaDeviceOfId(const std::string& id) {
  LH_ASSIGN_OR_RETURN(const std::vector<kernels::CudaDeviceFacts> devices, kernels::CudaDevices());
  for (const kernels::CudaDeviceFacts& facts : devices) {
    if (facts.uuid == id) return facts.device;
  }
  return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA_DEVICE",
                   "GPU " + id + " is not there any more: the driver shows " + std::to_string(devices.size()) +
                       "; restart longhaul-worker");
}

}  // namespace longhaul::trainer
