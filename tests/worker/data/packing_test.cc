#include "worker/data/packing.h"

#include <numeric>
#include <random>
#include <set>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace longhaul::data {
namespace {

using testing::ElementsAre;

// Ids 100 * line + position, all trained.
Example Document(int64_t line, size_t length) {
  Example example;
  example.line = line;
  for (size_t i = 0; i < length; ++i) example.ids.push_back(static_cast<int32_t>(100 * line + static_cast<int64_t>(i)));
  example.train.assign(length, 1);
  return example;
}

std::vector<Example> Documents(const std::vector<size_t>& lengths) {
  std::vector<Example> examples;
  for (size_t length : lengths) examples.push_back(Document(static_cast<int64_t>(examples.size()) + 1, length));
  return examples;
}

std::vector<Example> RandomDocuments(size_t count, size_t most) {
  std::mt19937 random(5);
  std::vector<size_t> lengths;
  for (size_t i = 0; i < count; ++i) lengths.push_back(2 + random() % (most - 1));
  return Documents(lengths);
}

TEST(PackingTest, EveryExampleIsInOneRowThatFits) {
  const std::vector<Example> examples = RandomDocuments(500, 64);
  const auto rows = PackRows(examples, 64, true);
  std::set<int32_t> seen;
  size_t tokens = 0;
  for (const auto& row : rows) {
    size_t used = 0;
    for (int32_t index : row) {
      EXPECT_TRUE(seen.insert(index).second);
      used += examples[static_cast<size_t>(index)].ids.size();
    }
    EXPECT_LE(used, 64u);
    tokens += used;
  }
  EXPECT_EQ(seen.size(), examples.size());
  // Best-fit-decreasing uses at most 11/9 of the best possible, plus one.
  EXPECT_LE(rows.size(), (tokens + 63) / 64 * 11 / 9 + 1);
}

TEST(PackingTest, BestFitDecreasing) {
  using Row = std::vector<int32_t>;
  EXPECT_EQ(PackRows(Documents({3, 7, 5, 2, 3}), 10, true), (std::vector<Row>{{1, 0}, {2, 4, 3}}));
  EXPECT_EQ(PackRows(Documents({3, 7}), 10, false), (std::vector<Row>{{0}, {1}}));
}

TEST(PackingTest, FirstLabelOfAPackedDocumentIsMaskedOnce) {
  const std::vector<Example> examples = Documents({4, 3});
  MicroBatch batch;
  batch.Clear();
  for (const Example& example : examples) batch.Append(example);
  EXPECT_THAT(batch.ids, ElementsAre(100, 101, 102, 103, 200, 201, 202));
  // The last position of a document predicts nothing: 200, the next one's first token, is nobody's target. Its second
  // token is: masking both the shifted label and the token would lose it.
  EXPECT_THAT(batch.labels, ElementsAre(101, 102, 103, -100, 201, 202, -100));
  EXPECT_EQ(batch.targets, 5);
}

TEST(PackingTest, PositionsRestartAtEveryDocument) {
  MicroBatch batch;
  batch.Clear();
  for (const Example& example : Documents({3, 2, 4})) batch.Append(example);
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0, 1, 0, 1, 2, 3));
  EXPECT_THAT(batch.doc_offsets, ElementsAre(0, 3, 5, 9));
  EXPECT_THAT(batch.lines, ElementsAre(1, 2, 3));
}

TEST(PackingTest, MaskedTokensAreNoTargets) {
  Example example = Document(1, 5);
  example.train = {0, 0, 1, 0, 1};
  MicroBatch batch;
  batch.Clear();
  batch.Append(example);
  EXPECT_THAT(batch.labels, ElementsAre(-100, 102, -100, 104, -100));
  EXPECT_EQ(batch.targets, 2);
  EXPECT_EQ(CountTargets(example), 2);
}

TEST(PackingTest, PadEqualsEosAndEosIsStillALabel) {
  // Labels are masked by the mask, never by an id's value: nothing here knows a padding id.
  Example example = Document(1, 3);
  example.ids = {7, 2, 2};
  MicroBatch batch;
  batch.Clear();
  batch.Append(example);
  EXPECT_THAT(batch.labels, ElementsAre(2, 2, -100));
}

TEST(PackingTest, AccumulationIsNormalisedOnceOverTheWholeWindow) {
  const std::vector<Example> examples = RandomDocuments(103, 40);
  BatchPlan plan(&examples, {.row_tokens = 40, .pack = true, .batch_size = 3, .accumulation_steps = 4});
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    int64_t epoch_targets = 0;
    for (int64_t update = 0; update < plan.UpdatesPerEpoch(); ++update) {
      int64_t counted = 0, labels = 0;
      MicroBatch batch;
      for (int64_t i = 0; i < plan.MicroBatches(update); ++i) {
        plan.Fill(epoch, update, i, &batch);
        counted += batch.targets;
        labels += std::count_if(batch.labels.begin(), batch.labels.end(), [](int32_t l) { return l != kIgnoredLabel; });
        EXPECT_LE(static_cast<int64_t>(batch.ids.size()), plan.MostTokens());
      }
      EXPECT_EQ(plan.Targets(epoch, update), labels);
      EXPECT_EQ(counted, labels);
      epoch_targets += labels;
    }
    int64_t expected = 0;
    for (const Example& example : examples) expected += CountTargets(example);
    EXPECT_EQ(epoch_targets, expected);
  }
}

TEST(PackingTest, UpdatesPerEpochRoundUpAndTheLastWindowIsShort) {
  const std::vector<Example> examples = Documents(std::vector<size_t>(11, 4));
  BatchPlan plan(&examples, {.row_tokens = 8, .pack = false, .batch_size = 2, .accumulation_steps = 4});
  EXPECT_EQ(plan.rows(), 11);
  EXPECT_EQ(plan.UpdatesPerEpoch(), 2);  // 6 micro-batches
  EXPECT_EQ(plan.MicroBatches(0), 4);
  EXPECT_EQ(plan.MicroBatches(1), 2);
  MicroBatch batch;
  plan.Fill(0, 1, 1, &batch);
  EXPECT_EQ(batch.doc_offsets.size(), 2u);  // the last row alone
  EXPECT_EQ(plan.LongestDocument(), 4);
}

std::vector<int64_t> LinesOf(BatchPlan* plan, int64_t epoch, int64_t first_update) {
  std::vector<int64_t> lines;
  MicroBatch batch;
  for (int64_t update = first_update; update < plan->UpdatesPerEpoch(); ++update) {
    for (int64_t i = 0; i < plan->MicroBatches(update); ++i) {
      plan->Fill(epoch, update, i, &batch);
      lines.insert(lines.end(), batch.lines.begin(), batch.lines.end());
    }
  }
  return lines;
}

TEST(PackingTest, AResumeGoesOnInTheDataOrder) {
  const std::vector<Example> examples = Documents(std::vector<size_t>(23, 4));
  const BatchOptions options = {.row_tokens = 4, .pack = false, .batch_size = 2, .accumulation_steps = 2};
  BatchPlan running(&examples, options);
  const auto epoch0 = LinesOf(&running, 0, 0), epoch1 = LinesOf(&running, 1, 0);
  BatchPlan resumed(&examples, options);  // a new process, in the middle of the second epoch
  const auto rest = LinesOf(&resumed, 1, 3);
  EXPECT_EQ(rest, std::vector<int64_t>(epoch1.begin() + 12, epoch1.end()));
  EXPECT_NE(epoch0, epoch1);
  EXPECT_EQ(LinesOf(&resumed, 0, 0), epoch0);
}

TEST(PackingTest, AnEpochsOrderIsTheSharedShuffle) {
  const std::vector<Example> examples = Documents(std::vector<size_t>(10, 4));
  BatchPlan plan(&examples, {.row_tokens = 4, .pack = false, .batch_size = 1, .accumulation_steps = 1, .seed = 42});
  EXPECT_THAT(LinesOf(&plan, 0, 0), ElementsAre(3, 7, 2, 9, 5, 6, 1, 10, 4, 8));
  BatchPlan in_order(&examples, {.row_tokens = 4, .pack = false, .shuffle = false});
  EXPECT_THAT(LinesOf(&in_order, 5, 0), ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10));
}

TEST(PackingTest, AReusedBatchCarriesNothingFromTheLastStep) {
  const std::vector<Example> examples = Documents({9, 2, 2});
  BatchPlan plan(&examples, {.row_tokens = 9, .pack = false, .batch_size = 1, .shuffle = false});
  MicroBatch reused, fresh;
  plan.Fill(0, 0, 0, &reused);
  plan.Fill(0, 1, 0, &reused);
  plan.Fill(0, 1, 0, &fresh);
  EXPECT_EQ(reused.ids, fresh.ids);
  EXPECT_EQ(reused.labels, fresh.labels);
  EXPECT_EQ(reused.positions, fresh.positions);
  EXPECT_EQ(reused.doc_offsets, fresh.doc_offsets);
  EXPECT_EQ(reused.targets, fresh.targets);
}

TEST(PackingTest, ManyExamplesPackFast) {
  const std::vector<Example> examples = RandomDocuments(200'000, 24);
  EXPECT_GT(PackRows(examples, 64, true).size(), 10'000u);
}

}  // namespace
}  // namespace longhaul::data
