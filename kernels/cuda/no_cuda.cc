// Linked where CUDA is off.
#include <string>

#include "base/error.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels {

bool BuiltWithCuda() { return false; }

absl::StatusOr<std::unique_ptr<Exec>> CreateCudaExec(int device) {
  return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA",
                   "this build of Longhaul has no CUDA support, so CUDA device " + std::to_string(device) +
                       " cannot be used; run on the CPU, or build where the CUDA toolkit is installed");
}

}  // namespace longhaul::kernels
