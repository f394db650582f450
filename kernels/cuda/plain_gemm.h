// cuBLASLt as a program calls it that chooses nothing: its own heuristic in every call. What our products are compared
// with; nothing that trains uses it.
#pragma once

#include <cublasLt.h>

#include "kernels/cuda/lt_gemm.h"

namespace longhaul::kernels::cuda {

class PlainGemm {
 public:
  // REQUIRES: bf16 operands, no scales, no accumulation; LoadCudaLibraries passed.
  explicit PlainGemm(const GemmShape& shape);
  ~PlainGemm();
  PlainGemm(const PlainGemm&) = delete;
  PlainGemm& operator=(const PlainGemm&) = delete;

  // Queued on the stream. Throws CudaError.
  void Run(cudaStream_t stream, const GemmOperands& at, const GemmWorkspace& workspace) const;

 private:
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t description_ = nullptr;
  cublasLtMatrixLayout_t first_ = nullptr, second_ = nullptr, result_ = nullptr;
};

}  // namespace longhaul::kernels::cuda
