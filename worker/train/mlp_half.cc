// x_out = x_mid + (silu(g) u) Wd^T with g,u = norm2(x_mid) Wgu^T, and its backward pass, both in token tiles.
#include <algorithm>

#include "kernels/ops.h"
#include "worker/train/decoder.h"

namespace longhaul::train {

using kernels::Tensor;

void Decoder::ForwardMlp(int64_t layer, const LayerActs& acts, int64_t rows) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t tile = plan().choices.token_tile_rows;
  const Tensor x_out = Stream(layer + 1, rows);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    const Tensor x_mid = acts[Act::kXMid].Rows(begin, end);
    const Tensor h = TileH(end - begin);
    const Tensor act = TileAct(end - begin);
    const Tensor gate_up = MlpField(acts, Act::kGateUp, begin, end);
    kernels::RmsNorm(exec_, x_mid, w.norm2, s.rms_norm_eps, h, acts[Act::kRstd2].Rows(begin, end));
    ops_.Forward(Linear(layer, FusedLinear::kGateUp), h, begin, {}, gate_up, MlpField(acts, Act::kUGateUp, begin, end));
    kernels::SwiGlu(exec_, gate_up.Cols(0, s.intermediate), gate_up.Cols(s.intermediate, 2 * s.intermediate), act);
    ops_.Forward(Linear(layer, FusedLinear::kDown), act, begin, x_mid, x_out.Rows(begin, end),
                 MlpField(acts, Act::kUDown, begin, end));
  }
}

void Decoder::BackwardMlp(int64_t layer, const LayerActs& acts, int64_t rows) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t tile = plan().choices.token_tile_rows;
  const Tensor d_x = DStream(rows);
  const QloraLinear gate_up_linear = Linear(layer, FusedLinear::kGateUp);
  const QloraLinear down_linear = Linear(layer, FusedLinear::kDown);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    const Tensor x_mid = acts[Act::kXMid].Rows(begin, end);
    const Tensor rstd = acts[Act::kRstd2].Rows(begin, end);
    const Tensor dx = d_x.Rows(begin, end);
    const Tensor h = TileH(end - begin);
    const Tensor gate_up = MlpField(acts, Act::kGateUp, begin, end);
    const Tensor gate = gate_up.Cols(0, s.intermediate);
    const Tensor up = gate_up.Cols(s.intermediate, 2 * s.intermediate);
    const Tensor u_gate_up = MlpField(acts, Act::kUGateUp, begin, end);
    const Tensor u_down = MlpField(acts, Act::kUDown, begin, end);
    if (!Keeps(layer)) {
      kernels::RmsNorm(exec_, x_mid, w.norm2, s.rms_norm_eps, h, rstd);
      ops_.Forward(gate_up_linear, h, begin, {}, gate_up, u_gate_up);
    }

    // (1) down: d_act.
    const bool down_lora = down_linear.lora->count > 0;
    const Tensor d_act = View(buffers_.tile_d_act, end - begin, s.intermediate);
    ops_.BackwardInput(down_linear, dx, begin, d_act);
    // (2) the product: g and u become their gradients in place; the product itself is made again for down's adapter.
    const Tensor act = down_lora ? TileAct(end - begin) : Tensor{};
    kernels::SwiGluBackward(exec_, d_act, gate, up, gate, up, act);
    if (down_lora) {
      if (!Keeps(layer)) ops_.Input(down_linear, act, begin, u_down);
      ops_.Gradients(down_linear, dx, act, begin, u_down);
    }
    // (3) gate and up at full K, then the norm, into the residual's gradient.
    const Tensor d_h = View(buffers_.tile_d_h, end - begin, s.hidden);
    ops_.BackwardInput(gate_up_linear, gate_up, begin, d_h);
    if (gate_up_linear.lora->count > 0) {
      // Made where it is read: on a GPU it is in the cache then.
      if (Keeps(layer)) kernels::RmsNorm(exec_, x_mid, w.norm2, s.rms_norm_eps, h, {});
      ops_.Gradients(gate_up_linear, gate_up, h, begin, u_gate_up);
    }
    kernels::RmsNormBackward(exec_, d_h, x_mid, w.norm2, rstd, true, dx);
  }
}

}  // namespace longhaul::train
