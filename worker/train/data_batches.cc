#include "worker/train/data_batches.h"

#include <algorithm>

namespace longhaul::train {

DataBatches::DataBatches(data::BatchPlan* plan) : plan_(plan) {
  const size_t tokens = static_cast<size_t>(plan_->MostTokens());
  // Once, for the largest micro-batch: no step allocates.
  batch_.ids.reserve(tokens);
  batch_.labels.reserve(tokens);
  batch_.positions.reserve(tokens);
  batch_.doc_offsets.reserve(tokens + 1);
  batch_.lines.reserve(tokens);
}

Window DataBatches::GetWindow(int64_t epoch, int64_t update) {
  epoch_ = epoch;
  update_ = update;
  return {plan_->MicroBatches(update), plan_->Targets(epoch, update)};
}

TokenBatch DataBatches::Get(int64_t index) {
  plan_->Fill(epoch_, update_, index, &batch_);
  TokenBatch batch;
  batch.rows = static_cast<int64_t>(batch_.ids.size());
  batch.ids = batch_.ids.data();
  batch.labels = batch_.labels.data();
  batch.positions = batch_.positions.data();
  batch.doc_offsets = batch_.doc_offsets.data();
  batch.docs = static_cast<int64_t>(batch_.doc_offsets.size()) - 1;
  return batch;
}

std::string DataBatches::Describe() const {
  constexpr size_t kMostNamed = 8;
  std::string text = batch_.lines.size() == 1 ? "line" : "lines";
  for (size_t i = 0; i < std::min(kMostNamed, batch_.lines.size()); ++i) {
    text += (i > 0 ? ", " : " ") + std::to_string(batch_.lines[i]);
  }
  if (batch_.lines.size() > kMostNamed) text += " and " + std::to_string(batch_.lines.size() - kMostNamed) + " more";
  return text + " of the dataset";
}

}  // namespace longhaul::train
