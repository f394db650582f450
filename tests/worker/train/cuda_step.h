// A step of the engine on CUDA beside the same step on the CPU: losses and every LoRA gradient.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/failpoints.h"
#include "tests/worker/train/cuda_rig.h"
#include "worker/train/cuda_ops.h"

namespace longhaul::train {

struct Tolerance {
  double gradient = 0;  // of the norm of every module's gradient
  double loss = 0;      // of the loss
  // What follows from it for the cosine: 1 - e^2 / 2, and a fifth more.
  double least_cosine() const { return 1 - 0.625 * gradient * gradient; }
};

// Tolerances of bf16. An activation is rounded to bf16 (2^-9 of it at most, evenly spread) at about 12 places a layer
// on the way up and 16 on the way down, the adapter's operands at 4 more: for two layers and the loss some 70
// roundings, which add up like a random walk: sqrt(70) * 2^-9 / sqrt(3) = 0.9% of a gradient's norm; attention and the
// norms pass errors on amplified by about two. 4% of the norm is twice that again; a wrong scale, a missing term or a
// shifted row is far above. Then the cosine is at least 1 - 0.04^2 / 2 = 0.9992. Logits are rounded to bf16 before
// their sum, which is a mean over the targets: far below a single rounding.
inline constexpr Tolerance kBf16Tolerance{0.04, 2e-3};
inline constexpr double kGradientError = kBf16Tolerance.gradient;
inline constexpr double kLossError = kBf16Tolerance.loss;

inline constexpr uint64_t kDropoutKey = 4711;

struct Output {
  double nats = 0;
  std::vector<double> gradient;
};

// Masters as Rig(plan) makes them: B is random, too.
inline void FillAdapter(Rig* rig) {
  rig->adapter->Initialize(1);
  rig->adapter->Download();
  for (const kernels::Tensor* t : {&rig->adapter->host().moment1, &rig->adapter->host().moment2}) {
    std::fill_n(t->as<float>(), t->cols, 0.0f);
  }
  for (const LoraModule& m : rig->adapter->modules()) {
    for (int64_t i = 0; i < m.out * rig->adapter->rank(); ++i) {
      const double value = 0.2 * (CounterUniform(77, static_cast<uint64_t>(m.b_offset + i)) - 0.5);
      SetElement(rig->adapter->host().master, m.b_offset + i, value);
    }
  }
  rig->adapter->Upload();
  rig->ops->AdapterChanged();
}

// Of a micro-batch with LoRA dropout, where `dropout` is above 0.
inline Output Step(const MemoryPlan& plan, const WeightSource& source, const std::vector<int64_t>& documents,
                   double dropout = 0) {
  Rig rig(plan, source, 0.7);
  FillAdapter(&rig);
  if (dropout > 0) rig.ops->SetDropout(dropout, kDropoutKey);
  const TinyBatch batch(documents, plan.shape.vocab);
  Output out;
  out.nats = rig.Step(batch.view(), 1.0 / static_cast<double>(batch.targets()));
  out.gradient = Downloaded(rig, rig.adapter->grad());
  return out;
}

inline Output Step(const MemoryPlan& plan, const std::vector<int64_t>& documents, double dropout = 0) {
  return Step(plan, Bf16Source(plan.shape), documents, dropout);
}

// All modules alone and all together.
inline void ExpectClose(const MemoryPlan& plan, const Output& cuda, const Output& cpu,
                        const Tolerance& tolerance = kBf16Tolerance) {
  EXPECT_NEAR(cuda.nats, cpu.nats, tolerance.loss * cpu.nats);
  EXPECT_LT(RelativeError(cuda.gradient, cpu.gradient), tolerance.gradient);
  const Rig names(CpuTwin(plan));
  for (const LoraModule& m : names.adapter->modules()) {
    const std::pair<int64_t, int64_t> ranges[] = {{m.a_offset, m.in * names.adapter->rank()},
                                                  {m.b_offset, m.out * names.adapter->rank()}};
    for (const auto& [offset, count] : ranges) {
      const auto part = [o = offset, c = count](const std::vector<double>& all) {
        return std::vector<double>(all.begin() + o, all.begin() + o + c);
      };
      const std::vector<double> ours = part(cuda.gradient), theirs = part(cpu.gradient);
      EXPECT_GT(Cosine(ours, theirs), tolerance.least_cosine())
          << m.layer << " " << LoraTargetName(m.target) << (offset == m.a_offset ? " A" : " B");
      EXPECT_LT(RelativeError(ours, theirs), tolerance.gradient)
          << m.layer << " " << LoraTargetName(m.target) << (offset == m.a_offset ? " A" : " B");
    }
  }
}

// The second of two steps over different batches, copies beside the ops beginning late: what is read or written over
// too early is the first step's, or another layer's.
inline Output StepWithLateCopies(const MemoryPlan& plan, const std::vector<int64_t>& documents) {
  // Far longer than a step, and those out longer than those in: one that is not waited for has not even begun.
  ArmFailpoint("cuda_copy_out", "sleep:4");
  ArmFailpoint("cuda_copy_in", "sleep:2");
  Rig rig(plan, Bf16Source(plan.shape), 0.7);
  FillAdapter(&rig);
  for (uint64_t seed : {5, 6}) {
    kernels::Zero(*rig.exec, rig.adapter->grad());
    const TinyBatch batch(documents, plan.shape.vocab, seed);
    // As a trainer queues it: nobody waits in between.
    const TokenBatch brought = rig.ops->Bring(batch.view());
    rig.loss->BeginWindow(0, 1);
    rig.loss->Prepare(batch.view(), 0.01);
    EXPECT_TRUE(rig.decoder->Forward(brought, Rig::Go));
    rig.loss->Queue(rig.decoder->Stream(plan.shape.layers, brought.rows), rig.decoder->DStream(brought.rows));
    EXPECT_TRUE(rig.decoder->Backward(brought, Rig::Go));
    rig.loss->QueueNumbers(0, 0);
    rig.exec->Synchronize();
  }
  DisarmFailpoints();
  Output out;
  out.nats = rig.loss->NumbersOf(0, 0).loss.nats;
  out.gradient = Downloaded(rig, rig.adapter->grad());
  return out;
}

inline void CompareStep(const MemoryPlan& plan, const std::vector<int64_t>& documents) {
  ExpectClose(plan, Step(plan, documents), Step(CpuTwin(plan), documents));
}

}  // namespace longhaul::train
