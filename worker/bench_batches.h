// What longhaul-bench trains on: random tokens, because a benchmark on zeros flatters, in documents of chosen lengths.
// Tests: tests/worker/bench/batches_test.cc
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/train/batch_source.h"

namespace longhaul {

// Tokens of document `index` of an endless data set whose lengths lie as those of tokenised Alpaca records do, prompt
// template included: 40 tokens of template and a log-normal rest of median 60 and sigma 0.8. Median 100, mean 122; one
// in ten has 207 or more, one in a hundred 426; none has more than 1,024. Made up: no record was read. The same seed
// and index give the same length.
int64_t AlpacaLikeTokens(uint64_t seed, uint64_t index);

struct BenchBatchOptions {
  int64_t batch = 1;         // sequences a micro-batch
  int64_t tokens = 512;      // a sequence
  int64_t documents = 1;     // a sequence, of equal length
  bool alpaca_like = false;  // instead: lengths by AlpacaLikeTokens, best fit into sequences as a job's packing does it
  double trained = 1;        // share of the targets that train
  int64_t vocab = 0;
  int64_t updates = 0;  // one micro-batch each
};

// Equal documents: the same micro-batch in every update. Alpaca-like: another one in each of the first 64 updates, then
// those again; a sequence is what packing leaves of it, a few tokens short of full.
class BenchBatches final : public train::BatchSource {
 public:
  // INVALID_ARGUMENT names the flag where a document would have fewer than two tokens.
  static absl::StatusOr<std::unique_ptr<BenchBatches>> Create(const BenchBatchOptions& options);

  int64_t UpdatesPerEpoch() const override { return options_.updates; }
  train::Window GetWindow(int64_t epoch, int64_t update) override;
  train::TokenBatch Get(int64_t index) override;
  std::string Describe() const override { return "random tokens"; }
  int64_t MostTokens() const override { return most_tokens_; }
  int64_t LongestDocument() const override { return longest_document_; }
  int64_t MostDocuments() const override { return most_documents_; }

  double MeanTokens() const;     // of a micro-batch
  double MeanDocuments() const;  // of a micro-batch

  // Called before update `update`, from 0, is queued.
  std::function<void(int64_t update)> on_window;

 private:
  struct MicroBatch {
    std::vector<int32_t> ids, labels, positions;  // [tokens]
    std::vector<int64_t> offsets{0};              // [documents + 1]
    int64_t targets = 0;
  };
  explicit BenchBatches(const BenchBatchOptions& options) : options_(options) {}
  // Of every sequence, the lengths of its documents.
  std::vector<std::vector<int64_t>> Sequences() const;
  void Append(int64_t length, MicroBatch* to);

  BenchBatchOptions options_;
  uint64_t tokens_made_ = 0;
  int64_t most_tokens_ = 0, longest_document_ = 0, most_documents_ = 0;
  size_t current_ = 0;
  std::vector<MicroBatch> micro_batches_;
};

}  // namespace longhaul
