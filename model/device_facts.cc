#include "model/device_facts.h"

#include <cmath>

#include "base/error.h"

namespace longhaul {

bool DevicePacksWeights(const DeviceFacts& facts) { return facts.isa.rfind("avx512", 0) == 0; }

int64_t RuntimeHostBytes(const DeviceFacts& facts, int64_t vocab) {
  return (facts.runtime_host_bytes > 0 ? facts.runtime_host_bytes : kDefaultRuntimeHostBytes) +
         vocab * kTokenizerBytesPerToken;
}

absl::Status ValidateDeviceFacts(const DeviceFacts& facts) {
  constexpr int kMaxThreads = 4096;
  if (facts.cpu_threads < 1 || facts.cpu_threads > kMaxThreads) {
    return InvalidField("device.cpu_threads",
                        "is " + std::to_string(facts.cpu_threads) + "; must be 1 to " + std::to_string(kMaxThreads));
  }
  if (facts.host_bytes < 0 || facts.device_bytes < 0 || facts.disk_bytes < 0 || facts.runtime_host_bytes < 0) {
    return InvalidField("device", "has a negative number of bytes");
  }
  if (facts.cudnn_version < 0) return InvalidField("device.cudnn_version", "is negative");
  if (!(facts.gemm_flops >= 0) || !std::isfinite(facts.gemm_flops)) {
    return InvalidField("device.gemm_flops", "must be a finite number, 0 or more");
  }
  if (!(facts.memory_bytes_per_second >= 0) || !std::isfinite(facts.memory_bytes_per_second)) {
    return InvalidField("device.memory_bytes_per_second", "must be a finite number, 0 or more");
  }
  return absl::OkStatus();
}

}  // namespace longhaul
