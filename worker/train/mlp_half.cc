// x_out = x_mid + (silu(g) u) Wd^T with g,u = norm2(x_mid) Wgu^T, and its backward pass, both in token tiles.
#include <algorithm>

#include "kernels/ops.h"
#include "worker/train/decoder.h"

namespace longhaul::train {

using kernels::Tensor;

Decoder::MlpTile Decoder::TileOf(const LayerActs& acts, int64_t layer, int64_t begin, int64_t end) const {
  return {.begin = begin,
          .x_mid = acts[Act::kXMid].Rows(begin, end),
          .rstd = acts[Act::kRstd2].Rows(begin, end),
          .gate_up = MlpField(acts, Act::kGateUp, begin, end),
          .u_gate_up = MlpField(acts, Act::kUGateUp, begin, end),
          .u_down = MlpField(acts, Act::kUDown, begin, end),
          .kept = Keeps(layer)};
}

void Decoder::ForwardMlpTile(int64_t layer, const MlpTile& tile, const Tensor& x_out) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Tensor h = TileH(x_out.rows);
  const Tensor act = TileAct(x_out.rows);
  kernels::RmsNorm(exec_, tile.x_mid, w.norm2, s.rms_norm_eps, h, tile.rstd);
  ops_.Forward(Linear(layer, FusedLinear::kGateUp), h, tile.begin, {}, tile.gate_up, tile.u_gate_up);
  kernels::SwiGlu(exec_, tile.gate_up.Cols(0, s.intermediate), tile.gate_up.Cols(s.intermediate, 2 * s.intermediate),
                  act);
  ops_.Forward(Linear(layer, FusedLinear::kDown), act, tile.begin, tile.x_mid, x_out, tile.u_down);
}

void Decoder::ForwardMlp(int64_t layer, const LayerActs& acts, int64_t rows) {
  const int64_t tile = plan().choices.token_tile_rows;
  const Tensor x_out = Stream(layer + 1, rows);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    ForwardMlpTile(layer, TileOf(acts, layer, begin, end), x_out.Rows(begin, end));
  }
}

void Decoder::BackwardMlpTile(int64_t layer, const MlpTile& tile, const Tensor& dx) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const QloraLinear gate_up_linear = Linear(layer, FusedLinear::kGateUp);
  const QloraLinear down_linear = Linear(layer, FusedLinear::kDown);
  const Tensor h = TileH(dx.rows);
  const Tensor& gate_up = tile.gate_up;
  const Tensor gate = gate_up.Cols(0, s.intermediate);
  const Tensor up = gate_up.Cols(s.intermediate, 2 * s.intermediate);
  if (!tile.kept) {
    kernels::RmsNorm(exec_, tile.x_mid, w.norm2, s.rms_norm_eps, h, tile.rstd);
    ops_.Forward(gate_up_linear, h, tile.begin, {}, gate_up, tile.u_gate_up);
  }

  // (1) down: d_act.
  const bool down_lora = down_linear.lora->count > 0;
  const Tensor d_act = View(buffers_.tile_d_act, dx.rows, s.intermediate);
  ops_.BackwardInput(down_linear, dx, tile.begin, d_act);
  // (2) the product: g and u become their gradients in place; the product itself is made again for down's adapter.
  const Tensor act = down_lora ? TileAct(dx.rows) : Tensor{};
  kernels::SwiGluBackward(exec_, d_act, gate, up, gate, up, act);
  if (down_lora) {
    if (!tile.kept) ops_.Input(down_linear, act, tile.begin, tile.u_down);
    ops_.Gradients(down_linear, dx, act, tile.begin, tile.u_down);
  }
  // (3) gate and up at full K, then the norm, into the residual's gradient.
  const Tensor d_h = View(buffers_.tile_d_h, dx.rows, s.hidden);
  ops_.BackwardInput(gate_up_linear, gate_up, tile.begin, d_h);
  if (gate_up_linear.lora->count > 0) {
    // Made where it is read: on a GPU it is in the cache then.
    if (tile.kept) kernels::RmsNorm(exec_, tile.x_mid, w.norm2, s.rms_norm_eps, h, {});
    ops_.Gradients(gate_up_linear, gate_up, h, tile.begin, tile.u_gate_up);
  }
  kernels::RmsNormBackward(exec_, d_h, tile.x_mid, w.norm2, tile.rstd, true, dx);
}

void Decoder::BackwardMlp(int64_t layer, const LayerActs& acts, int64_t rows) {
  const int64_t tile = plan().choices.token_tile_rows;
  const Tensor d_x = DStream(rows);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    BackwardMlpTile(layer, TileOf(acts, layer, begin, end), d_x.Rows(begin, end));
  }
}

}  // namespace longhaul::train
