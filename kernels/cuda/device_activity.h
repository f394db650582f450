// How long a device works, kernel by kernel: what CUPTI, the profiling library of CUDA's toolkit, records of kernels,
// copies and fills, those of graphs as well. A span between two events counts the gaps between kernels as work; this
// does not. A kernel's begin is when the device takes it up: the fraction of a microsecond until its first instruction
// is its own. Recording takes time on the host, and on the device between kernels: the sum as a share of steps that are
// not recorded is the best figure, as a share of those that are a lower one. One at a time in a process. Not
// thread-safe. Tests: tests/kernels/cuda/device_activity_test.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace longhaul::kernels {

// Nanoseconds in which at least one of the spans [first, second) is.
uint64_t UnionNanos(std::vector<std::pair<uint64_t, uint64_t>> spans);

class DeviceActivity {
 public:
  struct Sum {
    double seconds = 0;      // in which at least one was running
    double all_seconds = 0;  // from the first one's begin to the last one's end
    int64_t records = 0;
  };

  // Records from here on. The library is looked for when this is called. UNAVAILABLE CUPTI_MISSING: it is not there;
  // CUPTI_FAILED: it does not record here. Takes device memory.
  static absl::StatusOr<std::unique_ptr<DeviceActivity>> Begin();
  virtual ~DeviceActivity() = default;
  // Of what ended since. REQUIRES: the device has nothing to do. Once. Errors: UNAVAILABLE CUPTI_FAILED, also where
  // nothing was recorded.
  virtual absl::StatusOr<Sum> End() = 0;
};

}  // namespace longhaul::kernels
