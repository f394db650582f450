// cuBLASLt, cuDNN and NVRTC are loaded when they are first used: a binary with this backend starts, and trains on the
// CPU, on a machine that has none of them. lazy_libraries.cc defines the functions of theirs that we and cuDNN's front
// end call; without the library they return its "not initialised".
#pragma once

#include "absl/status/status.h"

namespace longhaul::kernels::cuda {

// Loads them. UNAVAILABLE, reason CUDA_LIBRARY_MISSING, names what was not found, and where it was looked for.
// Thread-safe.
absl::Status LoadCudaLibraries();

}  // namespace longhaul::kernels::cuda
