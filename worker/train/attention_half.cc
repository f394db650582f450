// x_mid = x + attention(rope(headnorm(norm1(x) Wqkv^T))) Wo^T, and its backward pass.
#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "worker/train/decoder.h"

namespace longhaul::train {
namespace {

using kernels::Tensor;

// Column ranges of a [rows, q + 2 kv] buffer.
struct Qkv {
  Tensor q, k, v;
  Qkv(const ModelShape& s, const Tensor& all)
      : q(all.Cols(0, s.q_dim())),
        k(all.Cols(s.q_dim(), s.q_dim() + s.kv_dim())),
        v(all.Cols(s.q_dim() + s.kv_dim(), s.q_dim() + 2 * s.kv_dim())) {}
};

}  // namespace

void Decoder::ForwardQkvTile(const TokenBatch& batch, int64_t layer, const LayerActs& acts, int64_t begin,
                             int64_t end) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Tensor h = TileH(end - begin);
  const Tensor qkv = acts[Act::kQkv].Rows(begin, end);
  const QloraLinear linear = Linear(layer, FusedLinear::kQkv);
  const bool lora = linear.lora->count > 0;
  kernels::RmsNorm(exec_, Stream(layer, batch.rows).Rows(begin, end), w.norm1, s.rms_norm_eps, h,
                   acts[Act::kRstd1].Rows(begin, end));
  ops_.Forward(linear, h, begin, {}, qkv, lora ? acts[Act::kUQkv].Rows(begin, end) : Tensor{});
  const Qkv parts(s, qkv);
  const kernels::Rotation rotation = RotationOf(batch, begin);
  if (!s.qk_norm) {
    kernels::Rope(exec_, parts.q, s.heads, rotation.cos, rotation.sin, rotation.positions, false);
    kernels::Rope(exec_, parts.k, s.kv_heads, rotation.cos, rotation.sin, rotation.positions, false);
    return;
  }
  const Tensor raw = acts[Act::kQkRaw].Rows(begin, end);
  kernels::HeadRmsNormRope(exec_, parts.q, w.q_norm, s.heads, s.rms_norm_eps, rotation, raw.Cols(0, s.q_dim()), parts.q,
                           acts[Act::kRstdQ].Rows(begin, end));
  kernels::HeadRmsNormRope(exec_, parts.k, w.k_norm, s.kv_heads, s.rms_norm_eps, rotation,
                           raw.Cols(s.q_dim(), raw.cols), parts.k, acts[Act::kRstdK].Rows(begin, end));
}

void Decoder::ForwardAttention(const TokenBatch& batch, int64_t layer, const LayerActs& acts, bool attends) {
  const ModelShape& s = plan().shape;
  const int64_t tile = plan().choices.token_tile_rows;
  for (int64_t begin = 0; begin < batch.rows; begin += tile) {
    ForwardQkvTile(batch, layer, acts, begin, std::min(batch.rows, begin + tile));
  }
  const Qkv qkv(s, acts[Act::kQkv]);
  if (attends) ops_.AttentionForward(qkv.q, qkv.k, qkv.v, acts[Act::kO], acts[Act::kLse]);
  ForwardOutput(batch, layer, acts);
}

// One query row against all cached keys: softmax(scale * q K^T) V, the heads of a group in one product.
void Decoder::AttendCached(const Tensor& q, const Tensor& cache, const Tensor& o) {
  const ModelShape& s = plan().shape;
  const int64_t group = s.heads / s.kv_heads;
  const Tensor scores = View(buffers_.scores, group, cache.rows);
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  for (int64_t g = 0; g < s.kv_heads; ++g) {
    const int64_t elements = g * group * s.head_dim;
    const Tensor q_group = View(q.as<float>() + elements, group, s.head_dim);
    const Tensor o_group = View(o.as<float>() + elements, group, s.head_dim);
    const int64_t v_begin = s.kv_dim() + g * s.head_dim;
    kernels::Gemm(exec_, false, true, scale, q_group, cache.Cols(g * s.head_dim, (g + 1) * s.head_dim), 0, scores);
    for (int64_t head = 0; head < group; ++head) {
      float* const row = scores.as<float>() + head * scores.stride;
      const float largest = *std::max_element(row, row + cache.rows);
      double sum = 0;
      for (int64_t i = 0; i < cache.rows; ++i) sum += row[i] = std::exp(row[i] - largest);
      for (int64_t i = 0; i < cache.rows; ++i) row[i] = static_cast<float>(row[i] / sum);
    }
    kernels::Gemm(exec_, false, false, 1, scores, cache.Cols(v_begin, v_begin + s.head_dim), 0, o_group);
  }
}

void Decoder::ForwardOutput(const TokenBatch& batch, int64_t layer, const LayerActs& acts) {
  const int64_t tile = plan().choices.token_tile_rows;
  const QloraLinear linear = Linear(layer, FusedLinear::kO);
  const bool lora = linear.lora->count > 0;
  const Tensor x = Stream(layer, batch.rows);
  for (int64_t begin = 0; begin < batch.rows; begin += tile) {
    const int64_t end = std::min(batch.rows, begin + tile);
    ops_.Forward(linear, acts[Act::kO].Rows(begin, end), begin, x.Rows(begin, end), acts[Act::kXMid].Rows(begin, end),
                 lora ? acts[Act::kUO].Rows(begin, end) : Tensor{});
  }
}

void Decoder::BackwardQkvTile(const TokenBatch& batch, int64_t layer, const LayerActs& acts, const Tensor& d_qkv,
                              int64_t begin, int64_t end) {
  const ModelShape& s = plan().shape;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Tensor x = Stream(layer, batch.rows).Rows(begin, end);
  const Tensor rstd = acts[Act::kRstd1].Rows(begin, end);
  const Tensor d_tile = d_qkv.Rows(begin, end);
  const Qkv d(s, d_tile);
  const kernels::Rotation rotation = RotationOf(batch, begin);
  if (s.qk_norm) {
    const Tensor raw = acts[Act::kQkRaw].Rows(begin, end);
    kernels::HeadRmsNormRopeBackward(exec_, d.q, raw.Cols(0, s.q_dim()), w.q_norm, s.heads,
                                     acts[Act::kRstdQ].Rows(begin, end), rotation, d.q);
    kernels::HeadRmsNormRopeBackward(exec_, d.k, raw.Cols(s.q_dim(), raw.cols), w.k_norm, s.kv_heads,
                                     acts[Act::kRstdK].Rows(begin, end), rotation, d.k);
  } else {
    kernels::Rope(exec_, d.q, s.heads, rotation.cos, rotation.sin, rotation.positions, true);
    kernels::Rope(exec_, d.k, s.kv_heads, rotation.cos, rotation.sin, rotation.positions, true);
  }
  const int64_t rows = end - begin;
  const QloraLinear linear = Linear(layer, FusedLinear::kQkv);
  const bool lora = linear.lora->count > 0;
  // Nothing below the first layer trains: its input needs no gradient.
  const Tensor d_h = layer > 0 ? View(buffers_.tile_d_h, rows, s.hidden) : Tensor{};
  ops_.BackwardInput(linear, d_tile, begin, d_h);
  if (lora) {
    const Tensor h = TileH(rows);
    kernels::RmsNorm(exec_, x, w.norm1, s.rms_norm_eps, h, {});
    ops_.Gradients(linear, d_tile, h, begin, acts[Act::kUQkv].Rows(begin, end));
  }
  if (layer > 0) kernels::RmsNormBackward(exec_, d_h, x, w.norm1, rstd, true, DStream(batch.rows).Rows(begin, end));
}

void Decoder::BackwardAttention(const TokenBatch& batch, int64_t layer, const LayerActs& acts) {
  const ModelShape& s = plan().shape;
  const int64_t tile = plan().choices.token_tile_rows;
  const QloraLinear linear = Linear(layer, FusedLinear::kO);
  const bool lora = linear.lora->count > 0;
  const Tensor d_x = DStream(batch.rows);
  const Tensor d_o = View(buffers_.d_o, batch.rows, s.q_dim());
  for (int64_t begin = 0; begin < batch.rows; begin += tile) {
    const int64_t end = std::min(batch.rows, begin + tile);
    ops_.BackwardInput(linear, d_x.Rows(begin, end), begin, d_o.Rows(begin, end));
    if (lora) {
      ops_.Gradients(linear, d_x.Rows(begin, end), acts[Act::kO].Rows(begin, end), begin,
                     acts[Act::kUO].Rows(begin, end));
    }
  }
  const Tensor d_qkv = View(buffers_.d_qkv, batch.rows, FusedOut(s, FusedLinear::kQkv), strides_.d_qkv);
  const Qkv qkv(s, acts[Act::kQkv]);
  const Qkv d(s, d_qkv);
  ops_.AttentionBackward(d_o, qkv.q, qkv.k, qkv.v, acts[Act::kO], acts[Act::kLse], d.q, d.k, d.v);
  for (int64_t begin = 0; begin < batch.rows; begin += tile) {
    BackwardQkvTile(batch, layer, acts, d_qkv, begin, std::min(batch.rows, begin + tile));
  }
}

}  // namespace longhaul::train
