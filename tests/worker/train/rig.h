// A tiny model with the engine around it, as the tests of the engine drive it.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/exec.h"
#include "kernels/ops.h"
#include "model/plan_layout.h"
#include "worker/train/adapter.h"
#include "worker/train/batch_source.h"
#include "worker/train/decoder.h"
#include "worker/train/loss.h"
#include "worker/train/memory.h"
#include "worker/train/weights.h"

namespace longhaul::train {

inline ModelShape TinyShape(bool qwen3 = false, bool tied = true) {
  ModelShape s;
  s.family = qwen3 ? "qwen3" : "llama";
  s.qk_norm = qwen3;
  s.layers = 2;
  s.hidden = 32;
  s.intermediate = 48;
  s.heads = 4;
  s.kv_heads = 2;
  s.head_dim = 10;  // q_dim is not hidden
  s.vocab = 67;
  s.max_position_embeddings = 128;
  s.tied_embeddings = tied;
  s.rope = {10000.0, RopeScaling::kLlama3, 4.0, 1.0, 4.0, 16};
  return s;
}

inline DeviceFacts ThisCpu(int threads = 2) {
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  DeviceFacts facts;
  facts.device_class = "cpu";
  facts.host_bytes = int64_t{8} << 30;
  facts.cpu_threads = threads;
  facts.isa = cpu.isa;
  facts.has_bf16 = cpu.has_bf16;
  return facts;
}

struct PlanTweaks {
  int64_t keep_all_layers = -1;  // -1: as planned
  int64_t token_tile_rows = 0;   // 0: as planned
  int64_t loss_tile_rows = 0;
};

inline MemoryPlan TinyPlan(const ModelShape& shape, TrainShape train, const PlanTweaks& tweaks = {}, int threads = 2) {
  auto plan = MakePlan(shape, train, ThisCpu(threads), {});
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (tweaks.keep_all_layers >= 0) plan->choices.keep_all_layers = tweaks.keep_all_layers;
  if (tweaks.token_tile_rows > 0) plan->choices.token_tile_rows = tweaks.token_tile_rows;
  if (tweaks.loss_tile_rows > 0) plan->choices.loss_tile_rows = tweaks.loss_tile_rows;
  LayOutPlan(&*plan);
  return *plan;
}

inline TrainShape TinyTrain(ComputeType compute, int64_t batch = 1, int64_t length = 32) {
  TrainShape train;
  train.compute = compute;
  train.base = BaseWeights::kAsStored;
  train.lora_rank = 3;
  train.batch_size = batch;
  train.sequence_length = length;
  return train;
}

// Documents of given lengths with random tokens; every third target is not trained.
struct TinyBatch {
  std::vector<int32_t> ids, labels, positions;
  std::vector<int64_t> doc_offsets{0};

  explicit TinyBatch(const std::vector<int64_t>& lengths, int64_t vocab = 67, uint64_t seed = 5, bool trained = true) {
    for (int64_t length : lengths) {
      const size_t begin = ids.size();
      for (int64_t i = 0; i < length; ++i) {
        ids.push_back(static_cast<int32_t>(CounterBits(seed, ids.size() + 1) % static_cast<uint64_t>(vocab)));
        positions.push_back(static_cast<int32_t>(i));
      }
      for (int64_t i = 0; i < length; ++i) {
        const bool last = i + 1 == length;
        const bool masked = CounterBits(seed + 9, begin + static_cast<size_t>(i)) % 3 == 0;
        labels.push_back(last || masked || !trained ? -100 : ids[begin + static_cast<size_t>(i) + 1]);
      }
      doc_offsets.push_back(static_cast<int64_t>(ids.size()));
    }
  }

  TokenBatch view() const {
    TokenBatch batch;
    batch.rows = static_cast<int64_t>(ids.size());
    batch.ids = ids.data();
    batch.labels = labels.data();
    batch.positions = positions.data();
    batch.doc_offsets = doc_offsets.data();
    batch.docs = static_cast<int64_t>(doc_offsets.size()) - 1;
    return batch;
  }
  int64_t targets() const {
    int64_t count = 0;
    for (int32_t label : labels) count += label != -100;
    return count;
  }
};

// Fixed micro-batches, every epoch alike.
class FixedBatches final : public BatchSource {
 public:
  FixedBatches(std::vector<TinyBatch> batches, int64_t accumulation)
      : batches_(std::move(batches)), accumulation_(accumulation) {}
  int64_t UpdatesPerEpoch() const override {
    return (static_cast<int64_t>(batches_.size()) + accumulation_ - 1) / accumulation_;
  }
  Window GetWindow(int64_t, int64_t update) override {
    first_ = update * accumulation_;
    Window window;
    window.micro_batches = std::min(accumulation_, static_cast<int64_t>(batches_.size()) - first_);
    for (int64_t i = 0; i < window.micro_batches; ++i)
      window.targets += batches_[static_cast<size_t>(first_ + i)].targets();
    return window;
  }
  TokenBatch Get(int64_t index) override {
    last_ = first_ + index;
    return batches_[static_cast<size_t>(last_)].view();
  }
  std::string Describe() const override { return "sample " + std::to_string(last_); }
  int64_t MostTokens() const override {
    int64_t most = 0;
    for (const TinyBatch& b : batches_) most = std::max(most, static_cast<int64_t>(b.ids.size()));
    return most;
  }
  int64_t MostDocuments() const override {
    int64_t most = 0;
    for (const TinyBatch& b : batches_) most = std::max(most, static_cast<int64_t>(b.doc_offsets.size()) - 1);
    return most;
  }
  int64_t LongestDocument() const override {
    int64_t most = 0;
    for (const TinyBatch& b : batches_) {
      for (size_t d = 1; d < b.doc_offsets.size(); ++d) most = std::max(most, b.doc_offsets[d] - b.doc_offsets[d - 1]);
    }
    return most;
  }

 private:
  std::vector<TinyBatch> batches_;
  int64_t accumulation_;
  int64_t first_ = 0;
  int64_t last_ = 0;
};

inline double Element(const kernels::Tensor& t, int64_t i) {
  return t.dtype == kernels::DType::kF64 ? t.as<double>()[i] : static_cast<double>(t.as<float>()[i]);
}
inline void SetElement(const kernels::Tensor& t, int64_t i, double value) {
  if (t.dtype == kernels::DType::kF64) {
    t.as<double>()[i] = value;
  } else {
    t.as<float>()[i] = static_cast<float>(value);
  }
}
inline std::vector<double> Values(const kernels::Tensor& t) {
  std::vector<double> values(static_cast<size_t>(t.rows * t.cols));
  for (size_t i = 0; i < values.size(); ++i) values[i] = Element(t, static_cast<int64_t>(i));
  return values;
}

inline double RelativeError(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0;
  double norm = 0;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

// Engine parts around a plan, synthetic weights, an adapter whose B is random too: with PEFT's B = 0 every dA is zero
// and a gradient test passes on nothing.
struct Rig {
  std::unique_ptr<kernels::Exec> exec;
  std::unique_ptr<EngineMemory> memory;
  ModelWeights weights;
  std::unique_ptr<Adapter> adapter;
  std::unique_ptr<EngineOps> ops;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<CutCrossEntropy> loss;

  explicit Rig(const MemoryPlan& plan, double scale = 0.7) : Rig(plan, SyntheticWeightSource(plan.shape, 3), scale) {
    adapter->Initialize(1);
    for (const LoraModule& m : adapter->modules()) {
      for (int64_t i = 0; i < m.out * adapter->rank(); ++i) {
        // f32 values, so that the f64 and f32 runs share them.
        const double value = 0.4 * (CounterUniform(77, static_cast<uint64_t>(m.b_offset + i)) - 0.5);
        SetElement(adapter->host().master, m.b_offset + i, static_cast<double>(static_cast<float>(value)));
      }
    }
    adapter->Upload();
    ops->AdapterChanged();
  }

  // Weights from `source`; the adapter's masters are for the caller to set.
  Rig(const MemoryPlan& plan, const WeightSource& source, double scale) {
    auto exec_or = CreateExec(plan, false);
    EXPECT_TRUE(exec_or.ok()) << exec_or.status();
    exec = std::move(*exec_or);
    auto memory_or = EngineMemory::Create(plan, *exec);
    EXPECT_TRUE(memory_or.ok()) << memory_or.status();
    memory = std::move(*memory_or);
    weights = CarveWeights(*memory);
    const absl::Status loaded = LoadWeights(source, *memory, *exec, weights);
    EXPECT_TRUE(loaded.ok()) << loaded;
    adapter = std::make_unique<Adapter>(*memory);
    kernels::Zero(*exec, adapter->grad());
    auto ops_or = CreateOps(*memory, *exec, weights, *adapter, scale);
    EXPECT_TRUE(ops_or.ok()) << ops_or.status();
    ops = std::move(*ops_or);
    decoder = std::make_unique<Decoder>(*memory, *exec, ops.get(), weights, *adapter);
    loss = std::make_unique<CutCrossEntropy>(*memory, *exec, ops.get(), weights);
  }

  static bool Go() { return true; }

  double Loss(const TokenBatch& batch) {
    const TokenBatch brought = ops->Bring(batch);
    EXPECT_TRUE(decoder->Forward(brought, Go));
    return loss->Run(batch, decoder->Stream(memory->plan().shape.layers, brought.rows), 0, {}).nats;
  }

  // Adds grad_scale * d nats to the adapter's gradient; returns nats.
  double Step(const TokenBatch& batch, double grad_scale) {
    const TokenBatch brought = ops->Bring(batch);
    EXPECT_TRUE(decoder->Forward(brought, Go));
    const int64_t layers = memory->plan().shape.layers;
    const LossSum sum =
        loss->Run(batch, decoder->Stream(layers, brought.rows), grad_scale, decoder->DStream(brought.rows));
    EXPECT_TRUE(decoder->Backward(brought, Go));
    return sum.nats;
  }
};

}  // namespace longhaul::train
