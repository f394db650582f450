// Attention a group of heads at a time (the plan's grouped_attention) on CUDA: the CPU's gradients, the same bits
// wherever things wait, nothing read that the plan lets others write over. Tolerances: cuda_step.h; the products are
// cut by heads here, which adds no rounding: dq, dk and dv meet in one product over all of them. Where calls cut a
// group, its dk and dv are sums of calls', rounded once more for each.
#include <gtest/gtest.h>

#include "tests/worker/train/cuda_step.h"
#include "worker/train/optimizer.h"

namespace longhaul::train {
namespace {

// Layers keep `keep` attentions; tiles of `tile` rows, 0: one for all.
CudaTweaks Grouped(int64_t calls, int64_t keep, int64_t tile, bool host, bool host_attention, int64_t cached = 0) {
  return {0, cached, tile, 0, keep, host, calls, true, host_attention};
}

TEST(CudaGroups, StepIsTheCpusForEveryPlaceThatThingsWaitIn) {
  for (bool qwen3 : {false, true}) {
    for (const CudaTweaks& tweaks :
         {Grouped(2, 0, 0, false, false), Grouped(1, 0, 100, false, false), Grouped(2, 0, 128, true, false),
          Grouped(2, 2, 64, false, false), Grouped(2, 1, 128, true, true), Grouped(2, 2, 100, true, true, 1),
          Grouped(1, 2, 0, false, true, 2), Grouped(4, 1, 100, true, true)}) {
      SCOPED_TRACE((qwen3 ? "qwen3 calls " : "llama calls ") + std::to_string(tweaks.attention_calls) + " keep " +
                   std::to_string(tweaks.keep_attention_layers) + " tile " + std::to_string(tweaks.token_tile_rows) +
                   " host " + std::to_string(tweaks.host) + std::to_string(tweaks.host_attention));
      CompareStep(CudaPlan(CudaTinyShape(qwen3), CudaTinyTrain(2, 128), tweaks), {128, 128});
    }
  }
}

TEST(CudaGroups, StepIsTheCpusForPackedDocuments) {
  for (bool host : {false, true}) {
    CompareStep(CudaPlan(CudaTinyShape(true), CudaTinyTrain(2, 128), Grouped(host ? 4 : 2, 1, 100, host, host)),
                {100, 57, 3, 60, 1});
    CompareStep(CudaPlan(CudaTinyShape(false, 128), CudaTinyTrain(1, 200), Grouped(2, 2, 64, host, host)), {77, 123});
  }
}

TEST(CudaGroups, StepIsTheCpusForAnyRankTargetsAndBase) {
  for (int64_t rank : {1, 16}) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    CompareStep(CudaPlan(CudaTinyShape(), CudaTinyTrain(1, 128, rank), Grouped(2, 1, 64, true, true)), {128});
  }
  for (uint32_t targets : {0b0000101u, 0b1000000u, 0b0100010u, 0b0001000u}) {
    SCOPED_TRACE("targets " + std::to_string(targets));
    TrainShape train = CudaTinyTrain(1, 128);
    train.lora_targets = targets;
    CompareStep(CudaPlan(CudaTinyShape(), train, Grouped(2, 1, 64, true, true, 1)), {128});
  }
  TrainShape stored = CudaTinyTrain(1, 128);
  stored.base = BaseWeights::kAsStored;
  CompareStep(CudaPlan(CudaTinyShape(), stored, Grouped(2, 0, 64, true, false, 2)), {128});
}

TEST(CudaGroups, WhereThingsWaitChangesNoBitWhenDeterministic) {
  TrainShape train = CudaTinyTrain(2, 128);
  train.deterministic = true;
  ModelShape shape = CudaTinyShape(true);
  shape.layers = 5;
  for (const std::vector<int64_t>& documents : {std::vector<int64_t>{128, 128}, {100, 57, 3, 60}}) {
    const Output here = Step(CudaPlan(shape, train, Grouped(2, 5, 128, false, false)), documents);
    for (const CudaTweaks& tweaks :
         {Grouped(2, 5, 128, false, false), Grouped(2, 0, 128, false, false), Grouped(2, 3, 128, true, false),
          Grouped(2, 5, 128, true, true), Grouped(2, 2, 128, true, true, 2)}) {
      const Output other = Step(CudaPlan(shape, train, tweaks), documents);
      EXPECT_EQ(other.nats, here.nats) << tweaks.keep_attention_layers << tweaks.host << tweaks.host_attention;
      EXPECT_EQ(other.gradient, here.gradient) << tweaks.keep_attention_layers << tweaks.host << tweaks.host_attention;
    }
  }
}

// Tiles of 128 rows, and all rows as one.
TEST(CudaGroups, WhatWaitsOnTheHostWaitsForItsCopies) {
  TrainShape train = CudaTinyTrain(2, 128);
  train.deterministic = true;
  ModelShape shape = CudaTinyShape(true);
  shape.layers = 5;
  for (int64_t tile : {128, 256}) {
    const Output here = StepWithLateCopies(CudaPlan(shape, train, Grouped(2, 5, tile, false, false)), {100, 57, 3, 60});
    for (const CudaTweaks& tweaks :
         {Grouped(2, 3, tile, true, false), Grouped(2, 5, tile, true, true), Grouped(2, 2, tile, true, true, 2)}) {
      SCOPED_TRACE(std::to_string(tile) + " " + std::to_string(tweaks.keep_attention_layers) +
                   std::to_string(tweaks.host) + std::to_string(tweaks.host_attention));
      const Output away = StepWithLateCopies(CudaPlan(shape, train, tweaks), {100, 57, 3, 60});
      EXPECT_EQ(away.nats, here.nats);
      EXPECT_EQ(away.gradient, here.gradient);
    }
  }
}

// What no phase of the update needs is full of NaN before a step: whatever the step reads, it wrote first. And the
// arenas are the plan's.
TEST(CudaGroups, AStepReadsOnlyWhatItWrote) {
  TrainShape train = CudaTinyTrain(2, 128);
  train.deterministic = true;
  for (bool qwen3 : {false, true}) {
    const MemoryPlan plan = CudaPlan(CudaTinyShape(qwen3), train, Grouped(2, 1, 64, true, true));
    Rig rig(plan, Bf16Source(plan.shape), 0.7);
    FillAdapter(&rig);
    const TinyBatch batch({128, 128}, plan.shape.vocab);
    const double nats = rig.Step(batch.view(), 0.01);
    const std::vector<double> gradient = Downloaded(rig, rig.adapter->grad());
    kernels::Zero(*rig.exec, rig.adapter->grad());
    rig.exec->Synchronize();
    for (const PlanRegion& region : plan.regions) {
      ASSERT_EQ(rig.memory->BytesOrZero(region.name), region.bytes) << region.name;
      if ((region.live & kPhaseUpdate) != 0) continue;
      const std::vector<uint8_t> poison(static_cast<size_t>(region.bytes), 0xff);
      void* const at = rig.memory->GetOrNull(region.name);
      if (region.space == PlanSpace::kDevice) {
        rig.exec->Upload(at, poison.data(), region.bytes);
      } else {
        std::copy(poison.begin(), poison.end(), static_cast<uint8_t*>(at));
      }
    }
    EXPECT_EQ(rig.Step(batch.view(), 0.01), nats);
    EXPECT_EQ(Downloaded(rig, rig.adapter->grad()), gradient);
  }
}

TEST(CudaGroups, MomentsInHostMemoryAreUpdatedAlike) {
  std::vector<std::vector<double>> masters;
  TrainShape train = CudaTinyTrain(1, 128);
  train.deterministic = true;
  for (bool host : {false, true}) {
    const MemoryPlan plan = CudaPlan(CudaTinyShape(), train, Grouped(2, 2, 64, host, host));
    Rig rig(plan, Bf16Source(plan.shape), 0.7);
    FillAdapter(&rig);
    for (const kernels::Tensor* t : {&rig.adapter->moment1(), &rig.adapter->moment2()}) kernels::Zero(*rig.exec, *t);
    for (int step = 1; step <= 3; ++step) {
      rig.Step(TinyBatch({128}, plan.shape.vocab).view(), 0.01);
      EXPECT_FALSE(UpdateAdapter(*rig.memory, *rig.adapter, Hyper{}, 1e-3, step, true).skipped);
      rig.ops->AdapterChanged();
    }
    rig.adapter->Download();
    EXPECT_NE(rig.adapter->host().moment1.as<float>()[7], 0);
    masters.push_back(Downloaded(rig, rig.adapter->master()));
  }
  EXPECT_EQ(masters[0], masters[1]);
}

}  // namespace
}  // namespace longhaul::train
