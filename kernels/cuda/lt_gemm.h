// Matrix products by cuBLASLt. A shape's kernel is chosen before step 1, by the library's heuristics or by timing its
// best candidates, and kept: Run neither searches nor allocates nor waits. What was chosen can be written down and
// restored, so that a resumed run computes with the same kernels.
// One object a device and thread. No cublasCreate: a cublasLt handle owns no device memory, workspace is handed in.
// Tests: tests/kernels/cuda/lt_gemm_test.cc.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/shapes/gemm_shape.h"

namespace longhaul::kernels::cuda {

// Operands in device memory. Scales: null unless the shape has them, 16-byte aligned where they are vectors.
struct GemmOperands {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;  // no element of it may be one of a or b
  const float* a_scale = nullptr;
  const float* b_scale = nullptr;
  // Where the shape accumulates: what the product is added to, laid out as c; null: c itself.
  const void* added_to = nullptr;
};

struct GemmWorkspace {
  void* data = nullptr;  // 256-byte aligned; may be null where bytes is 0
  int64_t bytes = 0;
};

class LtGemm {
 public:
  // On the calling thread's current device. No kernel that needs more workspace than `max_workspace_bytes` is ever
  // chosen. UNAVAILABLE: reason CUDA_LIBRARY_MISSING, or CUBLASLT_UNAVAILABLE where the library does not start.
  static absl::StatusOr<std::unique_ptr<LtGemm>> Create(int64_t max_workspace_bytes);
  ~LtGemm();
  LtGemm(const LtGemm&) = delete;
  LtGemm& operator=(const LtGemm&) = delete;

  // Chooses by heuristics, once a shape; returns the workspace that Run needs. INVALID_ARGUMENT: CheckGemmShape.
  // UNIMPLEMENTED, reason GEMM_UNSUPPORTED: the library has no kernel for it on this device.
  absl::StatusOr<int64_t> Plan(const GemmShape& shape);

  // Times the library's best candidates on these operands and keeps the fastest; c is overwritten (also where the shape
  // accumulates). Random operands of the size that will be used: on zeros a GEMM runs 12% faster. Synchronises the
  // stream. Never under `deterministic`: a tie may fall differently on the next start. Returns the workspace that Run
  // needs. `workspace` must have max_workspace_bytes.
  absl::StatusOr<int64_t> PlanTimed(cudaStream_t stream, const GemmShape& shape, const GemmOperands& operands,
                                    const GemmWorkspace& workspace);

  // The product, queued on the stream. REQUIRES: Plan or Restore knew the shape; workspace as returned. Throws
  // CudaError where the library refuses.
  void Run(cudaStream_t stream, const GemmShape& shape, float alpha, const GemmOperands& operands,
           const GemmWorkspace& workspace) const;

  // Scales that this device and library multiply FP8 operands with: kRow where they can, else kTensor. UNIMPLEMENTED,
  // reason GEMM_UNSUPPORTED, where they have no FP8 product.
  absl::StatusOr<GemmScale> BestFp8Scale();

  // Chooses the shape's kernel where it is new, then runs it. Throws CudaError, also where there is none.
  void PlanAndRun(cudaStream_t stream, const GemmShape& shape, float alpha, const GemmOperands& operands,
                  const GemmWorkspace& workspace);
  // From here on PlanAndRun only chooses, until EndPlanning, which returns the first of Plan's errors.
  void BeginPlanning();
  absl::Status EndPlanning();

  // Shapes that have a kernel.
  int64_t planned_shapes() const;

  // Largest workspace of all shapes so far.
  int64_t workspace_bytes() const;
  // What runs a shape: "algo 66 tile 128x256 stages 36 splitk 1 ...". REQUIRES: it was planned.
  std::string Describe(const GemmShape& shape) const;
  // "13.1.0", of the library that runs.
  static std::string LibraryVersion();

  // All choices as text, a line a shape, and the library's version and device in the first line.
  std::string Save() const;
  // Takes the choices of an earlier Save. FAILED_PRECONDITION, reason GEMM_ALGORITHMS_CHANGED, where library or device
  // differ or the library no longer takes a choice: the caller says that bit-identity is lost and plans anew. On any
  // error nothing is taken. INVALID_ARGUMENT where the text is not Save's.
  absl::Status Restore(const std::string& text);

 private:
  LtGemm();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::kernels::cuda
