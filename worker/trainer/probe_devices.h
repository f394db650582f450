// This machine's GPUs: for `longhaul-train --devices`, which the agent asks, and for runs without one. Opens a context
// on each GPU, so that what is found to work works; it is gone with the process.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "wire/device_probe.h"

namespace longhaul::trainer {

// Every GPU that the driver shows, those that cannot be used with the reason. `measure`: their rates too, about a
// second each.
wire::DeviceProbe ProbeDevices(bool measure);

// The driver's number of the GPU of this UUID. UNAVAILABLE NO_CUDA_DEVICE where it is not there; CudaDevices' errors.
absl::StatusOr<int> CudaDeviceOfId(const std::string& id);

}  // namespace longhaul::trainer
