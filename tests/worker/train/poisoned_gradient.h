// Micro-batches during which a gradient overflows.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "tests/worker/train/rig.h"
#include "worker/train/trainer.h"

namespace longhaul::train {

// The gradient of one update becomes infinite before micro-batch `poisoned` of its window, the losses do not.
class PoisonedGradient final : public BatchSource {
 public:
  PoisonedGradient(FixedBatches batches, int64_t poisoned) : batches_(std::move(batches)), poisoned_(poisoned) {}
  int64_t UpdatesPerEpoch() const override { return batches_.UpdatesPerEpoch(); }
  Window GetWindow(int64_t epoch, int64_t update) override { return batches_.GetWindow(epoch, update); }
  // In the order of the ops: what was queued before sees nothing of it.
  TokenBatch Get(int64_t index) override {
    if (index == poisoned_ && trainer != nullptr) {
      static constexpr float kInfinite = std::numeric_limits<float>::infinity();
      trainer->memory().exec().Upload(trainer->adapter().grad().as<float>() + 3, &kInfinite, sizeof kInfinite);
      trainer = nullptr;  // once: the source is asked again for what is named
    }
    return batches_.Get(index);
  }
  std::string Describe() const override { return batches_.Describe(); }
  int64_t MostTokens() const override { return batches_.MostTokens(); }
  int64_t LongestDocument() const override { return batches_.LongestDocument(); }
  int64_t MostDocuments() const override { return batches_.MostDocuments(); }

  const Trainer* trainer = nullptr;  // set: its next such micro-batch

 private:
  FixedBatches batches_;
  int64_t poisoned_;
};

}  // namespace longhaul::train
