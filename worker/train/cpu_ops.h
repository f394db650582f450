// EngineOps on the CPU: frozen weights with their LoRA through LoraForward and LoraBackward, or LoRA as products of its
// own (with dropout masked per module, as PEFT does), attention by the op, logits in the plan's loss tile.
#pragma once

#include "worker/train/engine_ops.h"

namespace longhaul::train {

class CpuOps final : public EngineOps {
 public:
  CpuOps(const EngineMemory& memory, const kernels::Exec& exec, const ModelWeights& weights, double lora_scale);

  void SetDropout(double probability, uint64_t key) override;
  TokenBatch Bring(const TokenBatch& batch) override;
  bool Queue(Part, int64_t, absl::FunctionRef<bool()> body) override { return body(); }
  void AdapterChanged() override {}
  void BeginStream(int64_t, bool) override {}
  void StreamWritten(int64_t) override {}
  void Forward(const QloraLinear& linear, const kernels::Tensor& x, int64_t first_row, const kernels::Tensor& residual,
               const kernels::Tensor& y, const kernels::Tensor& u) override;
  void Input(const QloraLinear& linear, const kernels::Tensor& x, int64_t first_row, const kernels::Tensor& u) override;
  void BackwardInput(const QloraLinear& linear, const kernels::Tensor& dy, int64_t first_row,
                     const kernels::Tensor& dx) override;
  void Gradients(const QloraLinear& linear, const kernels::Tensor& dy, const kernels::Tensor& x, int64_t first_row,
                 const kernels::Tensor& u) override;
  void AttentionForward(const kernels::Tensor& q, const kernels::Tensor& k, const kernels::Tensor& v,
                        const kernels::Tensor& o, const kernels::Tensor& lse) override;
  void AttentionBackward(const kernels::Tensor& d_o, const kernels::Tensor& q, const kernels::Tensor& k,
                         const kernels::Tensor& v, const kernels::Tensor& o, const kernels::Tensor& lse,
                         const kernels::Tensor& dq, const kernels::Tensor& dk, const kernels::Tensor& dv) override;
  void HeadLoss(const kernels::Tensor& hidden, const int32_t* labels, const double* grad_scale,
                kernels::LossTotals* totals, const kernels::Tensor& d_hidden) override;
  std::string Describe() const override;

 private:
  uint64_t TargetKey(const QloraLinear& linear, const LoraGroup::Member& member) const;
  kernels::LoraFactors Factors(const LoraGroup& lora) const;
  // The input that `member`'s A sees.
  kernels::Tensor Masked(const QloraLinear& linear, const LoraGroup::Member& member, const kernels::Tensor& x,
                         int64_t first_row) const;
  // v of one linear's rows.
  kernels::Tensor V(const LoraGroup& lora, int64_t rows) const;
  kernels::AttentionShape Shape() const;

  const EngineMemory& memory_;
  const kernels::Exec& exec_;
  const ModelWeights& weights_;
  double lora_scale_;   // s = alpha / r, or alpha / sqrt(r)
  double dropout_ = 0;  // of the input of the LoRA branch
  uint64_t dropout_key_ = 0;
  kernels::Tensor dropout_tile_;  // [tile rows, widest input]; data is null without dropout
  kernels::Tensor logits_;        // [loss tile rows, vocab]
  void* gemm_scratch_;
  void* gemm_factors_;
  void* loss_scratch_;
  void* v_;  // [tile rows, targets of a linear x rank]
  void* attention_forward_;
  void* attention_backward_;
  TokenBatch batch_;
};

}  // namespace longhaul::train
