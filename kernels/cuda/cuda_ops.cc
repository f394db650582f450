#include "kernels/cuda/cuda_ops.h"

#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {
namespace {

void Upload(const Exec& exec, void* to, const void* from, int64_t bytes) {
  CheckCuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, exec.cuda().compute.get()),
            "Upload", "cudaMemcpyAsync");
}

void Download(const Exec& exec, void* to, const void* from, int64_t bytes) {
  CheckCuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, exec.cuda().compute.get()),
            "Download", "cudaMemcpyAsync");
}

void Synchronize(const Exec& exec) { exec.cuda().compute.Synchronize(); }

}  // namespace

const OpTable& Ops() {
  static const OpTable table = {
      .upload = Upload,
      .download = Download,
      .synchronize = Synchronize,
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

}  // namespace longhaul::kernels::cuda
