#include "worker/train/cpu_ops.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"

namespace longhaul::train {

using kernels::Gemm;
using kernels::Tensor;

CpuOps::CpuOps(const EngineMemory& memory, const kernels::Exec& exec, const ModelWeights& weights, double lora_scale)
    : memory_(memory), exec_(exec), weights_(weights), lora_scale_(lora_scale) {
  const MemoryPlan& plan = memory.plan();
  logits_ = memory.Matrix("loss.logits", plan.choices.loss_tile_rows, plan.shape.vocab);
  gemm_scratch_ = memory.GetOrNull("gemm.scratch");
  gemm_factors_ = memory.GetOrNull("gemm.factors");
  loss_scratch_ = memory.GetOrNull("loss.scratch");
  v_ = memory.GetOrNull("tile.v");
  attention_forward_ = memory.GetOrNull("attention.forward");
  attention_backward_ = memory.GetOrNull("attention.backward");
}

void CpuOps::SetDropout(double probability, uint64_t key) {
  dropout_ = probability;
  dropout_key_ = key;
  if (probability == 0) return;
  const MemoryPlan& plan = memory_.plan();
  const ModelShape& s = plan.shape;
  dropout_tile_ =
      memory_.Matrix("tile.dropout", plan.choices.token_tile_rows, std::max({s.hidden, s.q_dim(), s.intermediate}));
}

TokenBatch CpuOps::Bring(const TokenBatch& batch) { return batch_ = batch; }

uint64_t CpuOps::TargetKey(const QloraLinear& linear, const LoraGroup::Member& member) const {
  return CounterBits(dropout_key_, DropoutNumber(linear.layer, member.target));
}

Tensor CpuOps::Masked(const QloraLinear& linear, const LoraGroup::Member& member, const Tensor& x,
                      int64_t first_row) const {
  Tensor masked = dropout_tile_.Rows(0, x.rows).Cols(0, x.cols);
  kernels::Dropout(exec_, x, TargetKey(linear, member), first_row, dropout_, masked);
  return masked;
}

Tensor CpuOps::V(const LoraGroup& lora, int64_t rows) const {
  return kernels::MakeTensor(v_, memory_.dtype(), rows, lora.count * lora.rank);
}

kernels::LoraFactors CpuOps::Factors(const LoraGroup& lora) const {
  kernels::LoraFactors factors;
  factors.scale = lora_scale_;
  factors.rank = lora.rank;
  factors.count = lora.count;
  factors.a = lora.a;
  factors.rounded = gemm_factors_;
  for (int64_t i = 0; i < lora.count; ++i) factors.parts[i] = {lora.members[i].b, lora.members[i].out_begin};
  return factors;
}

void CpuOps::Input(const QloraLinear& linear, const Tensor& x, int64_t first_row, const Tensor& u) {
  const LoraGroup& lora = *linear.lora;
  if (lora.count == 0) return;
  if (dropout_ == 0) {
    kernels::LoraForward(exec_, x, linear.w, Factors(lora), 0, {}, u, gemm_scratch_);
    return;
  }
  for (int64_t i = 0; i < lora.count; ++i) {
    const Tensor masked = Masked(linear, lora.members[i], x, first_row);
    Gemm(exec_, false, true, 1, masked, lora.a.Rows(i * lora.rank, (i + 1) * lora.rank), 0,
         u.Cols(i * lora.rank, (i + 1) * lora.rank));
  }
}

void CpuOps::Forward(const QloraLinear& linear, const Tensor& x, int64_t first_row, const Tensor& residual,
                     const Tensor& y, const Tensor& u) {
  const LoraGroup& lora = *linear.lora;
  const double beta = residual.data != nullptr ? 1 : 0;
  if (beta != 0) kernels::Copy(exec_, residual, y);
  if (lora.count > 0 && dropout_ == 0) {
    kernels::LoraForward(exec_, x, linear.w, Factors(lora), beta, y, u, gemm_scratch_);
    return;
  }
  kernels::FrozenForward(exec_, x, linear.w, beta, y, gemm_scratch_);
  Input(linear, x, first_row, u);
  for (int64_t i = 0; i < lora.count; ++i) {
    const LoraGroup::Member& member = lora.members[i];
    Gemm(exec_, false, true, lora_scale_, u.Cols(i * lora.rank, (i + 1) * lora.rank), member.b, 1,
         y.Cols(member.out_begin, member.out_begin + member.out));
  }
}

void CpuOps::BackwardInput(const QloraLinear& linear, const Tensor& dy, int64_t first_row, const Tensor& dx) {
  const LoraGroup& lora = *linear.lora;
  if (lora.count > 0 && dropout_ == 0) {
    kernels::LoraBackward(exec_, dy, linear.w, Factors(lora), dx, V(lora, dy.rows), gemm_scratch_);
    return;
  }
  if (dx.data != nullptr) kernels::FrozenBackward(exec_, dy, linear.w, 0, dx, gemm_scratch_);
  // With dropout each target has an input of its own, and the gradient of that input passes the same mask.
  for (int64_t i = 0; i < lora.count; ++i) {
    const LoraGroup::Member& member = lora.members[i];
    const Tensor v_i = V(lora, dy.rows).Cols(i * lora.rank, (i + 1) * lora.rank);
    Gemm(exec_, false, false, lora_scale_, dy.Cols(member.out_begin, member.out_begin + member.out), member.b, 0, v_i);
    if (dx.data == nullptr) continue;
    const Tensor masked = dropout_tile_.Rows(0, dx.rows).Cols(0, dx.cols);
    Gemm(exec_, false, false, 1, v_i, lora.a.Rows(i * lora.rank, (i + 1) * lora.rank), 0, masked);
    kernels::Dropout(exec_, masked, TargetKey(linear, member), first_row, dropout_, masked);
    kernels::Add(exec_, masked, dx);
  }
}

void CpuOps::Gradients(const QloraLinear& linear, const Tensor& dy, const Tensor& x, int64_t first_row,
                       const Tensor& u) {
  const LoraGroup& lora = *linear.lora;
  if (lora.count == 0) return;
  const Tensor v = V(lora, dy.rows);
  for (int64_t i = 0; i < lora.count; ++i) {
    const LoraGroup::Member& member = lora.members[i];
    Gemm(exec_, true, false, lora_scale_, dy.Cols(member.out_begin, member.out_begin + member.out),
         u.Cols(i * lora.rank, (i + 1) * lora.rank), 1, member.grad_b);
    if (dropout_ == 0) continue;
    Gemm(exec_, true, false, 1, v.Cols(i * lora.rank, (i + 1) * lora.rank), Masked(linear, member, x, first_row), 1,
         lora.grad_a.Rows(i * lora.rank, (i + 1) * lora.rank));
  }
  if (dropout_ == 0) Gemm(exec_, true, false, 1, v, x, 1, lora.grad_a);
}

kernels::AttentionShape CpuOps::Shape() const {
  const MemoryPlan& plan = memory_.plan();
  const ModelShape& s = plan.shape;
  kernels::AttentionShape shape;
  shape.heads = s.heads;
  shape.kv_heads = s.kv_heads;
  shape.head_dim = s.head_dim;
  shape.scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  shape.doc_offsets = batch_.doc_offsets;
  shape.docs = batch_.docs;
  shape.longest_doc = plan.train.longest();
  return shape;
}

void CpuOps::AttentionForward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse) {
  kernels::AttentionForward(exec_, Shape(), q, k, v, o, lse, attention_forward_);
}

void CpuOps::AttentionBackward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                               const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  kernels::AttentionBackward(exec_, Shape(), d_o, q, k, v, o, lse, dq, dk, dv, attention_backward_);
}

void CpuOps::HeadLoss(const Tensor& hidden, const int32_t* labels, const double* grad_scale,
                      kernels::LossTotals* totals, const Tensor& d_hidden) {
  const Tensor logits = logits_.Rows(0, hidden.rows);
  kernels::FrozenForward(exec_, hidden, weights_.head, 0, logits, loss_scratch_);
  // A sum a tile, then the sum of those.
  kernels::LossTotals tile;
  kernels::LossTile(exec_, logits, labels, grad_scale, {}, &tile);
  totals->nats += tile.nats;
  totals->correct += tile.correct;
  if (grad_scale != nullptr) kernels::FrozenBackward(exec_, logits, weights_.head, 0, d_hidden, loss_scratch_);
}

std::string CpuOps::Describe() const {
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  // The library cuts its products by the sizes of the caches, so another model of CPU may give other bits.
  return cpu.gemm_library + " on " + cpu.model_name;
}

}  // namespace longhaul::train
