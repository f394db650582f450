// The dataset's batch plan as the engine's source of micro-batches.
#pragma once

#include <string>
#include <vector>

#include "worker/data/packing.h"
#include "worker/train/batch_source.h"

namespace longhaul::trainer {

// Not thread-safe. Allocates nothing after its creation.
class DatasetBatches final : public train::BatchSource {
 public:
  // `examples` outlives it; `file_name` is for messages.
  DatasetBatches(const std::vector<data::Example>* examples, const data::BatchOptions& options, std::string file_name);

  int64_t UpdatesPerEpoch() const override { return plan_.UpdatesPerEpoch(); }
  train::Window GetWindow(int64_t epoch, int64_t update) override;
  train::TokenBatch Get(int64_t index) override;
  std::string Describe() const override;
  int64_t MostTokens() const override { return plan_.MostTokens(); }
  int64_t LongestDocument() const override { return plan_.LongestDocument(); }
  int64_t MostDocuments() const override { return plan_.MostDocuments(); }

 private:
  data::BatchPlan plan_;
  std::string file_name_;
  data::MicroBatch batch_;
  int64_t epoch_ = 0;
  int64_t update_ = 0;
};

}  // namespace longhaul::trainer
