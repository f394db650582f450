// Launches a kernel on a stream, for code that has no Exec; launch.cuh is for ops. Every launch goes through here, but
// for attention's grids of two dimensions (sdpa_kernels.cu).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <string>

#include "base/check.h"
#include "kernels/cuda_error.h"

namespace longhaul::kernels::cuda {

// Queues kernel<<<blocks, threads, shared_bytes, stream>>>. Throws CudaError naming `op`. Arguments are converted to
// the kernel's parameter types. REQUIRES: blocks > 0.
template <typename... Parameters, typename... Arguments>
void LaunchOn(cudaStream_t stream, const char* op, void (*kernel)(Parameters...), int64_t blocks, int threads,
              int64_t shared_bytes, const Arguments&... arguments) {
  LH_CHECK(blocks > 0 && blocks <= std::numeric_limits<int32_t>::max(), std::to_string(blocks));
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), stream>>>(
      static_cast<Parameters>(arguments)...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw CudaError(op, "kernel launch", error, cudaGetErrorString(error));
}

}  // namespace longhaul::kernels::cuda
