// Attention of a step: CudaEngine's, over cuDNN's plans for equal sequences and for packed documents.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/sdpa.h"
#include "kernels/cuda/stream_profile.h"

namespace longhaul::kernels::cuda {

class EngineAttention {
 public:
  static absl::StatusOr<std::unique_ptr<EngineAttention>> Create(const Exec& exec, StreamProfile* profile,
                                                                 const CudaEngineMemory& memory,
                                                                 const CudaEngineShapes& shapes);

  void BeginBatch(const int64_t* offsets, int64_t documents);
  int64_t batch_form() const { return is_dense_ ? 0 : parts_; }
  void Forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse) const;
  void Backward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) const;
  // One call: q, k, v, o and the gradients are its columns, lse the statistics of all calls.
  void CallForward(int64_t call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                   const Tensor& lse) const;
  void CallBackward(int64_t call, const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                    const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) const;
  std::string Describe() const;

 private:
  EngineAttention(const Exec& exec, StreamProfile* profile, const CudaEngineMemory& memory)
      : exec_(exec), profile_(profile), memory_(memory) {}
  absl::Status CheckWorkspace(const SdpaPlan& plan) const;
  const SdpaPlan& plan() const { return is_dense_ ? *dense_ : *packed_; }
  SdpaBuffers Buffers(int64_t call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                      const Tensor& lse) const;
  // Calls of the library that one call of ours is: one, or one for each document of the batch.
  int64_t parts() const { return is_dense_ ? 1 : parts_; }
  int64_t IndexBytes() const;  // of all parts that there may be
  void* Index(int64_t part) const;
  // The columns of a call's heads.
  Tensor Part(const Tensor& all, int64_t call) const;
  // k, v, dk, dv (0 to 3) of a call in contiguous rows: for packed documents, where they are not in such.
  Tensor PackedKv(int64_t which, const Tensor& like) const;

  const Exec& exec_;
  StreamProfile* profile_;
  CudaEngineMemory memory_;
  std::unique_ptr<Cudnn> cudnn_;
  std::unique_ptr<SdpaPlan> dense_;  // null where no batch is
  std::unique_ptr<SdpaPlan> packed_;
  bool is_dense_ = false;
  int64_t calls_ = 1;
  int64_t documents_ = 0;  // of a batch, at most
  int64_t parts_ = 0;      // of this batch
};

}  // namespace longhaul::kernels::cuda
