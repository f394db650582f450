#include "kernels/cuda/engine_groups.h"

#include <algorithm>

#include "base/check.h"
#include "base/limits.h"
#include "kernels/cuda/adapter_kernels.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {
namespace {

Tensor Matrix(const void* first, int64_t rows, int64_t cols, int64_t stride) {
  return {const_cast<void*>(first), DType::kBF16, rows, cols, stride};
}

}  // namespace

EngineGroups::EngineGroups(const Exec& exec, LtGemm* gemm, StreamProfile* profile, const CudaEngineMemory& memory,
                           const CudaEngineShapes& shapes, const EngineLinears* linears)
    : exec_(exec),
      gemm_(gemm),
      profile_(profile),
      linears_(linears),
      workspace_{memory.gemm.data, memory.gemm.bytes},
      groups_(shapes.head_groups),
      q_rows_(shapes.attention_calls / shapes.head_groups * shapes.packed.heads * shapes.packed.head_dim),
      kv_rows_(shapes.packed.kv_heads * shapes.packed.head_dim),
      output_buffer_(memory.attention_weight.data),
      group_weight_(static_cast<char*>(memory.attention_weight.data) + memory.group_offset) {}

LoraFold EngineGroups::GroupFold(size_t qkv) const {
  LoraFold fold = linears_->frozen(qkv).fold;
  fold.out = q_rows_ + 2 * kv_rows_;
  return fold;
}

void EngineGroups::Run(const GemmShape& shape, const GemmOperands& operands) {
  gemm_->PlanAndRun(exec_.cuda().compute.get(), shape, 1, operands, workspace_);
}

void EngineGroups::PlaceRows(size_t linear, int64_t first, int64_t rows, int64_t at) {
  const FrozenLinear& frozen = linears_->frozen(linear);
  const LoraFold& fold = frozen.fold;
  char* const to = group_weight_ + at * fold.weight_stride * kBf16Bytes;
  if (frozen.cache != nullptr) {
    const int64_t cols = fold.in + fold.rank;
    Copy(exec_, Matrix(Bf16At(frozen.cache, first * fold.weight_stride), rows, cols, fold.weight_stride),
         Matrix(to, rows, cols, fold.weight_stride));
    return;
  }
  DequantiseRows(exec_, frozen, first, rows, to);
  if (fold.rank == 0) return;
  LaunchPlaceAdapter(exec_.cuda().compute.get(), fold, linears_->adapter(linear), first, rows,
                     to + fold.sb_offset() * kBf16Bytes, nullptr);
}

void EngineGroups::Begin(size_t qkv, int64_t group) {
  LH_CHECK(group >= 0 && group < groups_);
  const StreamProfile::Scope scope(profile_, "dequantise");
  const FrozenLinear& frozen = linears_->frozen(qkv);
  const LoraFold& fold = frozen.fold;
  LH_CHECK(fold.out == groups_ * (q_rows_ + 2 * kv_rows_));
  PlaceRows(qkv, group * q_rows_, q_rows_, 0);
  PlaceRows(qkv, groups_ * q_rows_ + group * kv_rows_, kv_rows_, q_rows_);
  PlaceRows(qkv, groups_ * (q_rows_ + kv_rows_) + group * kv_rows_, kv_rows_, q_rows_ + kv_rows_);
  if (fold.rank == 0) return;
  char* const a = group_weight_ + GroupFold(qkv).a_offset() * kBf16Bytes;
  if (frozen.cache != nullptr) {
    Copy(exec_, Matrix(Bf16At(frozen.cache, fold.a_offset()), fold.rank, fold.in, fold.weight_stride),
         Matrix(a, fold.rank, fold.in, fold.weight_stride));
  } else {
    LaunchPlaceAdapter(exec_.cuda().compute.get(), fold, linears_->adapter(qkv), 0, 0, group_weight_, a);
  }
}

void EngineGroups::Forward(size_t qkv, const Tensor& x, const Tensor& u, bool has_u, const Tensor& y) {
  LoraFold fold = GroupFold(qkv);
  LH_CHECK(x.cols == fold.in && y.cols == fold.out && x.rows == y.rows && x.stride >= fold.in + fold.rank);
  fold.x_stride = x.stride;
  fold.y_stride = y.stride;
  if (fold.rank > 0) {
    const StreamProfile::Scope scope(profile_, "lora u");
    const Tensor behind = Matrix(Bf16At(x.data, fold.u_offset()), x.rows, fold.rank, x.stride);
    if (has_u) {
      Copy(exec_, u, behind);
    } else {
      Run(LoraDown(fold, x.rows), {x.data, Bf16At(group_weight_, fold.a_offset()), behind.data});
      if (u.data != nullptr) Copy(exec_, behind, u);
    }
  }
  const StreamProfile::Scope scope(profile_, "linears forward");
  Run(LoraKForward(fold, x.rows), {x.data, group_weight_, y.data});
}

void EngineGroups::BeginOutputGradient(size_t o) {
  const StreamProfile::Scope scope(profile_, "dequantise");
  output_weight_ = PrepareWeight(exec_, linears_->frozen(o), linears_->adapter(o), output_buffer_);
}

void EngineGroups::OutputGradient(size_t o, const Tensor& dy, int64_t first, const Tensor& d_o) {
  LoraFold fold = linears_->frozen(o).fold;
  LH_CHECK(dy.cols == fold.out && dy.stride >= fold.out + fold.rank && dy.rows == d_o.rows &&
           first + d_o.cols <= fold.in);
  fold.y_stride = dy.stride;
  fold.dx_stride = d_o.stride;
  const StreamProfile::Scope scope(profile_, "linears backward");
  for (int64_t row = 0; row < dy.rows; row += limits::kMaxProductRows) {
    const int64_t end = std::min(dy.rows, row + limits::kMaxProductRows);
    GemmShape shape = LoraKBackward(fold, end - row);
    shape.n = d_o.cols;
    Run(shape, {dy.Rows(row, end).data, Bf16At(output_weight_, first), d_o.Rows(row, end).data});
  }
}

}  // namespace longhaul::kernels::cuda
