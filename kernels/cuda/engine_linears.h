// The linears of a step: CudaEngine's, on cuBLASLt.
//
// In bf16 a linear and its adapter are one product, K-augmented (kernels/shapes/lora_fold.h). Two things need the
// adapter's part by itself: FP8, whose operands cannot carry it, and dropout on the way back, where each module's
// gradient passes a mask of its own. There the adapter writes its part first and the frozen product adds to it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/fp8_products.h"
#include "kernels/cuda/lt_gemm.h"
#include "kernels/cuda/nf4_linear.h"
#include "kernels/cuda/stream_profile.h"

namespace longhaul::kernels::cuda {

class EngineLinears {
 public:
  EngineLinears(const Exec& exec, LtGemm* gemm, StreamProfile* profile, const CudaEngineMemory& memory,
                std::vector<CudaLinear> linears, bool fp8);

  // CudaEngine's.
  void PlaceAdapters() const;
  void SetDropout(double probability, uint64_t key);
  void Forward(size_t linear, const Tensor& x, int64_t first_row, const Tensor& residual, const Tensor& y,
               const Tensor& u);
  void Input(size_t linear, const Tensor& x, int64_t first_row, const Tensor& u);
  void BackwardInput(size_t linear, const Tensor& dy, int64_t first_row, const Tensor& dx);
  void Gradients(size_t linear, const Tensor& dy, const Tensor& x, int64_t first_row, const Tensor& u);

  const FrozenLinear& frozen(size_t linear) const { return linears_.at(linear).frozen; }
  const std::vector<AdapterPart>& adapter(size_t linear) const { return linears_.at(linear).adapter; }

 private:
  struct Linear {
    FrozenLinear frozen;
    std::vector<AdapterPart> adapter;
    std::vector<CudaLoraPart> parts;
    float scale = 1;
    void* buffer = nullptr;  // where it is dequantised
    void* block = nullptr;   // FP8: of the adapter
  };
  // The adapter's matrices in bf16: sb [out, rank], a [rank, in].
  struct Matrices {
    const void* sb = nullptr;
    const void* a = nullptr;
    int64_t sb_stride = 0, a_stride = 0;
  };
  Matrices In(const Linear& linear, const void* weight) const;
  // W, sB and A, ready to multiply with. Not in FP8.
  const void* Weight(const Linear& linear);
  void PlaceBlock(const Linear& linear) const;

  // u = x A^T, of what is left of x for each module.
  void Down(const Linear& linear, const Matrices& m, const Tensor& x, int64_t first_row, const Tensor& u);
  // dx = v A, each module's through its mask.
  void BackwardUp(const Linear& linear, const Matrices& m, const Tensor& v, int64_t first_row, const Tensor& dx);
  void GradB(const Linear& linear, const Tensor& dy, const Tensor& u);
  void GradA(const Linear& linear, const Tensor& v, const Tensor& x, int64_t first_row);
  Tensor Dropped(const CudaLoraPart& part, const Tensor& x, int64_t first_row) const;
  void Run(const GemmShape& shape, float alpha, const GemmOperands& operands);

  const Exec& exec_;
  LtGemm* gemm_;
  StreamProfile* profile_;
  CudaEngineMemory memory_;
  std::unique_ptr<Fp8Products> fp8_;  // null: bf16
  std::vector<Linear> linears_;
  double dropout_ = 0;
  uint64_t dropout_key_ = 0;
};

}  // namespace longhaul::kernels::cuda
