#include <algorithm>
#include <numeric>
#include <set>

#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/bench_batches.h"

namespace longhaul {
namespace {

std::unique_ptr<BenchBatches> Make(const BenchBatchOptions& options) {
  absl::StatusOr<std::unique_ptr<BenchBatches>> batches = BenchBatches::Create(options);
  EXPECT_TRUE(batches.ok()) << batches.status();
  return *std::move(batches);
}

// Positions restart in every document, no label crosses its end, the window's targets are those of the labels.
void ExpectWellFormed(const train::TokenBatch& batch, int64_t targets, int64_t vocab) {
  EXPECT_EQ(batch.doc_offsets[0], 0);
  EXPECT_EQ(batch.doc_offsets[batch.docs], batch.rows);
  int64_t trained = 0;
  for (int64_t d = 0; d < batch.docs; ++d) {
    const int64_t begin = batch.doc_offsets[d], end = batch.doc_offsets[d + 1];
    ASSERT_GE(end - begin, 2);
    for (int64_t i = begin; i < end; ++i) {
      ASSERT_EQ(batch.positions[i], i - begin);
      ASSERT_TRUE(0 <= batch.ids[i] && batch.ids[i] < vocab);
      if (batch.labels[i] == -100) continue;
      ++trained;
      ASSERT_LT(i + 1, end);
      ASSERT_EQ(batch.labels[i], batch.ids[i + 1]);
    }
  }
  EXPECT_EQ(trained, targets);
}

TEST(BenchBatchesTest, AlpacaLikeLengthsLieAsTheHeaderSays) {
  std::vector<int64_t> lengths;
  for (uint64_t i = 0; i < 52'002; ++i) lengths.push_back(AlpacaLikeTokens(3, i));
  std::sort(lengths.begin(), lengths.end());
  const auto quantile = [&](double q) { return lengths[static_cast<size_t>(q * static_cast<double>(lengths.size()))]; };
  // Of 52,002 draws a quantile's deviation is below 0.5% of it at the median, 2% at the 99th percentile; three of each.
  EXPECT_NEAR(static_cast<double>(quantile(0.5)), 100, 2);
  EXPECT_NEAR(static_cast<double>(quantile(0.9)), 207, 6);
  EXPECT_NEAR(static_cast<double>(quantile(0.99)), 426, 26);
  EXPECT_NEAR(static_cast<double>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0})) / 52'002, 122.5, 2);
  EXPECT_GT(lengths.front(), 40);
  EXPECT_EQ(lengths.back(), 1024);
  EXPECT_NE(AlpacaLikeTokens(4, 0), AlpacaLikeTokens(3, 0));
}

TEST(BenchBatchesTest, AlpacaLikePacksAreFullAndDiffer) {
  constexpr int64_t kUpdates = 10, kTokens = 4096, kBatch = 2;
  const auto batches =
      Make({.batch = kBatch, .tokens = kTokens, .alpaca_like = true, .vocab = 1000, .updates = kUpdates});
  std::set<std::vector<int64_t>> layouts;
  int64_t longest = 0, most_documents = 0, most_tokens = 0;
  for (int64_t update = 0; update < kUpdates; ++update) {
    const train::Window window = batches->GetWindow(0, update);
    EXPECT_EQ(window.micro_batches, 1);
    const train::TokenBatch batch = batches->Get(0);
    ExpectWellFormed(batch, window.targets, 1000);
    EXPECT_LE(batch.rows, kBatch * kTokens);
    EXPECT_GE(batch.rows, kBatch * kTokens * 98 / 100);
    layouts.insert({batch.doc_offsets, batch.doc_offsets + batch.docs + 1});
    for (int64_t d = 0; d < batch.docs; ++d) {
      longest = std::max(longest, batch.doc_offsets[d + 1] - batch.doc_offsets[d]);
    }
    most_documents = std::max(most_documents, batch.docs);
    most_tokens = std::max(most_tokens, batch.rows);
  }
  EXPECT_EQ(layouts.size(), static_cast<size_t>(kUpdates));
  EXPECT_EQ(batches->LongestDocument(), longest);
  EXPECT_EQ(batches->MostDocuments(), most_documents);
  EXPECT_EQ(batches->MostTokens(), most_tokens);
  EXPECT_NEAR(batches->MeanTokens() / batches->MeanDocuments(), 122, 15);  // 670 documents of a deviation of 80: 3.1
}

TEST(BenchBatchesTest, MicroBatchesComeAgainAfterSixtyFour) {
  const auto batches = Make({.batch = 1, .tokens = 256, .alpaca_like = true, .vocab = 50, .updates = 66});
  const auto ids = [&](int64_t update) {
    batches->GetWindow(0, update);
    const train::TokenBatch batch = batches->Get(0);
    return std::vector<int32_t>(batch.ids, batch.ids + batch.rows);
  };
  EXPECT_EQ(ids(64), ids(0));
  EXPECT_EQ(ids(65), ids(1));
  EXPECT_NE(ids(63), ids(0));
  EXPECT_LE(batches->LongestDocument(), 256);
}

TEST(BenchBatchesTest, EqualDocumentsFillASequence) {
  const auto batches = Make({.batch = 2, .tokens = 100, .documents = 7, .trained = 0.5, .vocab = 9, .updates = 3});
  for (int64_t update = 0; update < 3; ++update) {
    const train::Window window = batches->GetWindow(0, update);
    const train::TokenBatch batch = batches->Get(0);
    EXPECT_EQ(batch.rows, 200);
    EXPECT_EQ(batch.docs, 14);
    ExpectWellFormed(batch, window.targets, 9);
    EXPECT_NEAR(static_cast<double>(window.targets), 93, 30);  // 186 coin throws: three deviations are 20
  }
  EXPECT_EQ(batches->LongestDocument(), 15);
}

TEST(BenchBatchesTest, DocumentsWithoutATargetAreRefused) {
  BenchBatchOptions options{.batch = 1, .tokens = 512, .documents = 256, .vocab = 9, .updates = 1};
  EXPECT_TRUE(BenchBatches::Create(options).ok());
  options.documents = 257;
  absl::Status status = BenchBatches::Create(options).status();
  ASSERT_EQ(ErrorViolations(status).size(), 1u);
  EXPECT_EQ(ErrorViolations(status)[0].field, "--documents");
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("is 257; must be 1 to 256"));
  options = {.batch = 1, .tokens = 1, .vocab = 9, .updates = 1};
  status = BenchBatches::Create(options).status();
  ASSERT_EQ(ErrorViolations(status).size(), 1u);
  EXPECT_EQ(ErrorViolations(status)[0].field, "--tokens");
}

}  // namespace
}  // namespace longhaul
