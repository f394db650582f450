// How ops launch their kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/check.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/launch_on.cuh"

namespace longhaul::kernels::cuda {

// Queues kernel<<<blocks, threads, shared_bytes>>> on the Exec's compute stream; nothing where blocks is 0. Throws
// CudaError naming `op`. Arguments are converted to the kernel's parameter types.
template <typename... Parameters, typename... Arguments>
void Launch(const Exec& exec, const char* op, void (*kernel)(Parameters...), int64_t blocks, int threads,
            int64_t shared_bytes, const Arguments&... arguments) {
  if (blocks == 0) return;
  LaunchOn(exec.cuda().compute.get(), op, kernel, blocks, threads, shared_bytes, arguments...);
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace longhaul::kernels::cuda
