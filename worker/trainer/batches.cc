#include "worker/trainer/batches.h"

#include <algorithm>
#include <utility>

namespace longhaul::trainer {

DatasetBatches::DatasetBatches(const std::vector<data::Example>* examples, const data::BatchOptions& options,
                               std::string file_name)
    : plan_(examples, options), file_name_(std::move(file_name)) {
  const auto tokens = static_cast<size_t>(plan_.MostTokens());
  batch_.ids.reserve(tokens);
  batch_.labels.reserve(tokens);
  batch_.positions.reserve(tokens);
  // A document has a token at the least.
  batch_.doc_offsets.reserve(tokens + 1);
  batch_.lines.reserve(tokens);
}

train::Window DatasetBatches::GetWindow(int64_t epoch, int64_t update) {
  epoch_ = epoch;
  update_ = update;
  return {plan_.MicroBatches(update), plan_.Targets(epoch, update)};
}

train::TokenBatch DatasetBatches::Get(int64_t index) {
  plan_.Fill(epoch_, update_, index, &batch_);
  train::TokenBatch view;
  view.rows = static_cast<int64_t>(batch_.ids.size());
  view.ids = batch_.ids.data();
  view.labels = batch_.labels.data();
  view.positions = batch_.positions.data();
  view.doc_offsets = batch_.doc_offsets.data();
  view.docs = static_cast<int64_t>(batch_.doc_offsets.size()) - 1;
  return view;
}

std::string DatasetBatches::Describe() const {
  constexpr size_t kMost = 10;
  std::string text = batch_.lines.size() == 1 ? "line " : "lines ";
  const size_t shown = std::min(batch_.lines.size(), kMost);
  for (size_t i = 0; i < shown; ++i) text += (i == 0 ? "" : ", ") + std::to_string(batch_.lines[i]);
  if (shown < batch_.lines.size()) text += " and " + std::to_string(batch_.lines.size() - shown) + " more";
  return text + " of " + file_name_;
}

}  // namespace longhaul::trainer
