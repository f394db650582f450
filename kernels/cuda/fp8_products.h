// The frozen half of a step's linears in FP8 (kernels/shapes/fp8_linear.h): tokens are quantised for each product, with
// a scale each; weights lie in E4M3, or are made from NF4 for each use.
// Queued on the Exec's stream. Throws CudaError. Tests: tests/worker/train/cuda_compute_test.cc.
#pragma once

#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/lt_gemm.h"
#include "kernels/cuda/nf4_linear.h"
#include "kernels/cuda/stream_profile.h"
#include "kernels/shapes/fp8_linear.h"

namespace longhaul::kernels::cuda {

class Fp8Products {
 public:
  // Borrows all but `memory`, of which gemm, weight, fp8_weight and fp8_rows are its.
  Fp8Products(const Exec& exec, LtGemm* gemm, StreamProfile* profile, const CudaEngineMemory& memory);

  struct Operand {
    const void* values = nullptr;
    const float* scales = nullptr;
  };
  // Tokens as an operand, until the next call. To be made as soon as they are written: then they are in the cache.
  Operand Quantise(const Tensor& x) const;

  // y = x W^T, plus `residual` where its data is not null (laid out as y, and possibly y itself). x [y.rows, in].
  // `linear`: its cache is Fp8Linear's; null: W is dequantised and quantised again. Its adapter is not looked at.
  void Forward(const FrozenLinear& linear, const Operand& x, const Tensor& residual, const Tensor& y) const;
  // dx = dy W, plus what is there where `accumulate`. dy [dx.rows, out].
  void Backward(const FrozenLinear& linear, const Operand& dy, bool accumulate, const Tensor& dx) const;

 private:
  Operand Weight(const FrozenLinear& linear, bool transposed) const;

  const Exec& exec_;
  LtGemm* gemm_;
  StreamProfile* profile_;
  CudaEngineMemory memory_;
};

}  // namespace longhaul::kernels::cuda
