// Documents of one micro-batch never see each other, and one without targets adds nothing: why the cut into
// micro-batches changes no gradient (tests/worker/trainer/batches_test.cc has the batches that the packer makes).
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
