// Greedy tokens from the base, or the base with an adapter, with a cache of keys and values. For `longhaul chat`: one
// sequence at a time, in a plan of its own (MakeGeneratePlan).
// Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/formats/peft_adapter.h"
#include "worker/train/decoder.h"
#include "worker/train/loss.h"
#include "worker/train/memory.h"
#include "worker/train/weights.h"

namespace longhaul::train {

class Generator {
 public:
  // `adapter` null = the base alone; the plan's targets and rank must be the adapter's. `weights` is not used
  // afterwards.
  static absl::StatusOr<std::unique_ptr<Generator>> Create(const MemoryPlan& plan, const WeightSource& weights,
                                                           const formats::LoadedAdapter* adapter);

  // Up to max_new_tokens tokens after the prompt, ending before the first of `end_tokens`. `on_token` sees each as it
  // comes; false stops. INVALID_ARGUMENT: an empty prompt, an id past the vocabulary, or prompt and answer longer than
  // the plan's sequence.
  absl::StatusOr<std::vector<int32_t>> Generate(const std::vector<int32_t>& prompt, int64_t max_new_tokens,
                                                const std::vector<int32_t>& end_tokens,
                                                const std::function<bool(int32_t)>& on_token);

  // Logits [vocab] after the last token of `prompt`, which fills the cache. Valid until the next call.
  const float* Prefill(const std::vector<int32_t>& prompt);

 private:
  Generator() = default;
  // Logits after one more token at `position`.
  const float* Next(int32_t token, int64_t position);
  kernels::Tensor Cache(int64_t layer, int64_t rows) const;  // [rows, 2 kv]

  std::unique_ptr<kernels::Exec> exec_;
  std::unique_ptr<EngineMemory> memory_;
  ModelWeights weights_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<EngineOps> ops_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<CutCrossEntropy> logits_;
};

}  // namespace longhaul::train
