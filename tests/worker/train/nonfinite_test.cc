#include "tests/worker/train/plant.h"

namespace longhaul::train {
namespace {

TEST(NonFinite, PlantedAnywhereTheUpdateIsSkippedCountedAndNamed) {
  const ModelShape shape = TinyShape(/*qwen3=*/true, /*tied=*/false);
  const MemoryPlan plan = TinyPlan(shape, TinyTrain(ComputeType::kF32, 1, 23), {1, 9, 8});
  ExpectPlantsSkippedCountedAndNamed(plan, SyntheticWeightSource(shape, 3), 10);
}

}  // namespace
}  // namespace longhaul::train
