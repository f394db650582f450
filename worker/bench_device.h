// The first GPU as longhaul-bench plans for it.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "model/device_facts.h"

namespace longhaul {

// With `device_bytes` of its memory and `host_bytes` of the machine's; 0: all, and what is available. Whether it has
// FP8 is left to the engine, which asks the library. UNAVAILABLE: there is none, or the CUDA libraries are not there.
absl::StatusOr<DeviceFacts> BenchGpuFacts(int64_t device_bytes, int64_t host_bytes, int threads);

}  // namespace longhaul
