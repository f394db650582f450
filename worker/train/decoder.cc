#include "worker/train/decoder.h"

#include <string>

#include "kernels/ops.h"

namespace longhaul::train {

using kernels::Tensor;

Decoder::Decoder(const EngineMemory& memory, const kernels::Exec& exec, const ModelWeights& weights,
                 const Adapter& adapter, double lora_scale)
    : memory_(memory), exec_(exec), weights_(weights), adapter_(adapter) {
  context_.exec = &exec_;
  context_.gemm_scratch = memory_.GetOrNull("gemm.scratch");
  context_.lora_scale = lora_scale;
  CarveBuffers();
}

void Decoder::CarveBuffers() {
  const ModelShape& s = plan().shape;
  const TrainShape& t = plan().train;
  const int64_t n = t.tokens();
  const int64_t tile = plan().choices.token_tile_rows;
  // Matrix checks that the region is as large as its widest use.
  const auto carve = [this](const std::string& name, int64_t rows, int64_t cols) -> void* {
    return memory_.Has(name) ? memory_.Matrix(name, rows, cols).data : nullptr;
  };
  const int64_t streams = plan().kind == PlanKind::kGenerate ? 2 : s.layers + 1;
  buffers_.stream = carve("stream", streams * n, s.hidden);
  buffers_.kept = memory_.GetOrNull("kept");
  for (int i = 0; i < kActs; ++i) {
    const Act act = static_cast<Act>(i);
    const int64_t cols = ActColumns(s, t, act);
    if (i < kFirstMlpAct) {
      buffers_.slot[i] = carve(std::string("slot.") + ActName(act), n, cols);
    } else {
      buffers_.tile[i] = carve(std::string("tile.") + ActName(act), tile, cols);
    }
  }
  buffers_.tile_h = carve("tile.h", tile, s.hidden);
  buffers_.tile_act = carve("tile.act", tile, s.intermediate);
  buffers_.tile_d_act = carve("tile.d_act", tile, s.intermediate);
  buffers_.tile_d_h = carve("tile.d_h", tile, s.hidden);
  buffers_.tile_v = memory_.GetOrNull("tile.v");
  buffers_.d_x = carve("d_x", n, s.hidden);
  buffers_.d_o = carve("d_o", n, s.q_dim());
  buffers_.d_qkv = carve("d_qkv", n, FusedOut(s, FusedLinear::kQkv));
  buffers_.attention_forward = memory_.GetOrNull("attention.forward");
  buffers_.attention_backward = memory_.GetOrNull("attention.backward");
  buffers_.scores = carve("scores", s.heads / s.kv_heads, n);
}

void Decoder::SetDropout(double probability, uint64_t key) {
  context_.dropout = probability;
  context_.dropout_key = key;
  if (probability == 0) return;
  const ModelShape& s = plan().shape;
  context_.dropout_tile =
      memory_.Matrix("tile.dropout", plan().choices.token_tile_rows, std::max({s.hidden, s.q_dim(), s.intermediate}));
}

Tensor Decoder::Stream(int64_t l, int64_t rows) const {
  const int64_t hidden = plan().shape.hidden;
  const int64_t index = plan().kind == PlanKind::kGenerate ? l % 2 : l;
  const int64_t bytes = RoundUp(plan().train.tokens() * hidden * plan().element_bytes(), kPlanAlignBytes);
  return View(static_cast<char*>(buffers_.stream) + index * bytes, rows, hidden);
}

Tensor Decoder::DStream(int64_t rows) const { return View(buffers_.d_x, rows, plan().shape.hidden); }

Tensor Decoder::TileV(const QloraLinear& linear, int64_t rows) const {
  return View(buffers_.tile_v, rows, linear.lora->count * linear.lora->rank);
}

QloraLinear Decoder::Linear(int64_t layer, FusedLinear linear) const {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const LoraGroup* lora = &adapter_.Group(layer, linear);
  switch (linear) {
    case FusedLinear::kQkv:
      return {w.qkv, lora, layer};
    case FusedLinear::kO:
      return {w.o, lora, layer};
    case FusedLinear::kGateUp:
      return {w.gate_up, lora, layer};
    default:
      return {w.down, lora, layer};
  }
}

Decoder::LayerActs Decoder::Acts(int64_t layer, int64_t rows) const {
  const ModelShape& s = plan().shape;
  const TrainShape& t = plan().train;
  LayerActs acts;
  int64_t offset = Keeps(layer) ? layer * KeptLayerBytes(s, t) : 0;
  for (int i = 0; i < kActs; ++i) {
    const Act act = static_cast<Act>(i);
    const int64_t cols = ActColumns(s, t, act);
    if (cols == 0) continue;
    if (Keeps(layer)) {
      acts.fields[i] = View(static_cast<char*>(buffers_.kept) + offset, rows, cols);
      offset += ActBytes(s, t, act, t.tokens());
    } else if (i < kFirstMlpAct) {
      acts.fields[i] = View(buffers_.slot[i], rows, cols);
    }
  }
  return acts;
}

Tensor Decoder::MlpField(const LayerActs& acts, Act act, int64_t begin, int64_t end) const {
  if (acts[act].data != nullptr) return acts[act].Rows(begin, end);
  return View(buffers_.tile[static_cast<int>(act)], end - begin, ActColumns(plan().shape, plan().train, act));
}

void Decoder::Embed(const TokenBatch& batch) {
  kernels::GatherRows(exec_, weights_.embedding, batch.ids, Stream(0, batch.rows));
}

void Decoder::ForwardLayer(const TokenBatch& batch, int64_t layer, const Tensor& k_and_v) {
  const LayerActs acts = Acts(layer, batch.rows);
  ForwardAttention(batch, layer, acts);
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
  LH_CHECK(batch.rows > 0 && batch.rows <= plan().train.tokens());
  Embed(batch);
  for (int64_t layer = 0; layer < plan().shape.layers; ++layer) {
    if (!keep_going()) return false;
    ForwardLayer(batch, layer, {});
  }
  return true;
}

bool Decoder::Backward(const TokenBatch& batch, const KeepGoing& keep_going) {
  for (int64_t layer = plan().shape.layers - 1; layer >= 0; --layer) {
    if (!keep_going()) return false;
    const LayerActs acts = Acts(layer, batch.rows);
    if (!Keeps(layer)) ForwardAttention(batch, layer, acts);
    BackwardMlp(layer, acts, batch.rows);
    BackwardAttention(batch, layer, acts);
  }
  return true;
}

}  // namespace longhaul::train
