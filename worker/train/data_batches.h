// data::BatchPlan as the engine's BatchSource.
#pragma once

#include "worker/data/packing.h"
#include "worker/train/batch_source.h"

namespace longhaul::train {

class DataBatches final : public BatchSource {
 public:
  // `plan` and the examples behind it outlive this.
  explicit DataBatches(data::BatchPlan* plan);
  int64_t UpdatesPerEpoch() const override { return plan_->UpdatesPerEpoch(); }
  Window GetWindow(int64_t epoch, int64_t update) override;
  TokenBatch Get(int64_t index) override;
  std::string Describe() const override;
  int64_t MostTokens() const override { return plan_->MostTokens(); }
  int64_t LongestDocument() const override { return plan_->LongestDocument(); }
  int64_t MostDocuments() const override { return plan_->MostDocuments(); }

 private:
  data::BatchPlan* plan_;
  data::MicroBatch batch_;
  int64_t epoch_ = 0;
  int64_t update_ = 0;
};

}  // namespace longhaul::train
