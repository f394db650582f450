#include "kernels/cuda/cut_cross_entropy.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/conditional_graph.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/loss_on.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr const char* kOp = "CutCrossEntropy";

template <typename T = void>
T* At(void* base, int64_t offset_bytes) {
  return reinterpret_cast<T*>(static_cast<char*>(base) + offset_bytes);
}

const void* RowsFrom(const void* matrix, int64_t row, int64_t stride) {
  return static_cast<const char*>(matrix) + row * stride * 2;
}

DType LogitsType(const CceShape& shape) { return shape.logits == GemmElement::kF32 ? DType::kF32 : DType::kBF16; }

}  // namespace

// A call and where its parts lie.
struct CutCrossEntropy::Work {
  const Exec& exec;
  CceOperands operands;
  void* base = nullptr;  // the workspace
  CceLayout layout;
  CceHead head;
  GemmWorkspace gemm;

  FullState* state() const { return At<FullState>(base, layout.state); }
};

// Rows that are computed together.
struct CutCrossEntropy::Part {
  int64_t rows = 0;
  const void* hidden = nullptr;
  int64_t hidden_stride = 0;
  float* d_hidden = nullptr;        // null: the loss alone
  const int32_t* places = nullptr;  // rows of d_hidden; null: one after another
  LossRows running;
  Tensor lse;
  CceRows facts;
  KeptColumns columns;
};

CutCrossEntropy::CutCrossEntropy(LtGemm* gemm, const CceShape& shape) : gemm_(gemm), shape_(shape) {}

CutCrossEntropy::~CutCrossEntropy() {
  if (body_stream_ != nullptr) cudaStreamDestroy(body_stream_);
}

absl::StatusOr<std::unique_ptr<CutCrossEntropy>> CutCrossEntropy::Create(LtGemm* gemm, const CceShape& shape) {
  if (absl::Status status = CheckCceShape(shape); !status.ok()) return status;
  std::unique_ptr<CutCrossEntropy> created(new CutCrossEntropy(gemm, shape));
  for (const GemmShape& product : CceGemms(shape)) {
    if (const auto bytes = gemm->Plan(product); !bytes.ok()) return bytes.status();
  }
  if (shape.negligible) {
    CheckCuda(cudaStreamCreateWithFlags(&created->body_stream_, cudaStreamNonBlocking), kOp, "cudaStreamCreate");
  }
  return created;
}

int64_t CutCrossEntropy::GemmBytes() const {
  int64_t most = 0;
  for (const GemmShape& product : CceGemms(shape_)) {
    const auto bytes = gemm_->Plan(product);
    LH_CHECK(bytes.ok(), std::string(bytes.status().message()));
    most = std::max(most, *bytes);
  }
  return most;
}

int64_t CutCrossEntropy::workspace_bytes() const { return CceWorkspace(shape_, GemmBytes()).bytes; }

CutCrossEntropy::Part CutCrossEntropy::MakePart(const Work& work, int64_t first_row, int64_t rows) const {
  const CceLayout& layout = work.layout;
  Part part;
  part.rows = rows;
  part.hidden = RowsFrom(work.operands.hidden, first_row, shape_.hidden_stride);
  part.hidden_stride = shape_.hidden_stride;
  if (work.operands.d_hidden != nullptr) {
    part.d_hidden = work.operands.d_hidden + first_row * shape_.d_hidden_stride;
  }
  const int64_t stride = (layout.lse - layout.softmax) / 3 / 4;
  float* const softmax = At<float>(work.base, layout.softmax);
  part.running = {.largest = MakeTensor(softmax, DType::kF32, rows, 1),
                  .sum = MakeTensor(softmax + stride, DType::kF32, rows, 1),
                  .label_logit = MakeTensor(softmax + 2 * stride, DType::kF32, rows, 1)};
  part.lse = MakeTensor(At(work.base, layout.lse), DType::kF32, rows, 1);
  part.facts = {.rows = rows,
                .vocab = shape_.vocab,
                .labels = work.operands.labels + first_row,
                .largest = softmax,
                .sum = softmax + stride,
                .label_logit = softmax + 2 * stride,
                .grad_scale = work.operands.grad_scale};
  part.columns = {.entries = At(work.base, layout.entries),
                  .counts = At<int32_t>(work.base, layout.counts),
                  .lost = At<float>(work.base, layout.lost),
                  .is_full = At<uint8_t>(work.base, layout.is_full) + first_row};
  return part;
}

// Calls body(logits, first_col) for each tile of columns, once its logits are made.
template <typename Body>
void CutCrossEntropy::ForEachTile(cudaStream_t stream, const Work& work, const Part& part, const Body& body) const {
  for (int64_t col = 0; col < shape_.vocab; col += shape_.tile_cols) {
    const int64_t cols = std::min(shape_.tile_cols, shape_.vocab - col);
    const Tensor logits{At(work.base, work.layout.logits), LogitsType(shape_), part.rows, cols,
                        work.layout.logits_stride};
    gemm_->Run(stream, CceLogitsGemm(shape_, part.rows, cols, part.hidden_stride), 1,
               {part.hidden, RowsFrom(work.head.rows, col, work.head.stride), logits.data}, work.gemm);
    body(logits, col);
  }
}

void CutCrossEntropy::AllColumns(cudaStream_t stream, const Work& work, const Part& part) const {
  float* const d_sum = At<float>(work.base, work.layout.d_sum);
  BeginLossOn(stream, part.running);
  ForEachTile(stream, work, part, [&](const Tensor& logits, int64_t col) {
    if (part.d_hidden == nullptr) {
      return UpdateLossOn(work.exec, stream, logits, col, part.facts.labels, part.running, {}, {});
    }
    Tensor weights = logits, sums;
    weights.dtype = DType::kBF16;
    if (shape_.logits == GemmElement::kF32) weights.stride *= 2;
    if (col > 0) sums = MakeTensor(d_sum, DType::kF32, part.rows, shape_.hidden);
    UpdateLossOn(work.exec, stream, logits, col, part.facts.labels, part.running, weights, sums);
    gemm_->Run(stream, CceGradientGemm(shape_, part.rows, logits.cols, col == 0), 1,
               {weights.data, RowsFrom(work.head.rows, col, work.head.stride), d_sum}, work.gemm);
  });
  if (part.d_hidden == nullptr) return;
  LaunchFinishHidden(stream, part.facts, work.head, d_sum, part.places, part.d_hidden, shape_.d_hidden_stride);
}

void CutCrossEntropy::KeptColumnsOnly(cudaStream_t stream, const Work& work, const Part& part) const {
  BeginLossOn(stream, part.running);
  LaunchBeginColumns(stream, part.rows, part.columns);
  ForEachTile(stream, work, part, [&](const Tensor& logits, int64_t col) {
    LaunchKeepColumns(work.exec.cuda().facts, stream, logits, col, part.facts, part.columns);
  });
  LaunchKeptHidden(stream, part.facts, work.head, part.columns, work.operands.mean_row, part.d_hidden,
                   shape_.d_hidden_stride);
}

// Rows that take all columns, full_rows at a time, their hidden states gathered: nobody has overwritten those yet.
void CutCrossEntropy::FullRows(cudaStream_t stream, const Work& work) const {
  const CceLayout& layout = work.layout;
  int32_t* const full = At<int32_t>(work.base, layout.full);
  Part part = MakePart(work, 0, shape_.full_rows);
  void* const hidden = At(work.base, layout.full_hidden);
  int32_t* const labels = At<int32_t>(work.base, layout.full_labels);
  int32_t* const places = At<int32_t>(work.base, layout.places);
  part.hidden = hidden;
  part.hidden_stride = shape_.hidden;
  part.places = places;
  part.facts.labels = labels;
  const cudaGraphConditionalHandle more = MakeCondition(stream);
  LaunchListFull(stream, shape_.rows, At<uint8_t>(work.base, layout.is_full), full, work.state(), more);
  AddConditional(stream, more, cudaGraphCondTypeWhile, body_stream_, [&] {
    LaunchGatherFull(body_stream_, full, work.state(), shape_.full_rows, work.operands.hidden, shape_.hidden_stride,
                     shape_.hidden, work.operands.labels, hidden, labels, places);
    AllColumns(body_stream_, work, part);
    LaunchAdvance(body_stream_, work.state(), shape_.full_rows, more);
  });
}

void CutCrossEntropy::PrepareHead(const Exec& exec, const void* head, float* mean_row) const {
  LaunchMeanRow(exec.cuda().compute.get(), {head, shape_.head_stride, shape_.hidden}, shape_.vocab, mean_row);
}

void CutCrossEntropy::Run(const Exec& exec, const CceOperands& operands, void* workspace) const {
  const bool kept_only = shape_.negligible && operands.d_hidden != nullptr;
  LH_CHECK(!kept_only || operands.mean_row != nullptr);
  const cudaStream_t stream = exec.cuda().compute.get();
  Work work{.exec = exec,
            .operands = operands,
            .base = workspace,
            .layout = CceWorkspace(shape_, GemmBytes()),
            .head = {operands.head, shape_.head_stride, shape_.hidden},
            .gemm = {}};
  work.gemm = {At(workspace, work.layout.gemm), work.layout.bytes - work.layout.gemm};
  for (int64_t row = 0; row < shape_.rows; row += shape_.tile_rows) {
    const Part part = MakePart(work, row, std::min(shape_.tile_rows, shape_.rows - row));
    if (kept_only) {
      KeptColumnsOnly(stream, work, part);
    } else {
      AllColumns(stream, work, part);
    }
    FinishLoss(exec, part.running, part.facts.labels, part.lse, operands.totals);
  }
  if (kept_only) RunConditionally(stream, [&] { FullRows(stream, work); });
}

absl::Status CutCrossEntropy::Tune(const Exec& exec, const CceOperands& operands, void* workspace, int64_t gemm_bytes) {
  const cudaStream_t stream = exec.cuda().compute.get();
  const CceLayout layout = CceWorkspace(shape_, gemm_bytes);
  const GemmWorkspace scratch{At(workspace, layout.gemm), gemm_bytes};
  void* const logits = At(workspace, layout.logits);
  // Real logits are there before a second product reads them, as weights of a size that does not matter.
  for (const bool is_second : {false, true}) {
    for (const GemmShape& product : CceGemms(shape_)) {
      if (product.transpose_b == is_second) continue;
      const GemmOperands at = is_second ? GemmOperands{logits, operands.head, At(workspace, layout.d_sum)}
                                        : GemmOperands{operands.hidden, operands.head, logits};
      if (const auto bytes = gemm_->PlanTimed(stream, product, at, scratch); !bytes.ok()) return bytes.status();
    }
  }
  return absl::OkStatus();
}

}  // namespace longhaul::kernels::cuda
