// A layer whose q, k and v exist for a group of heads at a time, and everything token by token for a tile:
//
//   forward    per group: q,k,v = rope(headnorm(norm1(x) W[group]^T)), tile by tile;  o[group] = attention(q,k,v)
//              per tile:  x_mid = x + o Wo^T;  x_out = the MLP half of it, over x where the plan has one stream
//   backward   o again, unless it was kept
//              per tile:  x_mid again;  the MLP half backward into dx;  o's adapter
//              per group: q,k,v again;  d_o = dx Wo[:,group];  attention backward;  dq over o[group], dk and dv aside
//              per tile:  the product of [dq,dk,dv] with Wqkv and norm1, into dx;  x and o of the layer below are sent
//                         for, into the same rows
//
// At full length there are x, dx, o and its statistics, dk, dv, and what one group needs. Attention of a group is one
// call, or several that take some query heads each: the library's workspace is then smaller.
#include <algorithm>

#include "kernels/ops.h"
#include "worker/train/decoder.h"

namespace longhaul::train {

using kernels::Tensor;

void Decoder::CarveGroups() {
  const ModelShape& s = plan().shape;
  const int64_t n = PlannedRows(plan()), tile = plan().choices.token_tile_rows;
  heads_ = HeadGroupsOf(plan());
  groups_ = ops_.grouped();
  LH_CHECK(groups_ != nullptr);
  const auto carve = [this](const char* name, int64_t rows, int64_t cols) {
    return memory_.Matrix(name, rows, cols).data;
  };
  group_.q = carve("group.q", n, heads_.q_cols);
  group_.k = carve("group.k", n, heads_.kv_cols);
  group_.v = carve("group.v", n, heads_.kv_cols);
  if (s.qk_norm) {
    group_.raw = carve("group.raw", n, heads_.q_cols + heads_.kv_cols);
    group_.rstd_q = memory_.StatMatrix("group.rstd_q", n, heads_.heads).data;
    group_.rstd_k = memory_.StatMatrix("group.rstd_k", n, heads_.kv_heads).data;
  }
  group_.d_o = carve("group.d_o", n, heads_.call_cols());
  group_.d_k = carve("group.d_k", n, heads_.kv_cols);
  group_.d_v = carve("group.d_v", n, heads_.kv_cols);
  group_.d_kv = carve("d_kv", n, 2 * s.kv_dim());
  group_.tile = carve("group.tile", tile, heads_.cols());
  group_.d_tile = carve("tile.d_qkv", tile, strides_.d_qkv);
}

Tensor Decoder::CallQ(int64_t call, int64_t rows) const {
  const int64_t bytes = PlannedRows(plan()) * heads_.call_cols() * kernels::DTypeBytes(memory_.dtype());
  return View(static_cast<char*>(group_.q) + call * bytes, rows, heads_.call_cols());
}

Tensor Decoder::CallRstd(int64_t call, int64_t rows) const {
  const int64_t bytes = PlannedRows(plan()) * heads_.call_heads() * kernels::DTypeBytes(memory_.stat_dtype());
  return kernels::MakeTensor(static_cast<char*>(group_.rstd_q) + call * bytes, memory_.stat_dtype(), rows,
                             heads_.call_heads());
}

void Decoder::ProjectGroup(const TokenBatch& batch, int64_t layer, const LayerActs& acts, int64_t group) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t rows = batch.rows, tile = plan().choices.token_tile_rows;
  const int64_t q_end = heads_.q_cols, k_end = q_end + heads_.kv_cols, cols = heads_.call_cols();
  const Tensor x = Stream(layer, rows);
  const bool lora = Linear(layer, FusedLinear::kQkv).lora->count > 0;
  groups_->BeginGroup(layer, group);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    const Tensor h = TileH(end - begin);
    const Tensor qkv = View(group_.tile, end - begin, heads_.cols());
    groups_->Wait(begin);
    kernels::RmsNorm(exec_, x.Rows(begin, end), w.norm1, s.rms_norm_eps, h, {});
    groups_->Project(layer, h, lora ? acts[Act::kUQkv].Rows(begin, end) : Tensor{}, /*has_u=*/group > 0, qkv);
    if (s.qk_norm) {
      kernels::Copy(exec_, qkv.Cols(0, k_end), View(group_.raw, rows, k_end).Rows(begin, end));
    } else {
      for (int64_t call = 0; call < heads_.calls_each; ++call) {
        kernels::Copy(exec_, qkv.Cols(call * cols, (call + 1) * cols), CallQ(call, rows).Rows(begin, end));
      }
      kernels::Copy(exec_, qkv.Cols(q_end, k_end), View(group_.k, rows, heads_.kv_cols).Rows(begin, end));
    }
    kernels::Copy(exec_, qkv.Cols(k_end, qkv.cols), View(group_.v, rows, heads_.kv_cols).Rows(begin, end));
  }
  NormAndRotateGroup(batch, layer);
}

void Decoder::NormAndRotateGroup(const TokenBatch& batch, int64_t layer) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t rows = batch.rows, cols = heads_.call_cols();
  const Tensor k = View(group_.k, rows, heads_.kv_cols);
  const Tensor raw = View(group_.raw, rows, heads_.q_cols + heads_.kv_cols);
  const kernels::Rotation rotation = RotationOf(batch, 0);
  for (int64_t call = 0; call < heads_.calls_each; ++call) {
    const Tensor q = CallQ(call, rows);
    if (s.qk_norm) {
      kernels::HeadRmsNormRope(exec_, raw.Cols(call * cols, (call + 1) * cols), w.q_norm, heads_.call_heads(),
                               s.rms_norm_eps, rotation, /*raw=*/{}, q, CallRstd(call, rows));
    } else {
      kernels::Rope(exec_, q, heads_.call_heads(), rotation.cos, rotation.sin, rotation.positions, false);
    }
  }
  if (s.qk_norm) {
    kernels::HeadRmsNormRope(exec_, raw.Cols(heads_.q_cols, raw.cols), w.k_norm, heads_.kv_heads, s.rms_norm_eps,
                             rotation, /*raw=*/{}, k,
                             kernels::MakeTensor(group_.rstd_k, memory_.stat_dtype(), rows, heads_.kv_heads));
  } else {
    kernels::Rope(exec_, k, heads_.kv_heads, rotation.cos, rotation.sin, rotation.positions, false);
  }
}

void Decoder::AttendGrouped(const TokenBatch& batch, int64_t layer, const LayerActs& acts) {
  const Tensor k = View(group_.k, batch.rows, heads_.kv_cols), v = View(group_.v, batch.rows, heads_.kv_cols);
  const int64_t cols = heads_.call_cols();
  groups_->BeginAttention();
  for (int64_t group = 0; group < heads_.count; ++group) {
    ProjectGroup(batch, layer, acts, group);
    for (int64_t part = 0; part < heads_.calls_each; ++part) {
      const int64_t call = group * heads_.calls_each + part;
      groups_->AttentionForward(call, CallQ(part, batch.rows), k, v, acts[Act::kO].Cols(call * cols, (call + 1) * cols),
                                acts[Act::kLse]);
    }
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
  groups_->AttentionWritten(layer);
  ops_.BeginStream(layer + 1, /*written=*/true);
  const Tensor x_out = Stream(layer + 1, batch.rows);
  for (int64_t begin = 0; begin < batch.rows; begin += tile) {
    const int64_t end = std::min(batch.rows, begin + tile);
    ForwardMlpTile(layer, GroupedTileOf(layer, acts, begin, end), x_out.Rows(begin, end));
  }
}

void Decoder::BackwardCallQ(const TokenBatch& batch, int64_t layer, int64_t part, const Tensor& o) {
  const Tensor dq = CallQ(part, batch.rows);
  const int64_t cols = heads_.call_cols();
  const kernels::Rotation rotation = RotationOf(batch, 0);
  if (plan().shape.qk_norm) {
    const Tensor raw = View(group_.raw, batch.rows, heads_.q_cols + heads_.kv_cols);
    kernels::HeadRmsNormRopeBackward(exec_, dq, raw.Cols(part * cols, (part + 1) * cols),
                                     weights_.layers[static_cast<size_t>(layer)].q_norm, heads_.call_heads(),
                                     CallRstd(part, batch.rows), rotation, o);
    return;
  }
  kernels::Rope(exec_, dq, heads_.call_heads(), rotation.cos, rotation.sin, rotation.positions, true);
  kernels::Copy(exec_, dq, o);
}

void Decoder::BackwardGroupK(const TokenBatch& batch, int64_t layer, const Tensor& dk) {
  const kernels::Rotation rotation = RotationOf(batch, 0);
  if (!plan().shape.qk_norm) {
    return kernels::Rope(exec_, dk, heads_.kv_heads, rotation.cos, rotation.sin, rotation.positions, true);
  }
  const Tensor raw = View(group_.raw, batch.rows, heads_.q_cols + heads_.kv_cols);
  kernels::HeadRmsNormRopeBackward(
      exec_, dk, raw.Cols(heads_.q_cols, raw.cols), weights_.layers[static_cast<size_t>(layer)].k_norm, heads_.kv_heads,
      kernels::MakeTensor(group_.rstd_k, memory_.stat_dtype(), batch.rows, heads_.kv_heads), rotation, dk);
}

void Decoder::BackwardGroup(const TokenBatch& batch, int64_t layer, const LayerActs& acts, int64_t group) {
  const int64_t rows = batch.rows, cols = heads_.call_cols(), kv_cols = heads_.kv_cols;
  const int64_t kv_dim = plan().shape.kv_dim();
  const Tensor k = View(group_.k, rows, kv_cols), v = View(group_.v, rows, kv_cols);
  const Tensor d_o = View(group_.d_o, rows, cols);
  const Tensor dk = View(group_.d_k, rows, kv_cols), dv = View(group_.d_v, rows, kv_cols);
  const Tensor all = View(group_.d_kv, rows, 2 * kv_dim);
  const Tensor sum_dk = all.Cols(group * kv_cols, (group + 1) * kv_cols);
  const Tensor sum_dv = all.Cols(kv_dim + group * kv_cols, kv_dim + (group + 1) * kv_cols);
  ProjectGroup(batch, layer, acts, group);
  for (int64_t part = 0; part < heads_.calls_each; ++part) {
    const int64_t call = group * heads_.calls_each + part;
    const Tensor q = CallQ(part, rows);
    const Tensor o = acts[Act::kO].Cols(call * cols, (call + 1) * cols);
    groups_->OutputGradient(layer, DStream(rows), call * cols, d_o);
    groups_->AttentionBackward(call, d_o, q, k, v, o, acts[Act::kLse], /*dq=*/q, dk, dv);
    // This call's output was wanted by its own gradients alone.
    BackwardCallQ(batch, layer, part, o);
    const auto collect = part == 0 ? kernels::Copy : kernels::Add;
    collect(exec_, dk, sum_dk);
    collect(exec_, dv, sum_dv);
  }
  BackwardGroupK(batch, layer, sum_dk);
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
  const Tensor d_qkv = View(group_.d_tile, rows, FusedOut(s, FusedLinear::kQkv), strides_.d_qkv);
  kernels::Copy(exec_, acts[Act::kO].Rows(begin, end), d_qkv.Cols(0, s.q_dim()));
  kernels::Copy(exec_, View(group_.d_kv, end, 2 * s.kv_dim()).Rows(begin, end), d_qkv.Cols(s.q_dim(), d_qkv.cols));
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
    groups_->Wait(begin);
    BackwardMlpTile(layer, GroupedTileOf(layer, acts, begin, end), dx);
    // Of o the adapter's part alone; its input's gradient is made by calls, from what this leaves behind dx.
    if (o.lora->count == 0) continue;
    ops_.BackwardInput(o, dx, begin, {});
    ops_.Gradients(o, dx, acts[Act::kO].Rows(begin, end), begin,
                   FieldView(buffers_.tile[static_cast<int>(Act::kUO)], Act::kUO, end - begin));
  }
  groups_->BeginBackward(layer);
  for (int64_t group = 0; group < heads_.count; ++group) BackwardGroup(batch, layer, acts, group);
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t end = std::min(rows, begin + tile);
    BackwardGroupedQkvTile(layer, acts, begin, end);
    groups_->Fetch(layer - 1, begin, end);
  }
}

bool Decoder::BackwardInGroups(const TokenBatch& batch, const KeepGoing& keep_going) {
  const int64_t layers = plan().shape.layers, tile = plan().choices.token_tile_rows;
  for (int64_t begin = 0; begin < batch.rows; begin += tile) {
    groups_->Fetch(layers - 1, begin, std::min(batch.rows, begin + tile));
  }
  for (int64_t layer = layers - 1; layer >= 0; --layer) {
    if (!keep_going()) return false;
    BackwardGrouped(batch, layer);
  }
  return true;
}

}  // namespace longhaul::train
