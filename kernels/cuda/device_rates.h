// What the inventory measures of a device, and the libraries that are part of its class. Like cuda_backend.h a door: no
// CUDA header is needed, and where the build has no CUDA everything here answers UNAVAILABLE, reason NO_CUDA.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kernels/exec.h"

namespace longhaul::kernels {

// "cuBLASLt 13.1.0, cuDNN 9.14.0", as they are loaded. UNAVAILABLE: reason CUDA_LIBRARY_MISSING names what is absent.
absl::StatusOr<std::string> CudaLibraries();

// What cudnnGetVersion says: 91400 for 9.14.0. Errors: CudaLibraries'.
absl::StatusOr<int> CudnnVersion();

// Whether cuBLASLt multiplies E4M3 operands with a scale a row on the Exec's device: it has such products for some
// generations alone. Errors: CudaLibraries', LtGemm::Create's.
absl::StatusOr<bool> HasFp8Products(const Exec& exec);

struct CudaRates {
  double gemm_flops = 0;               // of a large bf16 product, per second
  double copy_bytes_per_second = 0;    // from pinned host memory to the device
  double memory_bytes_per_second = 0;  // of the device's memory, what a copy within it reads and writes together
};

// Some two seconds of work (products on random data), and 200 MiB of the device. Errors: CudaLibraries',
// LtGemm::Create's, DEVICE_OOM and HOST_OOM; throws CudaError where a call fails.
absl::StatusOr<CudaRates> MeasureCudaRates(const Exec& exec);

}  // namespace longhaul::kernels
