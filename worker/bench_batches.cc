#include "worker/bench_batches.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"
#include "base/error.h"
#include "base/random.h"
#include "worker/data/best_fit.h"

namespace longhaul {
namespace {

constexpr int64_t kTemplateTokens = 40, kMostTokensADocument = 1024;
constexpr double kMedianRest = 60, kSigma = 0.8;
constexpr int64_t kDistinctMicroBatches = 64;
constexpr int64_t kLeastTokensADocument = 2;
constexpr uint64_t kIdKey = 1, kTrainedKey = 2, kLengthSeed = 3;

}  // namespace

int64_t AlpacaLikeTokens(uint64_t seed, uint64_t index) {
  // Box and Muller; 1 - uniform is never 0.
  const double radius = std::sqrt(-2 * std::log(1 - CounterUniform(seed, 2 * index)));
  const double normal = radius * std::cos(2 * std::numbers::pi * CounterUniform(seed, 2 * index + 1));
  const double tokens = static_cast<double>(kTemplateTokens) + kMedianRest * std::exp(kSigma * normal);
  return std::min(kMostTokensADocument, static_cast<int64_t>(std::lround(tokens)));
}

absl::StatusOr<std::unique_ptr<BenchBatches>> BenchBatches::Create(const BenchBatchOptions& options) {
  LH_CHECK(options.batch > 0 && options.tokens > 0 && options.vocab > 0 && options.updates > 0);
  if (options.tokens < kLeastTokensADocument) {
    return InvalidField("--tokens", "is " + std::to_string(options.tokens) + "; must be at least " +
                                        std::to_string(kLeastTokensADocument) + ": one to read, one to predict");
  }
  const int64_t most = options.tokens / kLeastTokensADocument;
  if (options.documents < 1 || options.documents > most) {
    return InvalidField("--documents", "is " + std::to_string(options.documents) + "; must be 1 to " +
                                           std::to_string(most) + ": a document has at least " +
                                           std::to_string(kLeastTokensADocument) + " of the " +
                                           std::to_string(options.tokens) + " tokens of a sequence");
  }
  std::unique_ptr<BenchBatches> batches(new BenchBatches(options));
  const std::vector<std::vector<int64_t>> sequences = batches->Sequences();
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (i % static_cast<size_t>(options.batch) == 0) batches->micro_batches_.emplace_back();
    for (const int64_t length : sequences[i]) batches->Append(length, &batches->micro_batches_.back());
  }
  for (const MicroBatch& micro_batch : batches->micro_batches_) {
    batches->most_tokens_ = std::max(batches->most_tokens_, micro_batch.offsets.back());
    batches->most_documents_ = std::max(batches->most_documents_, static_cast<int64_t>(micro_batch.offsets.size()) - 1);
  }
  return batches;
}

std::vector<std::vector<int64_t>> BenchBatches::Sequences() const {
  const int64_t tokens = options_.tokens, documents = options_.documents;
  std::vector<std::vector<int64_t>> sequences;
  if (!options_.alpaca_like) {
    std::vector<int64_t> equal;
    for (int64_t d = 0; d < documents; ++d) equal.push_back(tokens * (d + 1) / documents - tokens * d / documents);
    sequences.assign(static_cast<size_t>(options_.batch), equal);
    return sequences;
  }
  const int64_t count = options_.batch * std::min(options_.updates, kDistinctMicroBatches);
  std::vector<int64_t> lengths;
  for (int64_t drawn = 0; drawn < count * tokens; drawn += lengths.back()) {
    lengths.push_back(std::min(tokens, AlpacaLikeTokens(kLengthSeed, lengths.size())));
  }
  const std::vector<std::vector<int32_t>> rows = data::BestFitRows(lengths, tokens);
  // At least `count`, since what was drawn fills as many. The order is an epoch's, over those that are filled best.
  for (const int64_t row : EpochOrder(count, kLengthSeed, 0)) {
    sequences.emplace_back();
    for (const int32_t document : rows[static_cast<size_t>(row)]) {
      sequences.back().push_back(lengths[static_cast<size_t>(document)]);
    }
  }
  return sequences;
}

void BenchBatches::Append(int64_t length, MicroBatch* to) {
  const auto vocab = static_cast<uint64_t>(options_.vocab);
  for (int64_t i = 0; i < length; ++i) {
    const uint64_t at = tokens_made_++;
    to->ids.push_back(static_cast<int32_t>(CounterBits(kIdKey, at) % vocab));
    const bool is_target = i + 1 < length && CounterUniform(kTrainedKey, at) < options_.trained;
    to->labels.push_back(is_target ? static_cast<int32_t>(CounterBits(kIdKey, at + 1) % vocab) : -100);
    to->positions.push_back(static_cast<int32_t>(i));
    to->targets += is_target ? 1 : 0;
  }
  to->offsets.push_back(static_cast<int64_t>(to->ids.size()));
  longest_document_ = std::max(longest_document_, length);
}

train::Window BenchBatches::GetWindow(int64_t, int64_t update) {
  if (on_window) on_window(update);
  current_ = static_cast<size_t>(update) % micro_batches_.size();
  return {1, micro_batches_[current_].targets};
}

train::TokenBatch BenchBatches::Get(int64_t) {
  const MicroBatch& from = micro_batches_[current_];
  train::TokenBatch batch;
  batch.rows = from.offsets.back();
  batch.ids = from.ids.data();
  batch.labels = from.labels.data();
  batch.positions = from.positions.data();
  batch.doc_offsets = from.offsets.data();
  batch.docs = static_cast<int64_t>(from.offsets.size()) - 1;
  return batch;
}

double BenchBatches::MeanTokens() const {
  return static_cast<double>(tokens_made_) / static_cast<double>(micro_batches_.size());
}

double BenchBatches::MeanDocuments() const {
  double documents = 0;
  for (const MicroBatch& micro_batch : micro_batches_) documents += static_cast<double>(micro_batch.offsets.size() - 1);
  return documents / static_cast<double>(micro_batches_.size());
}

}  // namespace longhaul
