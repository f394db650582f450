// The CUDA backend's door. Which file is linked, cuda_exec.cc or no_cuda.cc, is decided by the build.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/exec.h"

namespace longhaul::kernels {

// Whether this build can run ops on a CUDA device at all.
bool BuiltWithCuda();

// An Exec on CUDA device `device`. UNAVAILABLE, reason NO_CUDA, where the build has no CUDA.
absl::StatusOr<std::unique_ptr<Exec>> CreateCudaExec(int device);

}  // namespace longhaul::kernels
