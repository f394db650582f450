// The engine on CUDA against the engine on the CPU: loss and every LoRA gradient of a step, over the plan's choices.
// Tolerances: cuda_step.h.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <stdexcept>

#include "base/env.h"
#include "base/error.h"
#include "base/units.h"
#include "model/cuda_layout.h"
#include "tests/worker/train/cuda_step.h"
#include "worker/train/cuda_ops.h"
#include "worker/train/optimizer.h"
#include "worker/train/trainer.h"

namespace longhaul::train {
namespace {

TEST(CudaEngine, StepIsTheCpusForLlamaAndQwen3) {
  for (bool qwen3 : {false, true}) {
    SCOPED_TRACE(qwen3 ? "qwen3" : "llama");
    CompareStep(CudaPlan(CudaTinyShape(qwen3), CudaTinyTrain(2, 128)), {128, 128});
  }
}

TEST(CudaEngine, StepIsTheCpusForPackedDocumentsOfAnyLength) {
  CompareStep(CudaPlan(CudaTinyShape(true), CudaTinyTrain(2, 128)), {100, 57, 3, 60, 1});
  CompareStep(CudaPlan(CudaTinyShape(false, 128), CudaTinyTrain(1, 200)), {77, 123});
}

TEST(CudaEngine, StepIsTheCpusForEveryChoiceOfThePlan) {
  for (const CudaTweaks& tweaks : {CudaTweaks{0, 0, 0, 0},
                                   {1, 1, 0, 0},
                                   {2, 0, 0, 0},
                                   {0, 2, 0, 0},
                                   {0, 1, 128, 128},
                                   {1, 0, 100, 128},
                                   {0, 0, 0, 0, 2, false},
                                   {0, 1, 128, 0, 1, true, 2}}) {
    SCOPED_TRACE("keep " + std::to_string(tweaks.keep_all_layers) + " cached " + std::to_string(tweaks.cached_layers) +
                 " tile " + std::to_string(tweaks.token_tile_rows));
    CompareStep(CudaPlan(CudaTinyShape(true), CudaTinyTrain(2, 128), tweaks), {128, 128});
  }
}

TEST(CudaEngine, StepIsTheCpusForAnyRankAndTargets) {
  for (int64_t rank : {1, 3, 16}) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    CompareStep(CudaPlan(CudaTinyShape(), CudaTinyTrain(1, 128, rank)), {128});
  }
  for (uint32_t targets : {0b0000101u, 0b1000000u, 0b0100010u, 0b0001000u}) {
    SCOPED_TRACE("targets " + std::to_string(targets));
    TrainShape train = CudaTinyTrain(1, 128);
    train.lora_targets = targets;
    CompareStep(CudaPlan(CudaTinyShape(), train, {1, 1, 0, 0}), {128});
  }
}

TEST(CudaEngine, StepIsTheCpusForABaseInBf16) {
  TrainShape train = CudaTinyTrain(1, 128);
  train.base = BaseWeights::kAsStored;
  CompareStep(CudaPlan(CudaTinyShape(), train), {128});
}

TEST(CudaEngine, RecomputeAndCachedWeightsChangeNoBitWhenDeterministic) {
  TrainShape train = CudaTinyTrain(2, 128);
  train.deterministic = true;
  for (const std::vector<int64_t>& documents : {std::vector<int64_t>{128, 128}, {100, 57, 3, 60}}) {
    const Output kept = Step(CudaPlan(CudaTinyShape(true), train, {2, 2, 0, 0}), documents);
    for (const CudaTweaks& tweaks :
         {CudaTweaks{0, 2, 0, 0}, {2, 0, 0, 0}, {1, 1, 0, 0}, {2, 2, 0, 0}, {0, 0, 0, 0, 2}, {0, 0, 0, 0, 1, true}}) {
      const Output other = Step(CudaPlan(CudaTinyShape(true), train, tweaks), documents);
      EXPECT_EQ(other.nats, kept.nats);
      EXPECT_EQ(other.gradient, kept.gradient) << tweaks.keep_all_layers << tweaks.cached_layers;
    }
  }
}

// cuDNN's own deterministic kernels, a document at a time; all heads at once, in calls, and in groups.
TEST(CudaEngine, DeterministicStepIsTheCpusForPackedDocuments) {
  TrainShape train = CudaTinyTrain(2, 128);
  train.deterministic = true;
  for (const CudaTweaks& tweaks :
       {CudaTweaks{0, 1, 0, 0}, {1, 1, 0, 0, 0, false, 2}, {0, 1, 64, 0, 1, false, 2, true}}) {
    const MemoryPlan plan = CudaPlan(CudaTinyShape(true), train, tweaks);
    if (ComputeCapabilityOf(plan.choices.isa) / 10 == 9) {
      EXPECT_EQ(plan.choices.packed_attention, PackedAttention::kEach);
    }
    Rig rig(plan, Bf16Source(plan.shape), 0.7);
    EXPECT_EQ(rig.ops->Describe().find("reference kernels") == std::string::npos, PlanWarnings(plan).empty())
        << rig.ops->Describe();
    for (const std::vector<int64_t>& documents : {std::vector<int64_t>{100, 57, 3, 60, 1}, {128, 100}, {77}}) {
      SCOPED_TRACE(std::to_string(documents.size()) + " documents, calls " + std::to_string(tweaks.attention_calls));
      CompareStep(plan, documents);
    }
  }
}

// By our own kernels, as the plan says.
TEST(CudaEngine, StepIsTheCpusByReferenceAttention) {
  const ModelShape shape = CudaTinyShape(false, 256);
  const MemoryPlan plan = CudaPlan(shape, CudaTinyTrain(1, 200));
  EXPECT_EQ(plan.choices.packed_attention, PackedAttention::kReference);
  CompareStep(plan, {77, 123});
}

// A plan that counts on kernels that the library does not have is refused before the first step, never run hundreds of
// times slower.
TEST(CudaEngine, AttentionOtherThanPlannedIsRefused) {
  MemoryPlan plan = CudaPlan(CudaTinyShape(false, 256), CudaTinyTrain(1, 200));
  plan.choices.packed_attention = PackedAttention::kTogether;
  LayOutPlan(&plan);
  FixedBatches batches({TinyBatch({77, 123}, plan.shape.vocab)}, 1);
  TrainerObserver observer;
  RunToEnd control;
  const RealClock clock;
  TrainerOptions options;
  options.plan = plan;
  options.hyper.max_steps = 1;
  const auto trainer = Trainer::Create(options, Bf16Source(plan.shape), &batches, nullptr, &observer, &control, &clock);
  EXPECT_EQ(ErrorReason(trainer.status()), "PLAN_MISMATCH") << trainer.status();
  EXPECT_NE(trainer.status().message().find("counts on attention by cuDNN"), std::string::npos) << trainer.status();
}

TEST(CudaEngine, CheckpointsOnTheHostChangeNoBitWhenDeterministic) {
  TrainShape train = CudaTinyTrain(2, 128);
  train.deterministic = true;
  ModelShape shape = CudaTinyShape(true);
  shape.layers = 7;  // more than there are slots
  const Output here = Step(CudaPlan(shape, train, {0, 7, 0, 0}), {128, 128});
  for (const CudaTweaks& tweaks : {CudaTweaks{0, 7, 0, 0, 0, true}, {3, 2, 0, 0, 2, true}}) {
    const Output away = Step(CudaPlan(shape, train, tweaks), {128, 128});
    EXPECT_EQ(away.nats, here.nats);
    EXPECT_EQ(away.gradient, here.gradient);
  }
}

TEST(CudaEngine, CheckpointsOnTheHostWaitForTheirCopies) {
  TrainShape train = CudaTinyTrain(2, 128);
  train.deterministic = true;
  ModelShape shape = CudaTinyShape(true);
  shape.layers = 7;
  const Output here = StepWithLateCopies(CudaPlan(shape, train, {0, 7, 0, 0}), {128, 128});
  for (const CudaTweaks& tweaks : {CudaTweaks{0, 7, 0, 0, 0, true}, {3, 2, 0, 0, 2, true}}) {
    const Output away = StepWithLateCopies(CudaPlan(shape, train, tweaks), {128, 128});
    EXPECT_EQ(away.nats, here.nats);
    EXPECT_EQ(away.gradient, here.gradient);
  }
}

TEST(CudaEngine, ACaptureThatThrowsLeavesTheStreamAsItWas) {
  TrainShape train = CudaTinyTrain(1, 128);
  train.deterministic = true;
  const MemoryPlan plan = CudaPlan(CudaTinyShape(), train);
  Rig rig(plan, Bf16Source(plan.shape), 0.7);
  FillAdapter(&rig);
  const TinyBatch batch({128}, plan.shape.vocab);
  const double nats = rig.Step(batch.view(), 0.01);
  kernels::CudaEngine& engine = static_cast<CudaOps&>(*rig.ops).engine();
  const auto throws = [&] {
    engine.PlaceAdapters();
    throw std::runtime_error("in the middle");
  };
  EXPECT_THROW(engine.Capture(throws, 100), std::runtime_error);
  EXPECT_EQ(rig.Step(batch.view(), 0.01), nats);
  engine.Capture([&] { engine.PlaceAdapters(); }, 100).graph->Launch();
  EXPECT_EQ(rig.Step(batch.view(), 0.01), nats);
}

TEST(CudaEngine, AttentionInPartsOfTheHeadsIsTheCpus) {
  CompareStep(CudaPlan(CudaTinyShape(true), CudaTinyTrain(2, 128), {1, 1, 0, 0, 0, false, 2}), {128, 128});
  CompareStep(CudaPlan(CudaTinyShape(), CudaTinyTrain(2, 128), {0, 1, 0, 0, 1, false, 2}), {100, 57, 3, 60});
}

TEST(CudaEngine, MadeUpWeightsAreTheCpus) {
  const MemoryPlan plan = CudaPlan(CudaTinyShape(), CudaTinyTrain(1, 128));
  Rig cuda(plan, SyntheticWeightSource(plan.shape, 3), 0.7),
      cpu(CpuTwin(plan), SyntheticWeightSource(plan.shape, 3), 0.7);
  FillAdapter(&cuda);
  FillAdapter(&cpu);
  const TinyBatch batch({128}, plan.shape.vocab);
  const double loss = cpu.Loss(batch.view());
  EXPECT_NEAR(cuda.Loss(batch.view()), loss, kLossError * loss);
}

TEST(CudaEngine, GradientsAddUpOverMicroBatches) {
  const MemoryPlan plan = CudaPlan(CudaTinyShape(), CudaTinyTrain(1, 128));
  const auto both = [&](const MemoryPlan& p) {
    Rig rig(p, Bf16Source(p.shape), 0.7);
    FillAdapter(&rig);
    Output out;
    for (uint64_t seed : {5, 6}) out.nats += rig.Step(TinyBatch({128}, p.shape.vocab, seed).view(), 0.01);
    out.gradient = Downloaded(rig, rig.adapter->grad());
    return out;
  };
  ExpectClose(plan, both(plan), both(CpuTwin(plan)));
}

TEST(CudaEngine, UpdateIsTheCpusAndNotFiniteOnesAreSkipped) {
  const MemoryPlan plan = CudaPlan(CudaTinyShape(), CudaTinyTrain(1, 128));
  Rig cuda(plan, Bf16Source(plan.shape), 0.7), cpu(CpuTwin(plan), Bf16Source(plan.shape), 0.7);
  const TinyBatch batch({128}, plan.shape.vocab);
  std::vector<std::vector<double>> masters;
  std::vector<double> norms;
  for (Rig* rig : {&cuda, &cpu}) {
    FillAdapter(rig);
    for (const kernels::Tensor* t : {&rig->adapter->moment1(), &rig->adapter->moment2()}) kernels::Zero(*rig->exec, *t);
    rig->Step(batch.view(), 0.01);
    const UpdateResult result = UpdateAdapter(*rig->memory, *rig->adapter, Hyper{}, 1e-3, 1, true);
    EXPECT_FALSE(result.skipped);
    norms.push_back(result.grad_norm);
    masters.push_back(Downloaded(*rig, rig->adapter->master()));
  }
  EXPECT_NEAR(norms[0], norms[1], kGradientError * norms[1]);
  // The first step of AdamW moves every element by the learning rate, whatever its gradient.
  EXPECT_LT(RelativeError(masters[0], masters[1]), 0.02);

  cuda.adapter->Download();
  SetElement(cuda.adapter->host().master, cuda.adapter->modules()[2].b_offset, NAN);
  cuda.adapter->Upload();
  cuda.ops->AdapterChanged();
  EXPECT_FALSE(std::isfinite(cuda.Step(batch.view(), 0.01)));
  const std::vector<double> before = Downloaded(cuda, cuda.adapter->moment1());
  EXPECT_TRUE(UpdateAdapter(*cuda.memory, *cuda.adapter, Hyper{}, 1e-3, 2, true).skipped);
  EXPECT_EQ(Downloaded(cuda, cuda.adapter->moment1()), before);
  for (double g : Downloaded(cuda, cuda.adapter->grad())) ASSERT_EQ(g, 0);
}

class CudaTrainer : public testing::Test, public TrainerObserver {
 protected:
  CudaTrainer() {
    std::string pattern = testing::TempDir() + "cudatrainerXXXXXX";
    folder_ = mkdtemp(pattern.data());
    std::vector<TinyBatch> documents;
    for (uint64_t i = 0; i < 6; ++i)
      documents.emplace_back(std::vector<int64_t>{128 - 3 * (i % 2 ? 1 : 0)}, 520, 40 + i);
    batches_ = std::make_unique<FixedBatches>(std::move(documents), 2);
  }
  ~CudaTrainer() override { RemoveTree(folder_).IgnoreError(); }

  void OnProgress(const TrainProgress& progress) override {
    losses_.push_back(progress.loss);
    device_bytes_used_ = progress.device_bytes_used;
  }
  absl::Status OnCheckpoint(const CheckpointInfo& info) override {
    checkpoints_.push_back(info.folder);
    return absl::OkStatus();
  }

  // Masters at the end.
  std::vector<float> Run(const MemoryPlan& plan, const std::string& resume_from) {
    TrainerOptions options;
    options.plan = plan;
    options.hyper.max_steps = 6;
    options.hyper.learning_rate = 5e-3;
    options.hyper.checkpoint_every_steps = 3;
    options.checkpoint_root = folder_ + (resume_from.empty() ? "/first" : "/second");
    options.resume_from = resume_from;
    RunToEnd control;
    auto trainer =
        Trainer::Create(options, Bf16Source(plan.shape), batches_.get(), batches_.get(), this, &control, &clock_);
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    if (!trainer.ok()) return {};
    const auto outcome = (*trainer)->Run();
    EXPECT_TRUE(outcome.ok()) << outcome.status();
    const Adapter& adapter = (*trainer)->adapter();
    adapter.Download();
    const float* const master = adapter.host().master.as<float>();
    return {master, master + adapter.params()};
  }

  void ExpectSameResumed(const CudaTweaks& tweaks) {
    TrainShape train = CudaTinyTrain(1, 128);
    train.accumulation_steps = 2;
    train.deterministic = true;
    const MemoryPlan plan = CudaPlan(CudaTinyShape(), train, tweaks);
    const std::vector<float> whole = Run(plan, "");
    ASSERT_GE(checkpoints_.size(), 1u);
    const std::vector<float> resumed = Run(plan, checkpoints_.front());
    EXPECT_EQ(whole, resumed);
  }

  RealClock clock_;
  std::string folder_;
  std::unique_ptr<FixedBatches> batches_;
  std::vector<double> losses_;
  int64_t device_bytes_used_ = 0;
  std::vector<std::string> checkpoints_;
};

TEST_F(CudaTrainer, LearnsAsTheCpuDoes) {
  TrainShape train = CudaTinyTrain(1, 128);
  train.accumulation_steps = 2;
  const MemoryPlan plan = CudaPlan(CudaTinyShape(true), train);
  Run(plan, "");
  const std::vector<double> cuda = std::move(losses_);
  losses_.clear();
  Run(CpuTwin(plan), "");
  ASSERT_EQ(cuda.size(), 6u);
  ASSERT_EQ(losses_.size(), 6u);
  // The second epoch's windows are the first's.
  for (size_t i = 0; i < 3; ++i) EXPECT_LT(cuda[i + 3], cuda[i]);
  for (size_t i = 0; i < cuda.size(); ++i) EXPECT_NEAR(cuda[i], losses_[i], 0.01 * losses_[i]) << i;
}

// Others' memory, here that of another Exec, is not told of as the job's.
TEST_F(CudaTrainer, TellsOfItsOwnDeviceMemory) {
  const auto other = kernels::Exec::CreateCuda(0);
  ASSERT_TRUE(other.ok()) << other.status();
  const auto held = kernels::CreateDeviceArena(**other, 2 * kGiB, {{"x", 0, 2 * kGiB}});
  ASSERT_TRUE(held.ok()) << held.status();
  TrainShape train = CudaTinyTrain(1, 128);
  train.accumulation_steps = 2;
  const MemoryPlan plan = CudaPlan(CudaTinyShape(true), train);
  Run(plan, "");
  EXPECT_GE(device_bytes_used_, plan.device_arena_bytes);
  EXPECT_LE(device_bytes_used_, plan.device_bytes_total + 64 * kMiB);
}

TEST_F(CudaTrainer, ResumeIsBitIdenticalWhenDeterministic) { ExpectSameResumed({}); }

TEST_F(CudaTrainer, ResumeIsBitIdenticalWithHeadsInGroupsAndMomentsOnTheHost) {
  ExpectSameResumed({0, 1, 64, 0, 1, true, 2, true, true});
}

}  // namespace
}  // namespace longhaul::train
