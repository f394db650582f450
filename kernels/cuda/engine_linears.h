// The linears of a step: CudaEngine's, on cuBLASLt.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/lt_gemm.h"
#include "kernels/cuda/nf4_linear.h"
#include "kernels/cuda/stream_profile.h"

namespace longhaul::kernels::cuda {

class EngineLinears {
 public:
  EngineLinears(const Exec& exec, LtGemm* gemm, StreamProfile* profile, const CudaEngineMemory& memory,
                std::vector<CudaLinear> linears);

  void PlaceAdapters() const;
  void Forward(size_t linear, const Tensor& x, const Tensor& residual, const Tensor& y, const Tensor& u);
  void Input(size_t linear, const Tensor& x, const Tensor& u);
  void BackwardInput(size_t linear, const Tensor& dy, const Tensor& dx);
  void Gradients(size_t linear, const Tensor& dy, const Tensor& x, const Tensor& u);

  const FrozenLinear& frozen(size_t linear) const { return linears_.at(linear).frozen; }
  const std::vector<AdapterPart>& adapter(size_t linear) const { return linears_.at(linear).adapter; }

 private:
  struct Linear {
    FrozenLinear frozen;
    std::vector<AdapterPart> adapter;
    std::vector<CudaLoraPart> parts;
    float scale = 1;
    void* buffer = nullptr;  // where it is dequantised
  };
  // W, sB and A, ready to multiply with.
  const void* Weight(const Linear& linear);
  // A alone.
  const void* DownWeight(const Linear& linear);
  void Down(const Linear& linear, const void* a, const Tensor& x, const Tensor& u);
  // Chooses the shape's kernel where it is new, then runs it.
  void Run(const GemmShape& shape, float alpha, const GemmOperands& operands);

  const Exec& exec_;
  LtGemm* gemm_;
  StreamProfile* profile_;
  GemmWorkspace workspace_;
  std::vector<Linear> linears_;
};

}  // namespace longhaul::kernels::cuda
