// GroupedOps on CUDA: kernels/cuda/cuda_engine.h, and copies to and from pinned memory tile by tile.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/cuda_engine.h"
#include "worker/train/grouped_ops.h"
#include "worker/train/memory.h"

namespace longhaul::train {

class CudaGroups final : public GroupedOps {
 public:
  // Both outlive it.
  CudaGroups(const EngineMemory& memory, kernels::CudaEngine* engine);

  void BeginGroup(int64_t layer, int64_t group) override;
  void Project(int64_t layer, const kernels::Tensor& h, const kernels::Tensor& u, bool has_u,
               const kernels::Tensor& qkv) override;
  void BeginBackward(int64_t layer) override;
  void OutputGradient(int64_t layer, const kernels::Tensor& dy, int64_t first, const kernels::Tensor& d_o) override;
  void AttentionForward(int64_t call, const kernels::Tensor& q, const kernels::Tensor& k, const kernels::Tensor& v,
                        const kernels::Tensor& o, const kernels::Tensor& lse) override;
  void AttentionBackward(int64_t call, const kernels::Tensor& d_o, const kernels::Tensor& q, const kernels::Tensor& k,
                         const kernels::Tensor& v, const kernels::Tensor& o, const kernels::Tensor& lse,
                         const kernels::Tensor& dq, const kernels::Tensor& dk, const kernels::Tensor& dv) override;
  void BeginAttention() override;
  void AttentionWritten(int64_t layer) override;
  void EndForward() override { BeginAttention(); }
  void Fetch(int64_t layer, int64_t begin, int64_t end) override;
  void Wait(int64_t begin) override;

  // Nothing is on its way: after passes whose copies did not happen.
  void Forget();

 private:
  bool Leaves(int64_t layer) const;
  char* OutputOnHost(int64_t layer) const;
  // Numbers of copies (CudaEngine::CopyOut): behind those of whole streams (cuda_ops.cc).
  size_t Number(int64_t i) const;
  size_t TileNumber(int64_t begin) const;

  const EngineMemory& memory_;
  kernels::CudaEngine& engine_;
  int64_t tile_rows_;
  int64_t stream_row_bytes_, output_row_bytes_;
  int64_t output_bytes_, statistics_bytes_;  // of a layer
  char* stream_;                             // x of the layer at hand
  char* stream_host_;                        // [layers]; null: every x stays where it is
  char* output_;                             // attention's output of the layer at hand
  char* statistics_;
  char* output_host_;  // [keep_attention_layers] of output and statistics; null: none leaves
  bool leaving_ = false;
  bool statistics_fetched_ = false;
  std::vector<bool> fetched_;  // tiles that are on their way
};

}  // namespace longhaul::train
