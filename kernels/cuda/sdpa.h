// Attention on CUDA: cuDNN's fused kernels, or our own where it has none for a shape. Which of them runs is decided
// when the plan is made and can be read from it. A plan serves every call of its shape: nothing is built, allocated or
// waited for in Forward and Backward, and both can be captured into a CUDA graph. Not thread-safe: one thread and, at a
// time, one stream a handle. Tests: tests/kernels/cuda/sdpa_test.cc.
#pragma once

#include <cuda_runtime_api.h>
#include <cudnn.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/shapes/sdpa_shape.h"

namespace longhaul::kernels::cuda {

// A cuDNN handle on the device that was current when it was made.
class Cudnn {
 public:
  // UNAVAILABLE: reason CUDA_LIBRARY_MISSING, or CUDNN_UNAVAILABLE where the library does not start or is older than
  // 9.7.
  static absl::StatusOr<std::unique_ptr<Cudnn>> Create();
  ~Cudnn();
  Cudnn(const Cudnn&) = delete;
  Cudnn& operator=(const Cudnn&) = delete;

  cudnnHandle_t handle() const { return handle_; }
  const SdpaDevice& device() const { return device_; }
  std::string version() const;  // "9.14.0"
  void UseStream(cudaStream_t stream);

 private:
  Cudnn() = default;
  cudnnHandle_t handle_ = nullptr;
  SdpaDevice device_;
  cudaStream_t stream_ = nullptr;
};

// Device memory of one call: bf16 matrices as the shape says, 16-byte aligned. Rows of o, dq, dk, dv beyond a padded
// sequence's length, or beyond the last document, hold nothing defined afterwards.
struct SdpaBuffers {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  void* o = nullptr;       // written by Forward, read by Backward
  float* stats = nullptr;  // log-sum-exp of scaled scores, natural; SdpaStatsBytes
  // Backward. dq may alias o or q where the strides are equal; nothing else may alias.
  const void* d_o = nullptr;
  void* dq = nullptr;
  void* dk = nullptr;
  void* dv = nullptr;
  // kPadded: [batch] each, 0 to max_q (max_kv).
  const int32_t* lengths_q = nullptr;
  const int32_t* lengths_kv = nullptr;
  // kRagged: written by PrepareIndex.
  const void* index = nullptr;
};

struct SdpaOptions {
  bool backward = true;         // else Backward may not be called: evaluation
  bool only_reference = false;  // our kernels even where cuDNN has one: tests, and to find a fault
  bool only_cudnn = false;      // refuse where cuDNN has none
};

class SdpaPlan {
 public:
  // INVALID_ARGUMENT: CheckSdpaShape. UNIMPLEMENTED, reason SDPA_UNSUPPORTED: only_cudnn, and it has none; the message
  // is the library's. Builds kernels: takes a second or more. `cudnn` outlives the plan.
  static absl::StatusOr<std::unique_ptr<SdpaPlan>> Create(Cudnn* cudnn, const SdpaShape& shape,
                                                          const SdpaOptions& options);
  ~SdpaPlan();
  SdpaPlan(const SdpaPlan&) = delete;
  SdpaPlan& operator=(const SdpaPlan&) = delete;

  const SdpaShape& shape() const { return shape_; }
  bool is_reference() const;
  // "cuDNN 9.14.0, forward eng2_k24=7, backward eng6_k24=26", or "reference kernels, because ...".
  const std::string& description() const { return description_; }
  // What the library asks for: at most the formulas of sdpa_shape.h.
  int64_t forward_workspace_bytes() const { return forward_workspace_bytes_; }
  int64_t backward_workspace_bytes() const { return backward_workspace_bytes_; }
  bool stats_are_rows() const { return stats_are_rows_; }

  // kRagged: fills index (SdpaIndexBytes, device memory) from the documents' first rows, [batch + 1] each in device
  // memory, ascending, the last one the rows used; empty documents fill up the count. Once a batch, by every layer.
  void PrepareIndex(cudaStream_t stream, const int64_t* rows_q, const int64_t* rows_kv, void* index) const;

  // Queued on the stream. Workspace: 256-byte aligned, of the bytes above. Throw CudaError.
  void Forward(cudaStream_t stream, const SdpaBuffers& buffers, void* workspace) const;
  void Backward(cudaStream_t stream, const SdpaBuffers& buffers, void* workspace) const;

 private:
  SdpaPlan() = default;
  struct Graphs;

  SdpaShape shape_;
  Cudnn* cudnn_ = nullptr;
  std::unique_ptr<Graphs> graphs_;  // null: reference kernels
  std::string description_;
  int64_t forward_workspace_bytes_ = 0;
  int64_t backward_workspace_bytes_ = 0;
  bool stats_are_rows_ = false;
  bool has_backward_ = false;
};

}  // namespace longhaul::kernels::cuda
