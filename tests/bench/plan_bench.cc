// What an estimate costs in the library: the plan's three points for a device, and the longest sequence that would fit.
#include <benchmark/benchmark.h>

#include "base/check.h"
#include "model/memory_plan.h"
#include "tests/model/shapes.h"

namespace longhaul {
namespace {

TrainShape Train(int64_t tokens) {
  TrainShape train;
  train.sequence_length = tokens;
  return train;
}

DeviceFacts LargeCpu() {
  DeviceFacts facts = SmallCpu();
  facts.host_bytes = int64_t{1} << 40;
  return facts;
}

void ThreePoints(benchmark::State& state, const ModelShape& shape, int64_t tokens) {
  const DeviceFacts facts = LargeCpu();
  for (auto _ : state) {
    for (PlanShare share : {PlanShare::kMinimum, PlanShare::kBalanced, PlanShare::kWhole}) {
      const auto plan = MakePlan(shape, Train(tokens), facts, {.share = share});
      LH_CHECK(plan.ok(), plan.status().ToString());
      benchmark::DoNotOptimize(plan->host_bytes_total);
    }
  }
}
BENCHMARK_CAPTURE(ThreePoints, smollm2_135m, SmolLm2Shape(), 2048)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(ThreePoints, llama_8b, Llama8bShape(), 65536)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(ThreePoints, llama_70b, Llama70bShape(), 65536)->Unit(benchmark::kMicrosecond);

void LongestSequence(benchmark::State& state, const ModelShape& shape) {
  for (auto _ : state) {
    benchmark::DoNotOptimize(LongestFittingSequence(shape, Train(2048), LargeCpu(), {}, shape.max_position_embeddings));
  }
}
BENCHMARK_CAPTURE(LongestSequence, llama_8b, Llama8bShape())->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(LongestSequence, llama_70b, Llama70bShape())->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace longhaul

BENCHMARK_MAIN();
