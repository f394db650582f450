// The decoder's forward and backward pass over one micro-batch: a flat list of tokens, documents one after the other,
// no padding. Only attention sees more than one token; everything else runs in token tiles.
//
//   x_0 = embedding[ids]
//   layer l:  h = norm1(x_l);  q,k,v = h Wqkv^T;  q,k = rope(headnorm(q,k))
//             x_mid = x_l + attention(q,k,v) Wo^T
//             g,u = norm2(x_mid) Wgu^T;  x_{l+1} = x_mid + (silu(g) u) Wd^T
// Every linear carries LoRA where the plan's targets say so.
//
// Layers below keep_all_layers keep every activation; the others share one slot, which the backward pass fills again
// from x_l by the same calls on the same tiles: the same bits; where the plan keeps attention's output, all but
// attention. With heads in groups (grouped_attention) no layer keeps all: q, k, v and their gradients exist for one
// group of heads at a time, and whatever is done token by token for a tile (grouped_half.cc). One code for
// every backend: where a backend has its own way, EngineOps has it; where its buffers have other strides, the plan says
// so (model/plan_layout.h). Not thread-safe: one micro-batch at a time. Batches are as EngineOps::Bring returns them.
#pragma once

#include <cstdint>

#include "kernels/exec.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "model/cuda_layout.h"
#include "model/plan_layout.h"
#include "worker/train/adapter.h"
#include "worker/train/engine_ops.h"
#include "worker/train/grouped_ops.h"
#include "worker/train/memory.h"
#include "worker/train/token_batch.h"
#include "worker/train/weights.h"

namespace longhaul::train {

class Decoder {
 public:
  // All arguments outlive the decoder.
  Decoder(const EngineMemory& memory, const kernels::Exec& exec, EngineOps* ops, const ModelWeights& weights,
          const Adapter& adapter);

  // REQUIRES: rows and documents within the plan's; ids below vocab. False where keep_going said so.
  bool Forward(const TokenBatch& batch, const KeepGoing& keep_going);
  // From d_x (written by the loss) down to the first layer; adds to the adapter's gradients. REQUIRES: Forward before,
  // on the same batch.
  bool Backward(const TokenBatch& batch, const KeepGoing& keep_going);

  // Layer by layer, for generation: from stream l to stream l + 1. `k_and_v` [rows, 2 kv] receives keys and values
  // after RoPE where its data is not null.
  void ForwardLayer(const TokenBatch& batch, int64_t layer, const kernels::Tensor& k_and_v);
  // One token more, against a cache of keys and values [position + 1, 2 kv], whose last row it fills.
  // REQUIRES: a plan to generate; batch.rows == 1, positions[0] == cache.rows - 1.
  void ForwardLayerCached(const TokenBatch& batch, int64_t layer, const kernels::Tensor& cache);
  void Embed(const TokenBatch& batch);

  // x_l [rows, hidden]; l = layers is the last layer's output, before the final norm.
  kernels::Tensor Stream(int64_t l, int64_t rows) const;
  // d loss / d x of the layer at hand [rows, hidden].
  kernels::Tensor DStream(int64_t rows) const;

 private:
  // Activations of one layer. Fields of the MLP half have null data where the layer keeps nothing.
  struct LayerActs {
    kernels::Tensor fields[kActs];
    const kernels::Tensor& operator[](Act act) const { return fields[static_cast<int>(act)]; }
  };

  bool Keeps(int64_t layer) const { return layer < plan().choices.keep_all_layers; }
  // Keeps what attention made, or everything.
  bool KeepsAttention(int64_t layer) const {
    return layer < plan().choices.keep_all_layers + plan().choices.keep_attention_layers;
  }
  const MemoryPlan& plan() const { return memory_.plan(); }
  LayerActs Acts(int64_t layer, int64_t rows) const;
  // Rows [begin, end) of a field of the MLP half: kept, or in the tile that all layers share.
  kernels::Tensor MlpField(const LayerActs& acts, Act act, int64_t begin, int64_t end) const;
  kernels::Tensor View(void* data, int64_t rows, int64_t cols) const { return View(data, rows, cols, cols); }
  kernels::Tensor View(void* data, int64_t rows, int64_t cols, int64_t stride) const {
    return {data, memory_.dtype(), rows, cols, stride};
  }
  kernels::Tensor FieldView(void* data, Act act, int64_t rows) const {
    const ActField& field = fields_[static_cast<int>(act)];
    return {data, field.is_stat ? memory_.stat_dtype() : memory_.dtype(), rows, field.cols, field.stride};
  }
  kernels::Tensor TileH(int64_t rows) const { return View(buffers_.tile_h, rows, plan().shape.hidden, strides_.h); }
  kernels::Tensor TileAct(int64_t rows) const {
    return View(buffers_.tile_act, rows, plan().shape.intermediate, strides_.act);
  }
  QloraLinear Linear(int64_t layer, FusedLinear linear) const;
  // Of rows from `begin` on.
  kernels::Rotation RotationOf(const TokenBatch& batch, int64_t begin) const {
    return {weights_.rope_cos, weights_.rope_sin, batch.positions + begin};
  }
  void CarveBuffers();

  // attention_half.cc
  // `attends` false: attention's output is there already.
  void ForwardAttention(const TokenBatch& batch, int64_t layer, const LayerActs& acts, bool attends);
  void ForwardOutput(const TokenBatch& batch, int64_t layer, const LayerActs& acts);
  void AttendCached(const kernels::Tensor& q, const kernels::Tensor& cache, const kernels::Tensor& o);
  void ForwardQkvTile(const TokenBatch& batch, int64_t layer, const LayerActs& acts, int64_t begin, int64_t end);
  void BackwardAttention(const TokenBatch& batch, int64_t layer, const LayerActs& acts);
  void BackwardQkvTile(const TokenBatch& batch, int64_t layer, const LayerActs& acts, const kernels::Tensor& d_qkv,
                       int64_t begin, int64_t end);
  // grouped_half.cc
  void CarveGroups();
  bool BackwardInGroups(const TokenBatch& batch, const KeepGoing& keep_going);
  void ForwardGrouped(const TokenBatch& batch, int64_t layer);
  void BackwardGrouped(const TokenBatch& batch, int64_t layer);
  // Attention's output of all calls.
  void AttendGrouped(const TokenBatch& batch, int64_t layer, const LayerActs& acts);
  // q, k and v of one group, of all rows, to its buffers.
  void ProjectGroup(const TokenBatch& batch, int64_t layer, const LayerActs& acts, int64_t group);
  void NormAndRotateGroup(const TokenBatch& batch, int64_t layer);
  // Their gradients: q's over attention's output, k's and v's to theirs.
  void BackwardGroup(const TokenBatch& batch, int64_t layer, const LayerActs& acts, int64_t group);
  // Of one call's q, from its rotated form to that of the product, to `o`; of the group's k.
  void BackwardCallQ(const TokenBatch& batch, int64_t layer, int64_t call, const kernels::Tensor& o);
  void BackwardGroupK(const TokenBatch& batch, int64_t layer, const kernels::Tensor& dk);
  kernels::Tensor CallQ(int64_t call, int64_t rows) const;
  kernels::Tensor CallRstd(int64_t call, int64_t rows) const;
  void BackwardGroupedQkvTile(int64_t layer, const LayerActs& acts, int64_t begin, int64_t end);
  // mlp_half.cc
  // What the MLP half of a tile starts from and fills.
  struct MlpTile {
    int64_t begin = 0;
    kernels::Tensor x_mid, rstd, gate_up, u_gate_up, u_down;
    bool kept = false;  // gate_up and the u's are the forward pass's
  };
  MlpTile TileOf(const LayerActs& acts, int64_t layer, int64_t begin, int64_t end) const;
  // x_mid of a tile from x and attention's output, by o; u_o receives what its adapter needs.
  MlpTile GroupedTileOf(int64_t layer, const LayerActs& acts, int64_t begin, int64_t end);
  void ForwardMlpTile(int64_t layer, const MlpTile& tile, const kernels::Tensor& x_out);
  void BackwardMlpTile(int64_t layer, const MlpTile& tile, const kernels::Tensor& dx);
  void ForwardMlp(int64_t layer, const LayerActs& acts, int64_t rows);
  void BackwardMlp(int64_t layer, const LayerActs& acts, int64_t rows);

  const EngineMemory& memory_;
  const kernels::Exec& exec_;
  EngineOps& ops_;
  const ModelWeights& weights_;
  const Adapter& adapter_;
  RowStrides strides_;
  ActField fields_[kActs];
  int64_t stream_bytes_;        // of one stream
  int64_t field_bytes_[kActs];  // of a layer that keeps it
  int64_t kept_bytes_;          // of such a layer
  int64_t kept_attention_bytes_;
  // Regions by name, looked up (and their sizes checked) once. Null where the plan has none.
  struct Buffers {
    void* stream;          // [StreamCount][tokens, hidden]
    void* kept;            // [keep_all_layers] of every field
    void* kept_attention;  // [keep_attention_layers] of attention's output and statistics
    void* slot[kActs];     // one layer's fields of the attention half, [tokens, ...]
    void* tile[kActs];     // one tile's fields of the MLP half (heads in groups: of both), [tile rows, ...]
    void* tile_h;          // [tile rows, hidden]
    void* tile_act;        // [tile rows, intermediate]
    void* tile_d_act;      // [tile rows, intermediate]
    void* tile_d_h;        // [tile rows, hidden]
    void* d_x;             // [tokens, hidden]
    void* d_o;             // [tokens, q]
    void* d_qkv;           // [tokens, q + 2 kv]
    void* scores;          // [heads / kv_heads, tokens]; to generate
  } buffers_ = {};
  // Of one group's heads (HeadGroups); call by call where it has several. Null where there are no groups.
  struct GroupBuffers {
    void* q;       // [calls][tokens, call columns]; then its gradient
    void* k;       // [tokens, kv]
    void* v;       // [tokens, kv]
    void* raw;     // [tokens, q + kv] before q/k norm
    void* rstd_q;  // [calls][tokens, call heads]
    void* rstd_k;  // [tokens, kv heads]
    void* d_o;     // [tokens, call columns]
    void* d_k;     // [tokens, kv]
    void* d_v;     // [tokens, kv]
    void* d_kv;    // [tokens, 2 kv of all groups]
    void* tile;    // [tile rows, q + 2 kv]
    void* d_tile;  // [tile rows, q + 2 kv of all groups]
  } group_ = {};
  HeadGroups heads_;
  GroupedOps* groups_ = nullptr;  // null: no heads in groups
};

}  // namespace longhaul::train
