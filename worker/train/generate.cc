#include "worker/train/generate.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/error.h"
#include "base/status_macros.h"
#include "worker/train/export.h"

namespace longhaul::train {

using kernels::Tensor;

absl::StatusOr<std::unique_ptr<Generator>> Generator::Create(const MemoryPlan& plan, const WeightSource& weights,
                                                             const formats::LoadedAdapter* adapter) {
  LH_CHECK(plan.kind == PlanKind::kGenerate && plan.train.compute != ComputeType::kF64);
  std::unique_ptr<Generator> g(new Generator());
  LH_ASSIGN_OR_RETURN(g->exec_, CreateExec(plan, /*pin_threads=*/false));
  LH_ASSIGN_OR_RETURN(g->memory_, EngineMemory::Create(plan, *g->exec_));
  g->weights_ = CarveWeights(*g->memory_);
  LH_RETURN_IF_ERROR(LoadWeights(weights, *g->memory_, *g->exec_, g->weights_));
  g->adapter_ = std::make_unique<Adapter>(*g->memory_);
  if (adapter != nullptr) LH_RETURN_IF_ERROR(ImportAdapter(*adapter, *g->adapter_));
  if (adapter == nullptr && plan.train.lora_targets != 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "PLAN_MISMATCH",
                     "the plan has LoRA targets, but no adapter is given");
  }
  LH_ASSIGN_OR_RETURN(g->ops_, CreateOps(*g->memory_, *g->exec_, g->weights_, *g->adapter_,
                                         adapter == nullptr ? 0 : adapter->config.Scale()));
  g->decoder_ = std::make_unique<Decoder>(*g->memory_, *g->exec_, g->ops_.get(), g->weights_, *g->adapter_);
  g->logits_ = std::make_unique<CutCrossEntropy>(*g->memory_, *g->exec_, g->ops_.get(), g->weights_);
  return g;
}

Tensor Generator::Cache(int64_t layer, int64_t rows) const {
  const MemoryPlan& plan = memory_->plan();
  const int64_t cols = 2 * plan.shape.kv_dim();
  return memory_->Matrix("kv_cache", rows, cols, layer * plan.train.tokens() * cols * plan.element_bytes());
}

const float* Generator::Prefill(const std::vector<int32_t>& prompt) {
  const int64_t rows = static_cast<int64_t>(prompt.size());
  std::vector<int32_t> positions(prompt.size());
  std::iota(positions.begin(), positions.end(), 0);
  const int64_t offsets[2] = {0, rows};
  TokenBatch batch;
  batch.rows = rows;
  batch.ids = prompt.data();
  batch.positions = positions.data();
  batch.doc_offsets = offsets;
  batch.docs = 1;
  batch = ops_->Bring(batch);
  decoder_->Embed(batch);
  const int64_t layers = memory_->plan().shape.layers;
  for (int64_t layer = 0; layer < layers; ++layer) decoder_->ForwardLayer(batch, layer, Cache(layer, rows));
  return logits_->Logits(decoder_->Stream(layers, rows).Rows(rows - 1, rows)).as<float>();
}

const float* Generator::Next(int32_t token, int64_t position) {
  const int32_t position32 = static_cast<int32_t>(position);
  const int64_t offsets[2] = {0, 1};
  TokenBatch batch;
  batch.rows = 1;
  batch.ids = &token;
  batch.positions = &position32;
  batch.doc_offsets = offsets;
  batch.docs = 1;
  batch = ops_->Bring(batch);
  decoder_->Embed(batch);
  const int64_t layers = memory_->plan().shape.layers;
  for (int64_t layer = 0; layer < layers; ++layer)
    decoder_->ForwardLayerCached(batch, layer, Cache(layer, position + 1));
  return logits_->Logits(decoder_->Stream(layers, 1)).as<float>();
}

absl::StatusOr<std::vector<int32_t>> Generator::Generate(const std::vector<int32_t>& prompt, int64_t max_new_tokens,
                                                         const std::vector<int32_t>& end_tokens,
                                                         const std::function<bool(int32_t)>& on_token) {
  const MemoryPlan& plan = memory_->plan();
  const int64_t length = static_cast<int64_t>(prompt.size());
  if (length == 0) return InvalidField("prompt", "is empty");
  if (max_new_tokens < 0 || length + max_new_tokens > plan.train.tokens()) {
    return InvalidField("prompt", "has " + std::to_string(length) + " tokens; with " + std::to_string(max_new_tokens) +
                                      " more that is beyond the planned " + std::to_string(plan.train.tokens()));
  }
  for (int32_t id : prompt) {
    if (id < 0 || id >= plan.shape.vocab)
      return InvalidField("prompt", "has the unknown token id " + std::to_string(id));
  }
  std::vector<int32_t> tokens;
  const float* logits = max_new_tokens > 0 ? Prefill(prompt) : nullptr;
  while (static_cast<int64_t>(tokens.size()) < max_new_tokens) {
    const int32_t token = static_cast<int32_t>(std::max_element(logits, logits + plan.shape.vocab) - logits);
    if (std::find(end_tokens.begin(), end_tokens.end(), token) != end_tokens.end()) break;
    tokens.push_back(token);
    if (!on_token(token) || static_cast<int64_t>(tokens.size()) == max_new_tokens) break;
    logits = Next(token, length + static_cast<int64_t>(tokens.size()) - 1);
  }
  return tokens;
}

}  // namespace longhaul::train
