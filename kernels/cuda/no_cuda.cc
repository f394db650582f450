// Linked where CUDA is off.
#include <string>

#include "base/error.h"
#include "kernels/cuda/cuda_backend.h"

namespace longhaul::kernels {
namespace {

absl::Status NoCuda(const std::string& what) {
  return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA",
                   "this build of Longhaul has no CUDA support, so " + what +
                       " cannot be used; run on the CPU, or build where the CUDA toolkit is installed");
}

}  // namespace

bool BuiltWithCuda() { return false; }

absl::StatusOr<std::unique_ptr<Exec>> Exec::CreateCuda(int device) {
  return NoCuda("CUDA device " + std::to_string(device));
}

absl::StatusOr<std::vector<CudaDeviceFacts>> CudaDevices() { return NoCuda("a CUDA device"); }

absl::StatusOr<std::unique_ptr<Arena>> CreateDeviceArena(const Exec&, int64_t, std::vector<ArenaRegion>) {
  return NoCuda("device memory");
}

absl::StatusOr<std::unique_ptr<Arena>> CreatePinnedArena(const Exec&, int64_t, std::vector<ArenaRegion>, int) {
  return NoCuda("pinned memory");
}

}  // namespace longhaul::kernels
