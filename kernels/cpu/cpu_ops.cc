#include "kernels/cpu/cpu_ops.h"

#include <cstring>

#include "kernels/cpu/packed_gemm.h"

namespace longhaul::kernels::cpu {
namespace {

void CopyBytes(const Exec&, void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

void GemmOfType(const Exec& exec, bool transpose_a, bool transpose_b, double alpha, const Tensor& a, const Tensor& b,
                double beta, const Tensor& c) {
  (c.dtype == DType::kF64 ? GemmF64 : Gemm)(exec, transpose_a, transpose_b, alpha, a, b, beta, c);
}

}  // namespace

void FrozenForward(const Exec& exec, const Tensor& x, const FrozenWeight& w, double beta, const Tensor& y,
                   void* scratch) {
  if (w.packed) {
    PackedGemm(exec, x, w, /*backward=*/false, beta, y, scratch);
  } else {
    GemmOfType(exec, false, true, 1, x, MakeTensor(w.forward, w.dtype, w.out, w.in), beta, y);
  }
}

void FrozenBackward(const Exec& exec, const Tensor& dy, const FrozenWeight& w, double beta, const Tensor& dx,
                    void* scratch) {
  if (w.packed) {
    PackedGemm(exec, dy, w, /*backward=*/true, beta, dx, scratch);
  } else {
    GemmOfType(exec, false, false, 1, dy, MakeTensor(w.backward, w.dtype, w.out, w.in), beta, dx);
  }
}

const OpTable& Ops() {
  static const OpTable table = {
      .upload = CopyBytes,
      .download = CopyBytes,
      .synchronize = [](const Exec&) {},
      .gemm = GemmOfType,
      .frozen_forward = FrozenForward,
      .frozen_backward = FrozenBackward,
      .lora_forward = LoraForward,
      .lora_backward = LoraBackward,
      .rms_norm = RmsNorm,
      .add_rms_norm = AddRmsNorm,
      .rms_norm_backward = RmsNormBackward,
      .rms_norm_backward_rows = RmsNormBackwardRows,
      .head_rms_norm = HeadRmsNorm,
      .head_rms_norm_backward = HeadRmsNormBackward,
      .rope = Rope,
      .head_rms_norm_rope = HeadRmsNormRope,
      .head_rms_norm_rope_backward = HeadRmsNormRopeBackward,
      .swi_glu = SwiGlu,
      .swi_glu_backward = SwiGluBackward,
      .ge_glu = GeGlu,
      .ge_glu_backward = GeGluBackward,
      .add = Add,
      .scale = Scale,
      .copy_scaled = CopyScaled,
      .zero = Zero,
      .gather_rows = GatherRows,
      .scatter_rows = ScatterRows,
      .dropout = Dropout,
      .uniform = Uniform,
      .count_non_finite = CountNonFinite,
      .attention_forward = AttentionForward,
      .attention_backward = AttentionBackward,
      .loss_tile = LossTile,
      .begin_loss = BeginLoss,
      .update_loss = UpdateLoss,
      .finish_loss = FinishLoss,
      .sum_of_squares = SumOfSquares,
      .prepare_update = PrepareUpdate,
      .adam_w = AdamW,
      .adam_w_8bit = AdamW8bit,
      .nf4_quantize = Nf4Quantize,
      .nf4_nest_absmax = Nf4NestAbsmax,
      .nf4_dequantize = Nf4Dequantize,
  };
  return table;
}

}  // namespace longhaul::kernels::cpu
