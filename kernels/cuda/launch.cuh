// The only place that launches kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "base/check.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {

// Queues kernel<<<blocks, threads, shared_bytes>>> on the Exec's compute stream; nothing where blocks is 0. Throws
// CudaError naming `op`. Arguments are converted to the kernel's parameter types.
template <typename... Parameters, typename... Arguments>
void Launch(const Exec& exec, const char* op, void (*kernel)(Parameters...), int64_t blocks, int threads,
            int64_t shared_bytes, const Arguments&... arguments) {
  LH_CHECK(blocks >= 0 && blocks <= std::numeric_limits<int32_t>::max(), std::to_string(blocks));
  if (blocks == 0) return;
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes),
           exec.cuda().compute.get()>>>(static_cast<Parameters>(arguments)...);
  CheckCuda(cudaGetLastError(), op, "kernel launch");
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace longhaul::kernels::cuda
