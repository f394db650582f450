#include "worker/data/packing.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/check.h"
#include "base/random.h"
#include "worker/data/best_fit.h"

namespace longhaul::data {

std::vector<std::vector<int32_t>> PackRows(const std::vector<Example>& examples, int64_t row_tokens, bool pack) {
  if (!pack) {
    std::vector<std::vector<int32_t>> rows(examples.size());
    for (size_t i = 0; i < examples.size(); ++i) rows[i] = {static_cast<int32_t>(i)};
    return rows;
  }
  std::vector<int64_t> lengths;
  lengths.reserve(examples.size());
  for (const Example& example : examples) lengths.push_back(static_cast<int64_t>(example.ids.size()));
  return BestFitRows(lengths, row_tokens);
}

void MicroBatch::Clear() {
  ids.clear();
  labels.clear();
  positions.clear();
  doc_offsets.assign(1, 0);
  lines.clear();
  targets = 0;
}

void MicroBatch::Append(const Example& example) {
  const size_t length = example.ids.size();
  for (size_t i = 0; i < length; ++i) {
    ids.push_back(example.ids[i]);
    positions.push_back(static_cast<int32_t>(i));
    // The label of a position is the next token of its own document.
    const bool trained = i + 1 < length && example.train[i + 1] != 0;
    labels.push_back(trained ? example.ids[i + 1] : kIgnoredLabel);
    targets += trained ? 1 : 0;
  }
  doc_offsets.push_back(static_cast<int64_t>(ids.size()));
  lines.push_back(example.line);
}

BatchPlan::BatchPlan(const std::vector<Example>* examples, const BatchOptions& options)
    : examples_(examples), options_(options), rows_(PackRows(*examples, options.row_tokens, options.pack)) {
  std::vector<int64_t> row_tokens;
  for (const std::vector<int32_t>& row : rows_) {
    most_row_documents_ = std::max(most_row_documents_, static_cast<int64_t>(row.size()));
    int64_t targets = 0;
    int64_t tokens = 0;
    for (int32_t index : row) {
      const Example& example = (*examples_)[static_cast<size_t>(index)];
      targets += CountTargets(example);
      tokens += static_cast<int64_t>(example.ids.size());
      longest_document_ = std::max(longest_document_, static_cast<int64_t>(example.ids.size()));
    }
    row_targets_.push_back(targets);
    row_tokens.push_back(tokens);
  }
  micro_batches_per_epoch_ = (rows() + options_.batch_size - 1) / options_.batch_size;
  updates_per_epoch_ = (micro_batches_per_epoch_ + options_.accumulation_steps - 1) / options_.accumulation_steps;
  // The order is another every epoch, so the fullest batch is bounded by the fullest rows.
  const int64_t most = std::min(options_.batch_size, rows());
  std::partial_sort(row_tokens.begin(), row_tokens.begin() + most, row_tokens.end(), std::greater<>());
  most_tokens_ = std::accumulate(row_tokens.begin(), row_tokens.begin() + most, int64_t{0});
}

int64_t BatchPlan::MicroBatches(int64_t update) const {
  return std::min(options_.accumulation_steps, micro_batches_per_epoch_ - update * options_.accumulation_steps);
}

const std::vector<int64_t>& BatchPlan::Order(int64_t epoch) {
  if (order_epoch_ != epoch) {
    if (options_.shuffle) {
      order_ = EpochOrder(rows(), options_.seed, epoch);
    } else {
      order_.resize(rows_.size());
      std::iota(order_.begin(), order_.end(), int64_t{0});
    }
    order_epoch_ = epoch;
  }
  return order_;
}

void BatchPlan::RowRange(int64_t update, int64_t index, int64_t* first, int64_t* last) const {
  LH_CHECK(0 <= update && update < updates_per_epoch_ && 0 <= index && index < MicroBatches(update));
  *first = (update * options_.accumulation_steps + index) * options_.batch_size;
  *last = std::min(*first + options_.batch_size, rows());
}

int64_t BatchPlan::Targets(int64_t epoch, int64_t update) {
  const std::vector<int64_t>& order = Order(epoch);
  int64_t targets = 0;
  for (int64_t index = 0; index < MicroBatches(update); ++index) {
    int64_t first = 0;
    int64_t last = 0;
    RowRange(update, index, &first, &last);
    for (int64_t i = first; i < last; ++i) targets += row_targets_[static_cast<size_t>(order[static_cast<size_t>(i)])];
  }
  return targets;
}

void BatchPlan::Fill(int64_t epoch, int64_t update, int64_t index, MicroBatch* batch) {
  const std::vector<int64_t>& order = Order(epoch);
  int64_t first = 0;
  int64_t last = 0;
  RowRange(update, index, &first, &last);
  batch->Clear();
  for (int64_t i = first; i < last; ++i) {
    for (int32_t example : rows_[static_cast<size_t>(order[static_cast<size_t>(i)])]) {
      batch->Append((*examples_)[static_cast<size_t>(example)]);
    }
  }
}

}  // namespace longhaul::data
