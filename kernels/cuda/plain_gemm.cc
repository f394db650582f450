#include "kernels/cuda/plain_gemm.h"

#include <cstdint>

#include "base/check.h"
#include "kernels/cuda_error.h"

namespace longhaul::kernels::cuda {
namespace {

void Require(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) throw CudaError("PlainGemm", call, status, cublasLtGetStatusString(status));
}

}  // namespace

PlainGemm::PlainGemm(const GemmShape& shape) {
  LH_CHECK(shape.input == GemmElement::kBF16 && shape.scale == GemmScale::kNone && !shape.accumulate);
  Require(cublasLtCreate(&handle_), "cublasLtCreate");
  Require(cublasLtMatmulDescCreate(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const cublasOperation_t first = shape.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = shape.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  Require(cublasLtMatmulDescSetAttribute(description_, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof(first)), "TRANSA");
  Require(cublasLtMatmulDescSetAttribute(description_, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof(second)), "TRANSB");
  const auto layout = [](cublasLtMatrixLayout_t* to, bool transposed, int64_t rows, int64_t cols, int64_t stride) {
    Require(cublasLtMatrixLayoutCreate(to, CUDA_R_16BF, static_cast<uint64_t>(transposed ? cols : rows),
                                       static_cast<uint64_t>(transposed ? rows : cols), stride),
            "cublasLtMatrixLayoutCreate");
  };
  // The library's matrices are column-major: the operands change places.
  layout(&first_, shape.transpose_b, shape.n, shape.k, shape.b_stride);
  layout(&second_, shape.transpose_a, shape.k, shape.m, shape.a_stride);
  layout(&result_, false, shape.n, shape.m, shape.c_stride);
}

PlainGemm::~PlainGemm() {
  cublasLtMatrixLayoutDestroy(first_);
  cublasLtMatrixLayoutDestroy(second_);
  cublasLtMatrixLayoutDestroy(result_);
  cublasLtMatmulDescDestroy(description_);
  cublasLtDestroy(handle_);
}

void PlainGemm::Run(cudaStream_t stream, const GemmOperands& at, const GemmWorkspace& workspace) const {
  const float alpha = 1, beta = 0;
  Require(cublasLtMatmul(handle_, description_, &alpha, at.b, first_, at.a, second_, &beta, at.c, result_, at.c,
                         result_, nullptr, workspace.data, static_cast<size_t>(workspace.bytes), stream),
          "cublasLtMatmul");
}

}  // namespace longhaul::kernels::cuda
