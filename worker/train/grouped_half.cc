// A layer whose q, k and v exist for one attention call's heads at a time, and everything token by token for a tile:
//
//   forward    per call:  q,k,v = rope(headnorm(norm1(x) Wqkv[call]^T)), tile by tile;  o[call] = attention(q,k,v)
//              per tile:  x_mid = x + o Wo^T;  x_out = the MLP half of it, where the plan has one stream over x
//   backward   o again, unless it was kept
//              per tile:  x_mid again;  the MLP half backward into dx;  o's adapter
//              per call:  q,k,v again;  d_o = dx Wo[:,call];  attention backward;  dq over o[call], dk and dv aside
//              per tile:  the product of [dq,dk,dv] with Wqkv and norm1, into dx;  x and o of the layer below are sent
//                         for, into the same rows
//
// At full length there are x, dx, o and its statistics, dk, dv, and what one call needs.
#include <algorithm>

#include "kernels/ops.h"
#include "model/cuda_layout.h"
#include "worker/train/decoder.h"

namespace longhaul::train {

using kernels::Tensor;

void Decoder::CarveGroups() {
  const ModelShape& s = plan().shape;
  const int64_t n = PlannedRows(plan()), tile = plan().choices.token_tile_rows;
  const GroupColumns columns = GroupColumnsOf(plan());
  GroupBuffers& g = groups_;
  g.ops = ops_.grouped();
  LH_CHECK(g.ops != nullptr);
  g.calls = plan().choices.attention_calls;
  g.heads = s.heads / g.calls;
  g.kv_heads = s.kv_heads / g.calls;
  g.q_cols = columns.q;
  g.kv_cols = columns.kv;
  const auto carve = [this](const char* name, int64_t rows, int64_t cols) {
    return memory_.Matrix(name, rows, cols).data;
  };
  g.q = carve("group.q", n, g.q_cols);
  g.k = carve("group.k", n, g.kv_cols);
  g.v = carve("group.v", n, g.kv_cols);
  if (s.qk_norm) {
    g.raw = carve("group.raw", n, g.q_cols + g.kv_cols);
    g.rstd_q = memory_.StatMatrix("group.rstd_q", n, g.heads).data;
    g.rstd_k = memory_.StatMatrix("group.rstd_k", n, g.kv_heads).data;
  }
  g.d_o = carve("group.d_o", n, g.q_cols);
  g.d_k = carve("group.d_k", n, g.kv_cols);
  g.d_v = carve("group.d_v", n, g.kv_cols);
  g.d_kv = carve("d_kv", n, 2 * s.kv_dim());
  g.tile_qkv = carve("group.tile", tile, columns.all());
  g.tile_d_qkv = carve("tile.d_qkv", tile, strides_.d_qkv);
}

void Decoder::ProjectGroup(const TokenBatch& batch, int64_t layer, const LayerActs& acts, int64_t call) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const GroupBuffers& g = groups_;
  const int64_t rows = batch.rows, tile = plan().choices.token_tile_rows;
  const Tensor q = View(g.q, rows, g.q_cols), k = View(g.k, rows, g.kv_cols), v = View(g.v, rows, g.kv_cols);
  const Tensor raw = View(g.raw, rows, g.q_cols + g.kv_cols);
  const Tensor x = Stream(layer, rows);
  const bool lora = Linear(layer, FusedLinear::kQkv).lora->count > 0;
  g.ops->BeginCall(layer, call);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    const Tensor h = TileH(end - begin);
    const Tensor qkv = View(g.tile_qkv, end - begin, g.q_cols + 2 * g.kv_cols);
    g.ops->Wait(begin);
    kernels::RmsNorm(exec_, x.Rows(begin, end), w.norm1, s.rms_norm_eps, h, {});
    g.ops->Project(layer, h, lora ? acts[Act::kUQkv].Rows(begin, end) : Tensor{}, /*has_u=*/call > 0, qkv);
    if (s.qk_norm) {
      kernels::Copy(exec_, qkv.Cols(0, raw.cols), raw.Rows(begin, end));
    } else {
      kernels::Copy(exec_, qkv.Cols(0, q.cols), q.Rows(begin, end));
      kernels::Copy(exec_, qkv.Cols(q.cols, q.cols + k.cols), k.Rows(begin, end));
    }
    kernels::Copy(exec_, qkv.Cols(q.cols + k.cols, qkv.cols), v.Rows(begin, end));
  }
  if (s.qk_norm) {
    const Tensor rstd_q = kernels::MakeTensor(g.rstd_q, memory_.stat_dtype(), rows, g.heads);
    const Tensor rstd_k = kernels::MakeTensor(g.rstd_k, memory_.stat_dtype(), rows, g.kv_heads);
    kernels::HeadRmsNorm(exec_, raw.Cols(0, q.cols), w.q_norm, g.heads, s.rms_norm_eps, q, rstd_q);
    kernels::HeadRmsNorm(exec_, raw.Cols(q.cols, raw.cols), w.k_norm, g.kv_heads, s.rms_norm_eps, k, rstd_k);
  }
  kernels::Rope(exec_, q, g.heads, weights_.rope_cos, weights_.rope_sin, batch.positions, false);
  kernels::Rope(exec_, k, g.kv_heads, weights_.rope_cos, weights_.rope_sin, batch.positions, false);
}

void Decoder::AttendGrouped(const TokenBatch& batch, int64_t layer, const LayerActs& acts) {
  const GroupBuffers& g = groups_;
  const Tensor q = View(g.q, batch.rows, g.q_cols), k = View(g.k, batch.rows, g.kv_cols),
               v = View(g.v, batch.rows, g.kv_cols);
  g.ops->BeginAttention();
  for (int64_t call = 0; call < g.calls; ++call) {
    ProjectGroup(batch, layer, acts, call);
    g.ops->AttentionForward(call, q, k, v, acts[Act::kO].Cols(call * g.q_cols, (call + 1) * g.q_cols), acts[Act::kLse]);
  }
}

Decoder::MlpTile Decoder::GroupedTileOf(int64_t layer, const LayerActs& acts, int64_t begin, int64_t end) {
  const int64_t rows = end - begin;
  const auto field = [&](Act act) { return FieldView(buffers_.tile[static_cast<int>(act)], act, rows); };
  MlpTile tile{.begin = begin,
               .x_mid = field(Act::kXMid),
               .rstd = field(Act::kRstd2),
               .gate_up = field(Act::kGateUp),
               .u_gate_up = field(Act::kUGateUp),
               .u_down = field(Act::kUDown)};
  const QloraLinear o = Linear(layer, FusedLinear::kO);
  const Tensor x = Stream(layer, end);
  ops_.Forward(o, acts[Act::kO].Rows(begin, end), begin, x.Rows(begin, end), tile.x_mid,
               o.lora->count > 0 ? field(Act::kUO) : Tensor{});
  return tile;
}

void Decoder::ForwardGrouped(const TokenBatch& batch, int64_t layer) {
  const LayerActs acts = Acts(layer, batch.rows);
  const int64_t tile = plan().choices.token_tile_rows;
  AttendGrouped(batch, layer, acts);
  groups_.ops->AttentionWritten(layer);
  ops_.BeginStream(layer + 1, /*written=*/true);
  const Tensor x_out = Stream(layer + 1, batch.rows);
  for (int64_t begin = 0; begin < batch.rows; begin += tile) {
    const int64_t end = std::min(batch.rows, begin + tile);
    ForwardMlpTile(layer, GroupedTileOf(layer, acts, begin, end), x_out.Rows(begin, end));
  }
}

void Decoder::BackwardGroup(const TokenBatch& batch, int64_t layer, const LayerActs& acts, int64_t call) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const GroupBuffers& g = groups_;
  const int64_t rows = batch.rows, first = call * g.q_cols, first_kv = call * g.kv_cols;
  const Tensor q = View(g.q, rows, g.q_cols), k = View(g.k, rows, g.kv_cols), v = View(g.v, rows, g.kv_cols);
  const Tensor d_o = View(g.d_o, rows, g.q_cols);
  const Tensor& dq = q;
  const Tensor dk = View(g.d_k, rows, g.kv_cols), dv = View(g.d_v, rows, g.kv_cols);
  const Tensor o = acts[Act::kO].Cols(first, first + g.q_cols);
  ProjectGroup(batch, layer, acts, call);
  g.ops->OutputGradient(layer, DStream(rows), first, d_o);
  g.ops->AttentionBackward(call, d_o, q, k, v, o, acts[Act::kLse], dq, dk, dv);
  kernels::Rope(exec_, dq, g.heads, weights_.rope_cos, weights_.rope_sin, batch.positions, true);
  kernels::Rope(exec_, dk, g.kv_heads, weights_.rope_cos, weights_.rope_sin, batch.positions, true);
  if (s.qk_norm) {
    const Tensor raw = View(g.raw, rows, g.q_cols + g.kv_cols);
    const Tensor rstd_q = kernels::MakeTensor(g.rstd_q, memory_.stat_dtype(), rows, g.heads);
    const Tensor rstd_k = kernels::MakeTensor(g.rstd_k, memory_.stat_dtype(), rows, g.kv_heads);
    kernels::HeadRmsNormBackward(exec_, dq, raw.Cols(0, g.q_cols), w.q_norm, g.heads, rstd_q, dq);
    kernels::HeadRmsNormBackward(exec_, dk, raw.Cols(g.q_cols, raw.cols), w.k_norm, g.kv_heads, rstd_k, dk);
  }
  // This call's output was wanted by its own gradients alone.
  kernels::Copy(exec_, dq, o);
  const Tensor d_kv = View(g.d_kv, rows, 2 * s.kv_dim());
  kernels::Copy(exec_, dk, d_kv.Cols(first_kv, first_kv + g.kv_cols));
  kernels::Copy(exec_, dv, d_kv.Cols(s.kv_dim() + first_kv, s.kv_dim() + first_kv + g.kv_cols));
}

void Decoder::BackwardGroupedQkvTile(int64_t layer, const LayerActs& acts, int64_t begin, int64_t end) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t rows = end - begin;
  const QloraLinear linear = Linear(layer, FusedLinear::kQkv);
  const bool lora = linear.lora->count > 0;
  const Tensor x = Stream(layer, end).Rows(begin, end);
  const Tensor h = TileH(rows);
  const Tensor rstd = FieldView(buffers_.tile[static_cast<int>(Act::kRstd1)], Act::kRstd1, rows);
  const Tensor d_qkv = View(groups_.tile_d_qkv, rows, FusedOut(s, FusedLinear::kQkv), strides_.d_qkv);
  kernels::Copy(exec_, acts[Act::kO].Rows(begin, end), d_qkv.Cols(0, s.q_dim()));
  kernels::Copy(exec_, View(groups_.d_kv, end, 2 * s.kv_dim()).Rows(begin, end), d_qkv.Cols(s.q_dim(), d_qkv.cols));
  // Nothing below the first layer trains: its input needs no gradient.
  const Tensor d_h = layer > 0 ? View(buffers_.tile_d_h, rows, s.hidden) : Tensor{};
  ops_.BackwardInput(linear, d_qkv, begin, d_h);
  kernels::RmsNorm(exec_, x, w.norm1, s.rms_norm_eps, h, rstd);
  if (lora) ops_.Gradients(linear, d_qkv, h, begin, acts[Act::kUQkv].Rows(begin, end));
  if (layer > 0) kernels::RmsNormBackward(exec_, d_h, x, w.norm1, rstd, true, DStream(end).Rows(begin, end));
}

void Decoder::BackwardGrouped(const TokenBatch& batch, int64_t layer) {
  const LayerActs acts = Acts(layer, batch.rows);
  const int64_t rows = batch.rows, tile = plan().choices.token_tile_rows;
  const QloraLinear o = Linear(layer, FusedLinear::kO);
  if (!KeepsAttention(layer)) AttendGrouped(batch, layer, acts);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    const Tensor dx = DStream(rows).Rows(begin, end);
    groups_.ops->Wait(begin);
    BackwardMlpTile(layer, GroupedTileOf(layer, acts, begin, end), dx);
    // Of o the adapter's part alone; its input's gradient is made call by call, from what this leaves behind dx.
    if (o.lora->count == 0) continue;
    ops_.BackwardInput(o, dx, begin, {});
    ops_.Gradients(o, dx, acts[Act::kO].Rows(begin, end), begin,
                   FieldView(buffers_.tile[static_cast<int>(Act::kUO)], Act::kUO, end - begin));
  }
  groups_.ops->BeginBackward(layer);
  for (int64_t call = 0; call < groups_.calls; ++call) BackwardGroup(batch, layer, acts, call);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    BackwardGroupedQkvTile(layer, acts, begin, end);
    groups_.ops->Fetch(layer - 1, begin, end);
  }
}

bool Decoder::BackwardInGroups(const TokenBatch& batch, const KeepGoing& keep_going) {
  const int64_t layers = plan().shape.layers, tile = plan().choices.token_tile_rows;
  for (int64_t begin = 0; begin < batch.rows; begin += tile) {
    groups_.ops->Fetch(layers - 1, begin, std::min(batch.rows, begin + tile));
  }
  for (int64_t layer = layers - 1; layer >= 0; --layer) {
    if (!keep_going()) return false;
    BackwardGrouped(batch, layer);
  }
  return true;
}

}  // namespace longhaul::train
