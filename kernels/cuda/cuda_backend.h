// CUDA as seen from outside: which devices there are, and memory for an Exec on one (Exec::CreateCuda). No CUDA header
// is needed to use it. Defined by longhaul_kernels_cuda: by the backend, or by no_cuda.cc where the build has none;
// then everything here answers UNAVAILABLE, reason NO_CUDA.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/arena.h"
#include "kernels/exec.h"

namespace longhaul::kernels {

// Whether this build can run ops on a CUDA device at all.
bool BuiltWithCuda();

// What the plan, the inventory and a bit-identical resume depend on.
struct CudaDeviceFacts {
  int device = 0;
  std::string name;  // "NVIDIA H100 80GB HBM3"
  std::string uuid;  // "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", as nvidia-smi writes it
  std::string pci_bus_id;
  int compute_capability = 0;  // 90 for 9.0
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t l2_bytes = 0;
  int64_t shared_bytes_per_block = 0;  // the most that a block can ask for
  int driver_version = 0;              // 13000 for CUDA 13.0, what the driver supports
  int runtime_version = 0;             // what this build was made with
};

// Every device that the driver shows, in its order; none (OK) on a machine with a driver and no device.
// UNAVAILABLE as Exec::CreateCuda. Makes no context.
absl::StatusOr<std::vector<CudaDeviceFacts>> CudaDevices();

// Memory of the Exec's device, carved by name. With what is free: UNAVAILABLE, reason DEVICE_MEMORY_TAKEN, where it
// would fit without other programs; RESOURCE_EXHAUSTED, reason DEVICE_OOM, where the device is too small. The Exec
// outlives the arena.
absl::StatusOr<std::unique_ptr<Arena>> CreateDeviceArena(const Exec& exec, int64_t bytes,
                                                         std::vector<ArenaRegion> regions);
// Pinned host memory that the device copies from and to at full rate: huge pages where the machine has them, touched by
// `threads` threads, then registered whole, so that any copy within it is one call. RESOURCE_EXHAUSTED, reason
// HOST_OOM, where mapping or pinning fails (a memlock limit counts).
absl::StatusOr<std::unique_ptr<Arena>> CreatePinnedArena(const Exec& exec, int64_t bytes,
                                                         std::vector<ArenaRegion> regions, int threads);

}  // namespace longhaul::kernels
