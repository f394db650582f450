// How long kernels take on a device: what longhaul-bench compares a step's with. Like cuda_backend.h a door: no CUDA
// header is needed, and where the build has no CUDA there is no Exec to call it with.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "kernels/exec.h"
#include "kernels/shapes/gemm_shape.h"

namespace longhaul::kernels {

// Seconds of one call of `work`, which queues on the Exec's compute stream: the median of rounds between events, about
// 0.3 s in all. Throws CudaError.
double SecondsOnDevice(const Exec& exec, const std::function<void()>& work);

// The same of a bf16 product of random operands by cuBLASLt alone, nothing chosen, with 64 MiB of workspace. Takes
// device memory for its operands. Errors: CudaLibraries'; throws CudaError.
absl::StatusOr<double> PlainGemmSeconds(const Exec& exec, const cuda::GemmShape& shape);

// Bytes that the driver's copy within the device reads and writes, a second, over 1 GiB. Throws CudaError.
double DeviceCopyBytesPerSecond(const Exec& exec);

}  // namespace longhaul::kernels
