#include "worker/train/decoder.h"

#include <string>

#include "kernels/ops.h"

namespace longhaul::train {

using kernels::Tensor;

Decoder::Decoder(const EngineMemory& memory, const kernels::Exec& exec, EngineOps* ops, const ModelWeights& weights,
                 const Adapter& adapter)
    : memory_(memory),
      exec_(exec),
      ops_(*ops),
      weights_(weights),
      adapter_(adapter),
      strides_(StridesOf(memory.plan())),
      stream_bytes_(StreamBytes(memory.plan())),
      kept_bytes_(KeptBytes(memory.plan())),
      kept_attention_bytes_(KeptAttentionBytes(memory.plan())) {
  for (int i = 0; i < kActs; ++i) {
    fields_[i] = FieldOf(plan(), static_cast<Act>(i));
    field_bytes_[i] = FieldBytes(plan(), static_cast<Act>(i), PlannedRows(plan()));
  }
  CarveBuffers();
}

void Decoder::CarveBuffers() {
  const ModelShape& s = plan().shape;
  const int64_t n = PlannedRows(plan());
  const int64_t tile = plan().choices.token_tile_rows;
  // Matrix checks that the region is as large as its widest use.
  const auto carve = [this](const std::string& name, int64_t rows, int64_t cols) -> void* {
    return memory_.Has(name) ? memory_.Matrix(name, rows, cols).data : nullptr;
  };
  buffers_.stream = carve("stream", StreamCount(plan()) * n, s.hidden);
  buffers_.kept = memory_.GetOrNull("kept");
  buffers_.kept_attention = memory_.GetOrNull("kept_attention");
  for (int i = 0; i < kActs; ++i) {
    const std::string name = ActName(static_cast<Act>(i));
    buffers_.slot[i] = carve("slot." + name, n, fields_[i].stride);
    buffers_.tile[i] = carve("tile." + name, tile, fields_[i].stride);
  }
  buffers_.tile_h = carve("tile.h", tile, strides_.h);
  buffers_.tile_act = carve("tile.act", tile, strides_.act);
  buffers_.tile_d_act = carve("tile.d_act", tile, s.intermediate);
  buffers_.tile_d_h = carve("tile.d_h", tile, s.hidden);
  buffers_.d_x = carve("d_x", n, strides_.d_x);
  buffers_.d_o = carve("d_o", n, s.q_dim());
  buffers_.d_qkv = carve("d_qkv", n, strides_.d_qkv);
  buffers_.scores = carve("scores", s.heads / s.kv_heads, n);
  if (plan().choices.grouped_attention) CarveGroups();
}

Tensor Decoder::Stream(int64_t l, int64_t rows) const {
  return View(static_cast<char*>(buffers_.stream) + StreamSlot(plan(), l) * stream_bytes_, rows, plan().shape.hidden);
}

Tensor Decoder::DStream(int64_t rows) const { return View(buffers_.d_x, rows, plan().shape.hidden, strides_.d_x); }

QloraLinear Decoder::Linear(int64_t layer, FusedLinear linear) const {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const LoraGroup* lora = &adapter_.Group(layer, linear);
  switch (linear) {
    case FusedLinear::kQkv:
      return {w.qkv, lora, layer, linear};
    case FusedLinear::kO:
      return {w.o, lora, layer, linear};
    case FusedLinear::kGateUp:
      return {w.gate_up, lora, layer, linear};
    default:
      return {w.down, lora, layer, linear};
  }
}

Decoder::LayerActs Decoder::Acts(int64_t layer, int64_t rows) const {
  LayerActs acts;
  int64_t offset = Keeps(layer) ? layer * kept_bytes_ : 0;
  for (int i = 0; i < kActs; ++i) {
    const Act act = static_cast<Act>(i);
    if (fields_[i].cols == 0) continue;
    if (Keeps(layer)) {
      acts.fields[i] = FieldView(static_cast<char*>(buffers_.kept) + offset, act, rows);
      offset += field_bytes_[i];
    } else if (i < kFirstMlpAct) {
      acts.fields[i] = FieldView(buffers_.slot[i], act, rows);
    }
  }
  if (!Keeps(layer) && KeepsAttention(layer) && !plan().choices.host_attention) {
    const int64_t index = layer - plan().choices.keep_all_layers;
    char* const kept = static_cast<char*>(buffers_.kept_attention) + index * kept_attention_bytes_;
    acts.fields[static_cast<int>(Act::kO)] = FieldView(kept, Act::kO, rows);
    acts.fields[static_cast<int>(Act::kLse)] =
        FieldView(kept + field_bytes_[static_cast<int>(Act::kO)], Act::kLse, rows);
  }
  return acts;
}

Tensor Decoder::MlpField(const LayerActs& acts, Act act, int64_t begin, int64_t end) const {
  if (acts[act].data != nullptr) return acts[act].Rows(begin, end);
  return FieldView(buffers_.tile[static_cast<int>(act)], act, end - begin);
}

void Decoder::Embed(const TokenBatch& batch) {
  kernels::GatherRows(exec_, weights_.embedding, batch.ids, Stream(0, batch.rows));
}

void Decoder::ForwardLayer(const TokenBatch& batch, int64_t layer, const Tensor& k_and_v) {
  const LayerActs acts = Acts(layer, batch.rows);
  ForwardAttention(batch, layer, acts, /*attends=*/true);
  if (k_and_v.data != nullptr) {
    kernels::Copy(exec_, acts[Act::kQkv].Cols(plan().shape.q_dim(), acts[Act::kQkv].cols), k_and_v);
  }
  ForwardMlp(layer, acts, batch.rows);
}

void Decoder::ForwardLayerCached(const TokenBatch& batch, int64_t layer, const Tensor& cache) {
  LH_CHECK(plan().kind == PlanKind::kGenerate && batch.rows == 1 && batch.positions[0] == cache.rows - 1);
  const LayerActs acts = Acts(layer, 1);
  const Tensor& qkv = acts[Act::kQkv];
  ForwardQkvTile(batch, layer, acts, 0, 1);
  kernels::Copy(exec_, qkv.Cols(plan().shape.q_dim(), qkv.cols), cache.Rows(cache.rows - 1, cache.rows));
  AttendCached(qkv.Cols(0, plan().shape.q_dim()), cache, acts[Act::kO]);
  ForwardOutput(batch, layer, acts);
  ForwardMlp(layer, acts, 1);
}

bool Decoder::Forward(const TokenBatch& batch, const KeepGoing& keep_going) {
  LH_CHECK(batch.rows > 0 && batch.rows <= PlannedRows(plan()));
  ops_.BeginStream(0, /*written=*/true);
  Embed(batch);
  for (int64_t layer = 0; layer < plan().shape.layers; ++layer) {
    if (!keep_going()) return false;
    ops_.StreamWritten(layer);
    if (groups_ != nullptr) {
      ForwardGrouped(batch, layer);
      continue;
    }
    ops_.BeginStream(layer + 1, /*written=*/true);
    ForwardLayer(batch, layer, {});
  }
  if (groups_ != nullptr) groups_->EndForward();
  return true;
}

bool Decoder::Backward(const TokenBatch& batch, const KeepGoing& keep_going) {
  if (groups_ != nullptr) return BackwardInGroups(batch, keep_going);
  for (int64_t layer = plan().shape.layers - 1; layer >= 0; --layer) {
    if (!keep_going()) return false;
    ops_.BeginStream(layer, /*written=*/false);
    const LayerActs acts = Acts(layer, batch.rows);
    if (!Keeps(layer)) ForwardAttention(batch, layer, acts, /*attends=*/!KeepsAttention(layer));
    BackwardMlp(layer, acts, batch.rows);
    BackwardAttention(batch, layer, acts);
  }
  return true;
}

}  // namespace longhaul::train
