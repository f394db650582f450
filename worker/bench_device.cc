#include "worker/bench_device.h"

#include <string>
#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_rates.h"

namespace longhaul {

absl::StatusOr<DeviceFacts> BenchGpuFacts(int64_t device_bytes, int64_t host_bytes, int threads) {
  LH_ASSIGN_OR_RETURN(const std::vector<kernels::CudaDeviceFacts> devices, kernels::CudaDevices());
  if (devices.empty()) {
    return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA_DEVICE",
                     "there is no GPU; --device cpu measures the processor");
  }
  DeviceFacts facts;
  facts.kind = DeviceKind::kCuda;
  facts.device_class = devices.front().name;
  facts.isa = "sm_" + std::to_string(devices.front().compute_capability);
  facts.device_bytes = device_bytes > 0 ? device_bytes : devices.front().memory_bytes;
  LH_ASSIGN_OR_RETURN(facts.cudnn_version, kernels::CudnnVersion());
  facts.has_fp8 = true;
  facts.cpu_threads = threads;
  facts.host_bytes = host_bytes > 0 ? host_bytes : HostMemAvailableBytes();
  return facts;
}

}  // namespace longhaul
