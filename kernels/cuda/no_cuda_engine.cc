// Linked where CUDA is off.
#include "base/check.h"
#include "base/error.h"
#include "kernels/cuda/cuda_engine.h"

namespace longhaul::kernels {

absl::StatusOr<std::unique_ptr<CudaEngine>> CudaEngine::Create(const Exec&, const CudaEngineMemory&,
                                                               const CudaEngineShapes&, std::vector<CudaLinear>,
                                                               const void*) {
  return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA",
                   "this build of Longhaul has no CUDA support; run on the CPU, or build where the CUDA toolkit is "
                   "installed");
}

int64_t CudaUsedBytes(const Exec&) {
  LH_CHECK(false, "there is no CUDA Exec in a build without CUDA");
  return 0;
}

}  // namespace longhaul::kernels
