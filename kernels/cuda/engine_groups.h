// The linears of attention a group of heads at a time: CudaEngine's, for contexts whose q, k and v are not there all at
// once. The rows that a call needs of q, k and v are laid side by side, so that one product makes all three.
#pragma once

#include <cstdint>

#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/engine_linears.h"
#include "kernels/cuda/lt_gemm.h"
#include "kernels/cuda/stream_profile.h"

namespace longhaul::kernels::cuda {

class EngineGroups {
 public:
  // All arguments outlive it. REQUIRES: memory.attention_weight is there.
  EngineGroups(const Exec& exec, LtGemm* gemm, StreamProfile* profile, const CudaEngineMemory& memory,
               const CudaEngineShapes& shapes, const EngineLinears* linears);

  // CudaEngine's BeginGroup, ForwardGroup, BeginOutputGradient, OutputGradient.
  void Begin(size_t qkv, int64_t group);
  void Forward(size_t qkv, const Tensor& x, const Tensor& u, bool has_u, const Tensor& y);
  void BeginOutputGradient(size_t o);
  void OutputGradient(size_t o, const Tensor& dy, int64_t first, const Tensor& d_o);

 private:
  // Rows [first, first + rows) of linear's W and sB to row `at` of the group's weight.
  void PlaceRows(size_t linear, int64_t first, int64_t rows, int64_t at);
  // The fold of a group's rows, as they lie in the group's weight.
  LoraFold GroupFold(size_t qkv) const;
  void Run(const GemmShape& shape, const GemmOperands& operands);

  const Exec& exec_;
  LtGemm* gemm_;
  StreamProfile* profile_;
  const EngineLinears* linears_;
  GemmWorkspace workspace_;
  int64_t groups_;
  int64_t q_rows_, kv_rows_;             // of a group
  void* output_buffer_;                  // o's weight, where it is not cached
  char* group_weight_;                   // [a group's q, k and v + rank, weight_stride]
  const void* output_weight_ = nullptr;  // of the last BeginOutputGradient
};

}  // namespace longhaul::kernels::cuda
