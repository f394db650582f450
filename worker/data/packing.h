// From examples to the micro-batches of every update of every epoch, by (epoch, update), so that a resume finds its
// place without replaying anything.
//
// A row is one sequence: one document, or, packed, several (best fit, longest first). Documents never see each other:
// positions restart, and no label crosses from one document into the next. Rows are fixed once; an epoch is an order of
// rows. Tests: tests/worker/data/packing_test.cc
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/data/dataset.h"

namespace longhaul::data {

inline constexpr int32_t kIgnoredLabel = -100;

// Indices into the examples, a row each. Packed: no row is longer than row_tokens, best-fit-decreasing over lengths,
// O(n log n); ties keep the file's order. REQUIRES: every example has at most row_tokens tokens.
std::vector<std::vector<int32_t>> PackRows(const std::vector<Example>& examples, int64_t row_tokens, bool pack);

// Flat and ragged: documents one after the other, no padding.
struct MicroBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> labels;       // the target predicted at each position; kIgnoredLabel = not trained
  std::vector<int32_t> positions;    // from 0 in every document
  std::vector<int64_t> doc_offsets;  // [docs + 1]
  std::vector<int64_t> lines;        // of each document, for messages
  int64_t targets = 0;
  void Clear();
  void Append(const Example& example);
};

struct BatchOptions {
  int64_t row_tokens = 2048;
  bool pack = true;
  int64_t batch_size = 1;          // rows a micro-batch
  int64_t accumulation_steps = 1;  // micro-batches an update; the last window of an epoch may be short
  bool shuffle = true;             // false: the order of the rows, for evaluation
  uint64_t seed = 42;
};

// Not thread-safe (it remembers the last epoch's order).
class BatchPlan {
 public:
  // `examples` outlives the plan.
  BatchPlan(const std::vector<Example>* examples, const BatchOptions& options);

  int64_t UpdatesPerEpoch() const { return updates_per_epoch_; }
  int64_t MicroBatches(int64_t update) const;
  // Trained targets over the whole window: what its loss is divided by.
  int64_t Targets(int64_t epoch, int64_t update);
  // Overwrites *batch. REQUIRES: 0 <= update < UpdatesPerEpoch(), 0 <= index < MicroBatches(update).
  void Fill(int64_t epoch, int64_t update, int64_t index, MicroBatch* batch);

  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t MostTokens() const { return most_tokens_; }  // of any micro-batch of any epoch
  int64_t LongestDocument() const { return longest_document_; }
  int64_t MostDocuments() const { return options_.batch_size * most_row_documents_; }  // of any micro-batch

 private:
  const std::vector<int64_t>& Order(int64_t epoch);
  // [first, last) positions in the epoch's order.
  void RowRange(int64_t update, int64_t index, int64_t* first, int64_t* last) const;

  const std::vector<Example>* examples_;
  BatchOptions options_;
  std::vector<std::vector<int32_t>> rows_;
  std::vector<int64_t> row_targets_;
  int64_t micro_batches_per_epoch_ = 0;
  int64_t updates_per_epoch_ = 0;
  int64_t most_tokens_ = 0;
  int64_t longest_document_ = 0;
  int64_t most_row_documents_ = 0;
  int64_t order_epoch_ = -1;
  std::vector<int64_t> order_;
};

}  // namespace longhaul::data
