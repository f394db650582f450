// Loss and gradient of the hidden states through a frozen head, without ever holding rows x vocab of anything: a tile
// of logits is made, turned into weights in place, multiplied by the head and forgotten.
//
//   loss = sum over trained rows of lse(hidden W^T) - logit[label];  d_hidden = grad_scale (softmax - onehot) W
//
// The gradient is an attention whose keys and values are both the head, less the label's row, so it is computed as
// attention is, in one pass over tiles of rows and columns: weights are relative to the largest logit known, sums of
// earlier tiles are scaled where a larger one comes, the sum of exponentials divides at the end. The label's column
// comes last, in f32: its weight p - 1 would drown in the rounding of a weight near 1.
//
// Negligible columns (CceShape::negligible). On real text most of the second product multiplies by next to nothing: a
// row keeps columns that it gives 2^-13 or more, usually a hundred, and its gradient is a sum of so many head rows.
// What it loses so is at most 5% of its probability; and that mass times the mean row of the head is added back, for
// the columns dropped are rare tokens, whose rows lie about the mean: without it every row errs the same way. Rows that
// lose more, or keep more than kCceKeptPerRow, are listed and take all columns, their logits made again; the device
// decides how many, in a conditional part of a CUDA graph. Flat logits so cost one and a half times what they cost
// without. Tests: tests/kernels/cuda/cut_cross_entropy_test.cc.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/cce_kernels.h"
#include "kernels/cuda/lt_gemm.h"
#include "kernels/ops.h"
#include "kernels/shapes/cce_shape.h"

namespace longhaul::kernels::cuda {

// Device memory of a call.
struct CceOperands {
  const void* hidden = nullptr;     // [rows, hidden] bf16, after the last norm
  const void* head = nullptr;       // [vocab, hidden] bf16
  const int32_t* labels = nullptr;  // [rows], kNotTrained where a row does not count
  const double* grad_scale = nullptr;
  LossTotals* totals = nullptr;     // added to
  float* d_hidden = nullptr;        // [rows, hidden] f32; null: the loss alone. A row may begin where hidden's does
  const float* mean_row = nullptr;  // [hidden], PrepareHead; where negligible
};

class CutCrossEntropy {
 public:
  // Chooses the products' kernels. INVALID_ARGUMENT: CheckCceShape; UNIMPLEMENTED as LtGemm. `gemm` outlives this, and
  // its kernels may be chosen anew (Tune) as long as workspace_bytes is asked afterwards.
  static absl::StatusOr<std::unique_ptr<CutCrossEntropy>> Create(LtGemm* gemm, const CceShape& shape);
  ~CutCrossEntropy();
  CutCrossEntropy(const CutCrossEntropy&) = delete;
  CutCrossEntropy& operator=(const CutCrossEntropy&) = delete;

  const CceShape& shape() const { return shape_; }
  // CceWorkspace with the workspace of the kernels chosen.
  int64_t workspace_bytes() const;

  // Times the products' best kernels on these operands, once (LtGemm::PlanTimed). `workspace` has
  // CceWorkspace(shape, gemm_bytes).bytes, `gemm_bytes` at least the LtGemm's limit. Overwrites the workspace.
  absl::Status Tune(const Exec& exec, const CceOperands& operands, void* workspace, int64_t gemm_bytes);

  // Fills mean_row from the head, once. Queued on the Exec's compute stream.
  void PrepareHead(const Exec& exec, const void* head, float* mean_row) const;

  // Queued on the Exec's compute stream. workspace: workspace_bytes(), 256-byte aligned. Throws CudaError.
  void Run(const Exec& exec, const CceOperands& operands, void* workspace) const;

 private:
  CutCrossEntropy(LtGemm* gemm, const CceShape& shape);
  struct Work;
  struct Part;
  Part MakePart(const Work& work, int64_t first_row, int64_t rows) const;
  template <typename Body>
  void ForEachTile(cudaStream_t stream, const Work& work, const Part& part, const Body& body) const;
  void AllColumns(cudaStream_t stream, const Work& work, const Part& part) const;
  void KeptColumnsOnly(cudaStream_t stream, const Work& work, const Part& part) const;
  void FullRows(cudaStream_t stream, const Work& work) const;
  int64_t GemmBytes() const;

  LtGemm* const gemm_;
  const CceShape shape_;
  cudaStream_t body_stream_ = nullptr;  // only captured: the body of the conditional part
};

}  // namespace longhaul::kernels::cuda
