// Batch 8 x accumulation 1 = 1 x 8 = packed: the same gradient, because the loss is divided once by the targets of the
// whole window, documents never see each other, and positions restart.
#include <gtest/gtest.h>

#include "tests/worker/train/rig.h"

namespace longhaul::train {
namespace {

const std::vector<int64_t> kLengths = {5, 9, 2, 7, 12, 1, 3, 8};

TinyBatch OneDocument(size_t index) { return TinyBatch({kLengths[index]}, 67, 100 + index); }

TinyBatch Together(const std::vector<size_t>& indices) {
  TinyBatch all({});
  for (size_t index : indices) {
    const TinyBatch one = OneDocument(index);
    all.ids.insert(all.ids.end(), one.ids.begin(), one.ids.end());
    all.labels.insert(all.labels.end(), one.labels.begin(), one.labels.end());
    all.positions.insert(all.positions.end(), one.positions.begin(), one.positions.end());
    all.doc_offsets.push_back(static_cast<int64_t>(all.ids.size()));
  }
  return all;
}

struct Window8 {
  double loss;
  std::vector<double> gradient;
};

Window8 RunWindow(const std::vector<TinyBatch>& batches, int64_t tokens) {
  Rig rig(TinyPlan(TinyShape(), TinyTrain(ComputeType::kF64, 1, tokens), {1, 6, 5}));
  int64_t targets = 0;
  for (const TinyBatch& b : batches) targets += b.targets();
  Window8 window{0, {}};
  for (const TinyBatch& b : batches) window.loss += rig.Step(b.view(), 1.0 / static_cast<double>(targets));
  window.loss /= static_cast<double>(targets);
  window.gradient = Values(rig.adapter->grad());
  return window;
}

TEST(BatchEquivalence, BatchOf8IsAccumulationOf8IsPacked) {
  std::vector<TinyBatch> singles;
  for (size_t i = 0; i < kLengths.size(); ++i) singles.push_back(OneDocument(i));
  const Window8 accumulated = RunWindow(singles, 12);
  const Window8 batch = RunWindow({Together({0, 1, 2, 3, 4, 5, 6, 7})}, 47);
  const Window8 packed = RunWindow({Together({4, 0, 2}), Together({1, 7, 5}), Together({3, 6})}, 20);
  for (const Window8& other : {accumulated, packed}) {
    EXPECT_NEAR(other.loss, batch.loss, 1e-12 * batch.loss);
    EXPECT_LT(RelativeError(other.gradient, batch.gradient), 1e-12);
  }
}

TEST(BatchEquivalence, DocumentsNeverSeeEachOther) {
  Rig rig(TinyPlan(TinyShape(), TinyTrain(ComputeType::kF64, 1, 47), {}));
  const double alone = rig.Loss(OneDocument(4).view());
  const TinyBatch after = Together({1, 4});
  TinyBatch only_second = after;
  for (size_t i = 0; i < 9; ++i) only_second.labels[i] = -100;
  EXPECT_NEAR(rig.Loss(only_second.view()), alone, 1e-12 * alone);
}

TEST(BatchEquivalence, MicroBatchWithoutTargetsAddsNothing) {
  Rig rig(TinyPlan(TinyShape(), TinyTrain(ComputeType::kF64, 1, 12), {}));
  EXPECT_EQ(rig.Step(TinyBatch({12}, 67, 3, /*trained=*/false).view(), 0.1), 0);
  for (double g : Values(rig.adapter->grad())) ASSERT_EQ(g, 0);
}

}  // namespace
}  // namespace longhaul::train
