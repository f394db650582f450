#include "worker/train/qlora_linear.h"

#include "base/random.h"

namespace longhaul::train {
namespace {

using kernels::Gemm;
using kernels::Tensor;

uint64_t TargetKey(const LinearContext& context, const QloraLinear& linear, const LoraGroup::Member& member) {
  return CounterBits(context.dropout_key,
                     static_cast<uint64_t>(linear.layer) * kLoraTargets + static_cast<uint64_t>(member.target));
}

// The input that `member`'s A sees.
Tensor Masked(const LinearContext& context, const QloraLinear& linear, const LoraGroup::Member& member, const Tensor& x,
              int64_t first_row) {
  Tensor masked = context.dropout_tile.Rows(0, x.rows).Cols(0, x.cols);
  kernels::Dropout(*context.exec, x, TargetKey(context, linear, member), first_row, context.dropout, masked);
  return masked;
}

}  // namespace

void LoraInput(const LinearContext& context, const QloraLinear& linear, const Tensor& x, int64_t first_row,
               const Tensor& u) {
  const LoraGroup& lora = *linear.lora;
  if (lora.count == 0) return;
  if (context.dropout == 0) {
    Gemm(*context.exec, false, true, 1, x, lora.a, 0, u);
    return;
  }
  for (int64_t i = 0; i < lora.count; ++i) {
    const Tensor masked = Masked(context, linear, lora.members[i], x, first_row);
    Gemm(*context.exec, false, true, 1, masked, lora.a.Rows(i * lora.rank, (i + 1) * lora.rank), 0,
         u.Cols(i * lora.rank, (i + 1) * lora.rank));
  }
}

void QloraForward(const LinearContext& context, const QloraLinear& linear, const Tensor& x, int64_t first_row,
                  double beta, const Tensor& y, const Tensor& u) {
  const LoraGroup& lora = *linear.lora;
  kernels::FrozenForward(*context.exec, x, linear.w, beta, y, context.gemm_scratch);
  LoraInput(context, linear, x, first_row, u);
  for (int64_t i = 0; i < lora.count; ++i) {
    const LoraGroup::Member& member = lora.members[i];
    Gemm(*context.exec, false, true, context.lora_scale, u.Cols(i * lora.rank, (i + 1) * lora.rank), member.b, 1,
         y.Cols(member.out_begin, member.out_begin + member.out));
  }
}

void QloraBackward(const LinearContext& context, const QloraLinear& linear, const Tensor& dy, const Tensor& x,
                   int64_t first_row, const Tensor& u, const Tensor& v, double beta, const Tensor& dx) {
  const LoraGroup& lora = *linear.lora;
  const double s = context.lora_scale;
  if (dx.data != nullptr) kernels::FrozenBackward(*context.exec, dy, linear.w, beta, dx, context.gemm_scratch);
  for (int64_t i = 0; i < lora.count; ++i) {
    const LoraGroup::Member& member = lora.members[i];
    const Tensor dy_i = dy.Cols(member.out_begin, member.out_begin + member.out);
    const Tensor v_i = v.Cols(i * lora.rank, (i + 1) * lora.rank);
    Gemm(*context.exec, false, false, s, dy_i, member.b, 0, v_i);
    Gemm(*context.exec, true, false, s, dy_i, u.Cols(i * lora.rank, (i + 1) * lora.rank), 1, member.grad_b);
    if (context.dropout == 0) continue;
    const Tensor masked = Masked(context, linear, member, x, first_row);
    const Tensor a_i = lora.a.Rows(i * lora.rank, (i + 1) * lora.rank);
    Gemm(*context.exec, true, false, 1, v_i, masked, 1, lora.grad_a.Rows(i * lora.rank, (i + 1) * lora.rank));
    if (dx.data == nullptr) continue;
    // The gradient of the branch's input passes the same mask.
    Gemm(*context.exec, false, false, 1, v_i, a_i, 0, masked);
    kernels::Dropout(*context.exec, masked, TargetKey(context, linear, member), first_row, context.dropout, masked);
    kernels::Add(*context.exec, masked, dx);
  }
  if (lora.count == 0 || context.dropout != 0) return;
  Gemm(*context.exec, true, false, 1, v, x, 1, lora.grad_a);
  if (dx.data != nullptr) Gemm(*context.exec, false, false, 1, v, lora.a, 1, dx);
}

}  // namespace longhaul::train
