// Ops of the loss on a stream of the caller's, which may be one that is only captured (cut_cross_entropy.cc).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/ops.h"

namespace longhaul::kernels::cuda {

// BeginLoss and UpdateLoss of ops.h. They throw CudaError where a launch fails.
void BeginLossOn(cudaStream_t stream, const LossRows& rows);
void UpdateLossOn(const Exec& exec, cudaStream_t stream, const Tensor& logits, int64_t first_col, const int32_t* labels,
                  const LossRows& rows, const Tensor& weights, const Tensor& sums);

}  // namespace longhaul::kernels::cuda
