// Our own attention kernels: correct for every SdpaShape, slow (no tensor cores), bit-identical from run to run, no
// workspace that grows with the square of the length. And the kernel that writes the index arrays of packed documents.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/sdpa.h"

namespace longhaul::kernels::cuda {

void LaunchSdpaIndex(cudaStream_t stream, const SdpaShape& shape, const int64_t* rows_q, const int64_t* rows_kv,
                     void* index);
void LaunchSdpaForward(cudaStream_t stream, const SdpaShape& shape, bool stats_are_rows, const SdpaBuffers& buffers);
// delta: SdpaReferenceWorkspaceBytes.
void LaunchSdpaBackward(cudaStream_t stream, const SdpaShape& shape, bool stats_are_rows, const SdpaBuffers& buffers,
                        float* delta);

}  // namespace longhaul::kernels::cuda
