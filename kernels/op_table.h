// A backend's body of every op: the signature of ops.h, called after its checks. Null: this backend has no such op.
// The table is what an Exec carries, so that code which calls ops links only the backends that it creates.
#pragma once

#include "kernels/ops.h"

namespace longhaul::kernels {

struct OpTable {
  void (*upload)(const Exec&, void* to, const void* from, int64_t bytes) = nullptr;
  void (*download)(const Exec&, void* to, const void* from, int64_t bytes) = nullptr;
  void (*synchronize)(const Exec&) = nullptr;

  decltype(&Gemm) gemm = nullptr;
  decltype(&FrozenForward) frozen_forward = nullptr;
  decltype(&FrozenBackward) frozen_backward = nullptr;
  decltype(&LoraForward) lora_forward = nullptr;
  decltype(&LoraBackward) lora_backward = nullptr;
  decltype(&RmsNorm) rms_norm = nullptr;
  decltype(&AddRmsNorm) add_rms_norm = nullptr;
  decltype(&RmsNormBackward) rms_norm_backward = nullptr;
  decltype(&RmsNormBackwardRows) rms_norm_backward_rows = nullptr;
  decltype(&HeadRmsNorm) head_rms_norm = nullptr;
  decltype(&HeadRmsNormBackward) head_rms_norm_backward = nullptr;
  decltype(&Rope) rope = nullptr;
  decltype(&HeadRmsNormRope) head_rms_norm_rope = nullptr;
  decltype(&HeadRmsNormRopeBackward) head_rms_norm_rope_backward = nullptr;
  decltype(&SwiGlu) swi_glu = nullptr;
  decltype(&SwiGluBackward) swi_glu_backward = nullptr;
  decltype(&GeGlu) ge_glu = nullptr;
  decltype(&GeGluBackward) ge_glu_backward = nullptr;
  decltype(&Add) add = nullptr;
  decltype(&Scale) scale = nullptr;
  decltype(&CopyScaled) copy_scaled = nullptr;  // Copy too, with the factor 1
  decltype(&Zero) zero = nullptr;
  decltype(&GatherRows) gather_rows = nullptr;
  decltype(&ScatterRows) scatter_rows = nullptr;
  decltype(&Dropout) dropout = nullptr;
  decltype(&Uniform) uniform = nullptr;
  decltype(&CountNonFinite) count_non_finite = nullptr;
  decltype(&AttentionForward) attention_forward = nullptr;
  decltype(&AttentionBackward) attention_backward = nullptr;
  decltype(&LossTile) loss_tile = nullptr;
  decltype(&BeginLoss) begin_loss = nullptr;
  decltype(&UpdateLoss) update_loss = nullptr;
  decltype(&FinishLoss) finish_loss = nullptr;
  decltype(&SumOfSquares) sum_of_squares = nullptr;
  decltype(&PrepareUpdate) prepare_update = nullptr;
  decltype(&AdamW) adam_w = nullptr;
  decltype(&AdamW8bit) adam_w_8bit = nullptr;
  decltype(&Nf4Quantize) nf4_quantize = nullptr;
  decltype(&Nf4NestAbsmax) nf4_nest_absmax = nullptr;
  decltype(&Nf4Dequantize) nf4_dequantize = nullptr;
};

}  // namespace longhaul::kernels
