#include "kernels/cuda/cut_cross_entropy.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/cce_kernels.h"
#include "kernels/cuda/conditional_graph.h"
#include "kernels/cuda/cuda_exec.h"

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

// A tile of rows and where its parts lie.
struct CutCrossEntropy::Tile {
  CceTile logits;  // of the whole vocabulary, or of the tile of it at hand
  const void* hidden = nullptr;
  void* d_hidden = nullptr;  // null: the loss alone
  float* d_sum = nullptr;
  KeptColumns columns;
  void* head_chunk = nullptr;
  void* d_chunk = nullptr;
  Tensor lse;
  LossRows softmax;
  GemmWorkspace gemm;

  Tensor LogitsView(DType dtype) const { return {logits.logits, dtype, logits.rows, logits.cols, logits.stride}; }
  // Where the second product goes.
  void* product(bool has_sum) const { return has_sum ? d_sum : d_hidden; }
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

CutCrossEntropy::Tile CutCrossEntropy::MakeTile(const CceOperands& operands, void* workspace, const CceLayout& layout,
                                                int64_t first_row) const {
  Tile tile;
  const int64_t rows = std::min(shape_.tile_rows, shape_.rows - first_row);
  const int64_t softmax_stride = std::min(shape_.tile_rows, shape_.rows);
  tile.logits = {.logits = At(workspace, layout.logits),
                 .type = shape_.logits,
                 .stride = layout.logits_stride,
                 .rows = rows,
                 .cols = shape_.tile_columns(),
                 .labels = operands.labels + first_row,
                 .lse = At<float>(workspace, layout.lse),
                 .grad_scale = operands.grad_scale};
  tile.hidden = RowsFrom(operands.hidden, first_row, shape_.hidden_stride);
  if (operands.d_hidden != nullptr) {
    tile.d_hidden = const_cast<void*>(RowsFrom(operands.d_hidden, first_row, shape_.d_hidden_stride));
  }
  tile.d_sum = At<float>(workspace, layout.d_sum);
  tile.columns = {.flags = At<uint8_t>(workspace, layout.flags),
                  .kept = At<int32_t>(workspace, layout.kept),
                  .mass = At<float>(workspace, layout.mass),
                  .state = At<KeptState>(workspace, layout.state)};
  tile.head_chunk = At(workspace, layout.head_chunk);
  tile.d_chunk = At(workspace, layout.d_chunk);
  tile.lse = MakeTensor(At(workspace, layout.lse), DType::kF32, rows, 1);
  float* const softmax = At<float>(workspace, layout.softmax);
  tile.softmax = {.largest = MakeTensor(softmax, DType::kF32, rows, 1),
                  .sum = MakeTensor(softmax + softmax_stride, DType::kF32, rows, 1),
                  .label_logit = MakeTensor(softmax + 2 * softmax_stride, DType::kF32, rows, 1)};
  tile.gemm = {At(workspace, layout.gemm), layout.bytes - layout.gemm};
  return tile;
}

void CutCrossEntropy::TwoPasses(const Exec& exec, const CceOperands& operands, const Tile& tile) const {
  const cudaStream_t stream = exec.cuda().compute.get();
  gemm_->Run(stream, CceLogitsGemm(shape_, tile.logits.rows, shape_.vocab), 1,
             {tile.hidden, operands.head, tile.logits.logits}, tile.gemm);
  // The fused kernel where its gradient is what the second product reads: bf16 in the place of bf16.
  const bool fused = tile.d_hidden != nullptr && !shape_.negligible && shape_.logits == GemmElement::kBF16;
  LossTile(exec, tile.LogitsView(LogitsType(shape_)), tile.logits.labels, fused ? operands.grad_scale : nullptr,
           tile.lse, operands.totals);
  if (tile.d_hidden == nullptr) return;
  if (shape_.negligible) return KeptProduct(exec, operands, tile);
  if (!fused) LaunchGradientToBf16(stream, tile.logits);
  gemm_->Run(stream, CceGradientGemm(shape_, tile.logits.rows, shape_.vocab), 1,
             {tile.logits.logits, operands.head, tile.d_hidden}, tile.gemm);
}

void CutCrossEntropy::KeptProduct(const Exec& exec, const CceOperands& operands, const Tile& tile) const {
  const cudaStream_t stream = exec.cuda().compute.get();
  const int64_t rows = tile.logits.rows;
  LaunchChooseColumns(stream, tile.logits, tile.columns);
  CheckCuda(cudaMemsetAsync(tile.d_sum, 0, static_cast<size_t>(rows * shape_.hidden * 4), stream), kOp,
            "cudaMemsetAsync");
  const cudaGraphConditionalHandle full = MakeCondition(stream), more = MakeCondition(stream);
  LaunchDecide(stream, tile.columns.state, full, more);
  AddConditional(stream, full, cudaGraphCondTypeIf, body_stream_, [&] {
    LaunchGradientToBf16(body_stream_, tile.logits);
    gemm_->Run(body_stream_, CceGradientGemm(shape_, rows, shape_.vocab), 1,
               {tile.logits.logits, operands.head, tile.d_sum}, tile.gemm);
  });
  AddConditional(stream, more, cudaGraphCondTypeWhile, body_stream_, [&] {
    LaunchGatherChunk(body_stream_, tile.logits, tile.columns, shape_.kept_chunk, operands.head, shape_.head_stride,
                      shape_.hidden, tile.head_chunk, tile.d_chunk);
    gemm_->Run(body_stream_, CceKeptGemm(shape_, rows), 1, {tile.d_chunk, tile.head_chunk, tile.d_sum}, tile.gemm);
    LaunchAdvance(body_stream_, tile.columns.state, shape_.kept_chunk, more);
  });
  LaunchFinishHidden(stream, tile.logits, &tile.columns, operands.mean_row, tile.d_sum, shape_.hidden, tile.d_hidden,
                     shape_.d_hidden_stride);
}

void CutCrossEntropy::ThreePasses(const Exec& exec, const CceOperands& operands, const Tile& tile) const {
  const cudaStream_t stream = exec.cuda().compute.get();
  const int64_t rows = tile.logits.rows;
  // Calls body with the tile of logits of each tile of the vocabulary.
  const auto for_each_tile = [&](const auto& body) {
    for (int64_t col = 0; col < shape_.vocab; col += shape_.tile_cols) {
      Tile part = tile;
      part.logits.first_col = col;
      part.logits.cols = std::min(shape_.tile_cols, shape_.vocab - col);
      const void* const head = RowsFrom(operands.head, col, shape_.head_stride);
      gemm_->Run(stream, CceLogitsGemm(shape_, rows, part.logits.cols), 1, {tile.hidden, head, part.logits.logits},
                 tile.gemm);
      body(part, head);
    }
  };
  BeginLoss(exec, tile.softmax);
  for_each_tile([&](const Tile& part, const void*) {
    UpdateLoss(exec, part.LogitsView(LogitsType(shape_)), part.logits.first_col, part.logits.labels, tile.softmax);
  });
  FinishLoss(exec, tile.softmax, tile.logits.labels, tile.lse, operands.totals);
  if (tile.d_hidden == nullptr) return;
  CheckCuda(cudaMemsetAsync(tile.d_sum, 0, static_cast<size_t>(rows * shape_.hidden * 4), stream), kOp,
            "cudaMemsetAsync");
  for_each_tile([&](const Tile& part, const void* head) {
    LaunchGradientToBf16(stream, part.logits);
    gemm_->Run(stream, CceGradientGemm(shape_, rows, part.logits.cols), 1, {part.logits.logits, head, tile.d_sum},
               tile.gemm);
  });
  LaunchFinishHidden(stream, tile.logits, nullptr, nullptr, tile.d_sum, shape_.hidden, tile.d_hidden,
                     shape_.d_hidden_stride);
}

void CutCrossEntropy::PrepareHead(const Exec& exec, const void* head, float* mean_row) const {
  LaunchMeanRow(exec.cuda().compute.get(), head, shape_.head_stride, shape_.vocab, shape_.hidden, mean_row);
}

void CutCrossEntropy::Run(const Exec& exec, const CceOperands& operands, void* workspace) const {
  LH_CHECK(!shape_.negligible || operands.d_hidden == nullptr || operands.mean_row != nullptr);
  const CceLayout layout = CceWorkspace(shape_, GemmBytes());
  const auto all_tiles = [&] {
    for (int64_t row = 0; row < shape_.rows; row += shape_.tile_rows) {
      const Tile tile = MakeTile(operands, workspace, layout, row);
      if (shape_.passes == CcePasses::kTwo) {
        TwoPasses(exec, operands, tile);
      } else {
        ThreePasses(exec, operands, tile);
      }
    }
  };
  if (shape_.negligible && operands.d_hidden != nullptr) {
    RunConditionally(exec.cuda().compute.get(), all_tiles);
  } else {
    all_tiles();
  }
}

absl::Status CutCrossEntropy::Tune(const Exec& exec, const CceOperands& operands, void* workspace, int64_t gemm_bytes) {
  const cudaStream_t stream = exec.cuda().compute.get();
  const CceLayout layout = CceWorkspace(shape_, gemm_bytes);
  // Real logits for the second product to read; f32 ones are tuned as they lie.
  Tile tile = MakeTile(operands, workspace, layout, 0);
  const bool has_sum = CceGradientGemm(shape_, 1, 8).output == GemmElement::kF32;
  for (const GemmShape& product : CceGemms(shape_)) {
    GemmOperands at{tile.hidden, operands.head, tile.logits.logits};
    if (product.n == shape_.hidden && !product.transpose_b) {
      at = {tile.logits.logits, operands.head, tile.product(has_sum)};
      if (shape_.negligible && product == CceKeptGemm(shape_, product.m)) {
        at = {tile.d_chunk, tile.head_chunk, tile.d_sum};
      }
    }
    if (const auto bytes = gemm_->PlanTimed(stream, product, at, tile.gemm); !bytes.ok()) return bytes.status();
  }
  return absl::OkStatus();
}

}  // namespace longhaul::kernels::cuda
