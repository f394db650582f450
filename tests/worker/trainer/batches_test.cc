// Batch 8 x accumulation 1 = 1 x 8 = packed, as the packer makes them of a dataset: the same loss and gradient, because
// the loss is divided once by the targets of the whole window, documents never see each other, and positions restart.
#include "worker/trainer/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "tests/worker/train/rig.h"
#include "worker/data/packing.h"

namespace longhaul::trainer {
namespace {

// Eight examples of different lengths; in each some tokens are not trained on.
std::vector<data::Example> Examples() {
  const std::vector<int64_t> lengths = {5, 9, 2, 7, 12, 4, 3, 8};
  std::vector<data::Example> examples;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const train::TinyBatch random({lengths[i]}, 67, 100 + i);
    data::Example example;
    example.line = static_cast<int64_t>(i) + 1;
    for (size_t t = 0; t < random.ids.size(); ++t) {
      example.ids.push_back(random.ids[t]);
      example.train.push_back(t % 3 != 0);
    }
    examples.push_back(std::move(example));
  }
  return examples;
}

struct WindowResult {
  int64_t micro_batches = 0;
  int64_t documents = 0;
  int64_t most_documents = 0;  // of one micro-batch
  int64_t targets = 0;
  double loss = 0;
  std::vector<double> gradient;
};

// The one window of an epoch, as the trainer runs it.
WindowResult RunWindow(const std::vector<data::Example>& examples, bool pack, int64_t batch_size,
                       int64_t accumulation_steps) {
  data::BatchOptions options;
  options.row_tokens = 20;
  options.pack = pack;
  options.batch_size = batch_size;
  options.accumulation_steps = accumulation_steps;
  DatasetBatches batches(&examples, options, "the dataset");
  EXPECT_EQ(batches.UpdatesPerEpoch(), 1);
  train::Rig rig(
      train::TinyPlan(train::TinyShape(), train::TinyTrain(ComputeType::kF64, 1, batches.MostTokens()), {1, 6, 5}));
  const train::Window window = batches.GetWindow(0, 0);
  WindowResult result;
  result.micro_batches = window.micro_batches;
  result.targets = window.targets;
  for (int64_t i = 0; i < window.micro_batches; ++i) {
    const train::TokenBatch batch = batches.Get(i);
    result.documents += batch.docs;
    result.most_documents = std::max(result.most_documents, batch.docs);
    result.loss += rig.Step(batch, 1.0 / static_cast<double>(window.targets));
  }
  result.loss /= static_cast<double>(window.targets);
  result.gradient = train::Values(rig.adapter->grad());
  return result;
}

TEST(BatchesTest, BatchOf8IsAccumulationOf8IsPacked) {
  const std::vector<data::Example> examples = Examples();
  const WindowResult batch = RunWindow(examples, /*pack=*/false, 8, 1);
  const WindowResult accumulated = RunWindow(examples, /*pack=*/false, 1, 8);
  const WindowResult packed = RunWindow(examples, /*pack=*/true, 1, 8);
  EXPECT_EQ(batch.micro_batches, 1);
  EXPECT_EQ(accumulated.micro_batches, 8);
  // 50 tokens in rows of 20.
  EXPECT_EQ(packed.micro_batches, 3);
  EXPECT_GE(packed.most_documents, 3);
  int64_t targets = 0;
  for (const data::Example& example : examples) targets += data::CountTargets(example);
  for (const WindowResult* result : {&batch, &accumulated, &packed}) {
    EXPECT_EQ(result->documents, 8);
    EXPECT_EQ(result->targets, targets);
    // Double arithmetic in another order.
    EXPECT_NEAR(result->loss, batch.loss, 1e-12 * batch.loss);
    EXPECT_LT(train::RelativeError(result->gradient, batch.gradient), 1e-12);
  }
}

}  // namespace
}  // namespace longhaul::trainer
