// Loss and gradient of the hidden states through a frozen head, without ever holding rows x vocab of anything: a tile
// of logits is made, turned into its gradient in place, multiplied by the head and forgotten.
//
//   loss = sum over trained rows of lse(hidden W^T) - logit[label];  d_hidden = grad_scale (softmax - onehot) W
//
// Negligible columns (CceShape::negligible). On real text most of the second product multiplies by zeros: a column that
// gives no trained row of a tile 2^-12 or more, and is no row's label, leaves it. What a row loses so is at most 5% of
// its probability, else the tile takes the full product; and that mass times the mean row of the head is added back,
// for the columns dropped are rare tokens, whose rows lie about the mean: without it the mean gradient is off by a
// quarter and more, since every row errs the same way. The device decides, tile by tile, in conditional parts of a CUDA
// graph. Tests: tests/kernels/cuda/cut_cross_entropy_test.cc.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
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
  void* d_hidden = nullptr;         // [rows, hidden] bf16; null: the loss alone. May be `hidden`
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
  // CceWorkspace(shape, gemm_bytes).bytes, `gemm_bytes` at least the LtGemm's limit. Overwrites d_hidden and workspace.
  absl::Status Tune(const Exec& exec, const CceOperands& operands, void* workspace, int64_t gemm_bytes);

  // Fills mean_row from the head, once. Queued on the Exec's compute stream.
  void PrepareHead(const Exec& exec, const void* head, float* mean_row) const;

  // Queued on the Exec's compute stream. workspace: workspace_bytes(), 256-byte aligned. Throws CudaError.
  void Run(const Exec& exec, const CceOperands& operands, void* workspace) const;

 private:
  CutCrossEntropy(LtGemm* gemm, const CceShape& shape);
  struct Tile;
  Tile MakeTile(const CceOperands& operands, void* workspace, const CceLayout& layout, int64_t first_row) const;
  void TwoPasses(const Exec& exec, const CceOperands& operands, const Tile& tile) const;
  void ThreePasses(const Exec& exec, const CceOperands& operands, const Tile& tile) const;
  void KeptProduct(const Exec& exec, const CceOperands& operands, const Tile& tile) const;
  int64_t GemmBytes() const;

  LtGemm* const gemm_;
  const CceShape shape_;
  cudaStream_t body_stream_ = nullptr;  // only captured: bodies of conditional parts
};

}  // namespace longhaul::kernels::cuda
