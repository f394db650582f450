// An adapter's f32 masters into the places that lora_fold.h gives them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/nf4_linear.h"
#include "kernels/shapes/lora_fold.h"

namespace longhaul::kernels::cuda {

// Rows [first_row, first_row + rows) of s B, block-diagonal over the stacked linears, to sb, and all of A to a (null: A
// is not wanted); bf16, fold.weight_stride from row to row. Throws CudaError.
void LaunchPlaceAdapter(cudaStream_t stream, const LoraFold& fold, const std::vector<AdapterPart>& parts,
                        int64_t first_row, int64_t rows, void* sb, void* a);

}  // namespace longhaul::kernels::cuda
