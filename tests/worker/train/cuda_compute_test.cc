// What the engine on CUDA computes in another way than in bf16 through one product: FP8, LoRA dropout, a base that is
// stored in NF4. Against the engine on the CPU, over the same weights.
//
// Tolerance of FP8. E4M3 has three bits behind the point: a value is rounded by 2^-4 of itself at most, by 2.5% in the
// root mean square. Both operands of a product are, so a product is off by 3.6% of its norm. A gradient of a model of
// two layers has come through up to 16 products, whose errors add up like a random walk, to 14%; norms and attention
// pass them on amplified by up to two. Loss: the last norm's output is off by half of that on the way up, of which the
// mean over targets keeps little.
#include <gtest/gtest.h>

#include <map>
#include <optional>

#include "base/half.h"
#include "base/nf4.h"
#include "model/cuda_layout.h"
#include "tests/worker/train/cuda_step.h"
#include "worker/train/trainer.h"

namespace longhaul::train {
namespace {

constexpr Tolerance kFp8Tolerance{0.3, 0.02};

TrainShape Fp8Train(int64_t batch, int64_t length, int64_t rank = 8) {
  TrainShape train = CudaTinyTrain(batch, length, rank);
  train.compute = ComputeType::kFP8;
  return train;
}

class CudaFp8 : public testing::Test {
 protected:
  void SetUp() override {
    if (ComputeCapability() < 90) GTEST_SKIP() << "FP8 needs compute capability 9.0";
  }
  static int ComputeCapability() { return ComputeCapabilityOf(ThisGpu().isa); }

  static void CompareStep(const MemoryPlan& plan, const std::vector<int64_t>& documents, double dropout = 0) {
    const Output cpu = Step(CpuTwin(plan), documents, dropout), cuda = Step(plan, documents, dropout);
    ExpectClose(plan, cuda, cpu, kFp8Tolerance);
    // It is FP8: no run in bf16 is that far away.
    EXPECT_GT(RelativeError(cuda.gradient, cpu.gradient), kBf16Tolerance.gradient / 2);
  }
};

TEST_F(CudaFp8, StepIsNearTheCpus) {
  for (bool qwen3 : {false, true}) {
    SCOPED_TRACE(qwen3 ? "qwen3" : "llama");
    CompareStep(CudaPlan(CudaTinyShape(qwen3), Fp8Train(2, 128)), {128, 128});
  }
  CompareStep(CudaPlan(CudaTinyShape(true), Fp8Train(2, 128)), {100, 57, 3, 60, 1});
}

TEST_F(CudaFp8, StepIsNearTheCpusForAnyRankTargetsAndBase) {
  CompareStep(CudaPlan(CudaTinyShape(), Fp8Train(1, 128, 3)), {128});
  for (uint32_t targets : {0b0000101u, 0b1000000u, 0b0101000u}) {
    SCOPED_TRACE("targets " + std::to_string(targets));
    TrainShape train = Fp8Train(1, 128);
    train.lora_targets = targets;
    CompareStep(CudaPlan(CudaTinyShape(), train, {1, 1, 0, 0}), {128});
  }
  TrainShape train = Fp8Train(1, 128);
  train.base = BaseWeights::kAsStored;
  CompareStep(CudaPlan(CudaTinyShape(), train), {128});
}

// Weights that are quantised for each use are those that lie quantised.
TEST_F(CudaFp8, RecomputeAndCachedWeightsChangeNoBitWhenDeterministic) {
  TrainShape train = Fp8Train(2, 128);
  train.deterministic = true;
  const Output kept = Step(CudaPlan(CudaTinyShape(true), train, {2, 2, 0, 0}), {128, 128});
  for (const CudaTweaks& tweaks :
       {CudaTweaks{0, 2, 0, 0}, {2, 0, 0, 0}, {1, 1, 0, 0}, {0, 0, 0, 0, 2}, {0, 0, 0, 0, 1, true}}) {
    const Output other = Step(CudaPlan(CudaTinyShape(true), train, tweaks), {128, 128});
    EXPECT_EQ(other.nats, kept.nats);
    EXPECT_EQ(other.gradient, kept.gradient) << tweaks.keep_all_layers << tweaks.cached_layers;
  }
}

TEST_F(CudaFp8, DropoutIsTheCpus) {
  TrainShape train = Fp8Train(2, 128);
  train.lora_dropout = true;
  CompareStep(CudaPlan(CudaTinyShape(true), train, {1, 1, 0, 0}), {128, 128}, 0.25);
}

// With masks of its own a gradient would be off by about its norm times sqrt(p / (1 - p)): 65% here.
TEST(CudaDropout, DropsTheElementsThatTheCpuDrops) {
  for (const CudaTweaks& tweaks : {CudaTweaks{2, 2, 0, 0}, {0, 0, 128, 0}, {1, 1, 0, 0}}) {
    SCOPED_TRACE("keep " + std::to_string(tweaks.keep_all_layers));
    TrainShape train = CudaTinyTrain(2, 128);
    train.lora_dropout = true;
    const MemoryPlan plan = CudaPlan(CudaTinyShape(true), train, tweaks);
    const Output cuda = Step(plan, {100, 128, 28}, 0.3), none = Step(plan, {100, 128, 28});
    ExpectClose(plan, cuda, Step(CpuTwin(plan), {100, 128, 28}, 0.3));
    EXPECT_GT(RelativeError(cuda.gradient, none.gradient), 4 * kBf16Tolerance.gradient);
  }
}

TEST(CudaDropout, OfAnyRankAndTargets) {
  for (const auto& [rank, targets] : {std::pair<int64_t, uint32_t>{3, kAllLoraTargets}, {16, 0b0100101u}}) {
    TrainShape train = CudaTinyTrain(1, 128, rank);
    train.lora_dropout = true;
    train.lora_targets = targets;
    const MemoryPlan plan = CudaPlan(CudaTinyShape(), train, {1, 1, 0, 0});
    ExpectClose(plan, Step(plan, {128}, 0.3), Step(CpuTwin(plan), {128}, 0.3));
  }
}

TEST(CudaDropout, RecomputeChangesNoBitWhenDeterministic) {
  TrainShape train = CudaTinyTrain(2, 128);
  train.lora_dropout = train.deterministic = true;
  const Output kept = Step(CudaPlan(CudaTinyShape(true), train, {2, 2, 0, 0}), {128, 128}, 0.1);
  for (const CudaTweaks& tweaks : {CudaTweaks{0, 2, 0, 0}, {1, 0, 0, 0}, {0, 0, 0, 0, 2}}) {
    const Output other = Step(CudaPlan(CudaTinyShape(true), train, tweaks), {128, 128}, 0.1);
    EXPECT_EQ(other.nats, kept.nats);
    EXPECT_EQ(other.gradient, kept.gradient) << tweaks.keep_all_layers << tweaks.cached_layers;
  }
}

// The linears as a bitsandbytes checkpoint has them.
class StoredNf4Source final : public WeightSource {
 public:
  StoredNf4Source(const ModelShape& shape, bool nested) : values_(shape) {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      for (int i = 0; i < kFusedLinears; ++i) {
        const FusedLinear linear = static_cast<FusedLinear>(i);
        const FusedParts parts = PartsOf(shape, linear);
        for (int p = 0; p < parts.count; ++p) {
          std::string module = LoraTargetName(parts.parts[p].target);
          module = (i < 2 ? "self_attn." : "mlp.") + module;
          Quantise("model.layers." + std::to_string(layer) + "." + module + ".weight", parts.parts[p].out,
                   FusedIn(shape, linear), nested);
        }
      }
    }
  }
  const ModelShape& shape() const override { return values_.shape(); }
  StoredAs Type(const std::string& name) const override {
    return stored_.count(name) > 0 ? StoredAs::kNf4 : StoredAs::kBF16;
  }
  absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const override {
    const auto found = stored_.find(name);
    if (found == stored_.end()) return values_.ReadRows(name, begin, end, out);
    const int64_t cols = found->second.state.shape[1];
    const auto& values = found->second.values;
    std::copy(values.begin() + begin * cols, values.begin() + end * cols, out);
    return absl::OkStatus();
  }
  std::optional<formats::Nf4View> Nf4(const std::string& name) const override {
    const auto found = stored_.find(name);
    if (found == stored_.end()) return std::nullopt;
    const Stored& s = found->second;
    return formats::Nf4View{&s.state, s.packed.data(),
                            s.state.nested ? s.codes.data() : reinterpret_cast<const uint8_t*>(s.absmax.data()),
                            s.nested.data(), kNf4NestedCodes.data()};
  }

 private:
  struct Stored {
    formats::Nf4QuantState state;
    std::vector<uint8_t> packed, codes;
    std::vector<float> absmax, nested, values;
  };

  void Quantise(const std::string& name, int64_t out, int64_t in, bool nested) {
    Stored& s = stored_[name];
    s.state.shape = {out, in};
    s.state.nested = nested;
    const int64_t n = out * in, block = s.state.block_size, blocks = Nf4Blocks(n, block);
    s.values.resize(static_cast<size_t>(n));
    s.packed.resize(static_cast<size_t>(Nf4PackedBytes(n)));
    s.absmax.resize(static_cast<size_t>(blocks));
    s.codes.resize(static_cast<size_t>(blocks));
    s.nested.resize(static_cast<size_t>(Nf4Blocks(blocks, kNf4NestedBlock)));
    ASSERT_TRUE(values_.ReadRows(name, 0, out, s.values.data()).ok());
    // Another distribution than what is quantised in place: its codes cannot be found again from the values' bf16.
    for (float& value : s.values) value *= 1.37f;
    ASSERT_TRUE(QuantizeNf4(s.values.data(), n, block, s.packed.data(), s.absmax.data()).ok());
    if (nested) {
      s.state.nested_offset = MeanAbsmax(s.absmax.data(), blocks);
      QuantizeAbsmax(s.absmax.data(), blocks, s.state.nested_offset, s.codes.data(), s.nested.data());
      DequantizeAbsmax(s.codes.data(), kNf4NestedCodes.data(), s.nested.data(), s.state.nested_offset, 0, blocks,
                       kNf4NestedBlock, s.absmax.data());
    }
    DequantizeNf4(s.packed.data(), s.absmax.data(), 0, n, block, s.values.data());
    for (float& value : s.values) value = Bf16ToFloat(FloatToBf16(value));
  }

  Bf16Source values_;
  std::map<std::string, Stored> stored_;
};

TEST(CudaStoredNf4, StepIsTheCpusWhetherInCodesOrCached) {
  const StoredNf4Source source(CudaTinyShape(true), /*nested=*/true);
  TrainShape train = CudaTinyTrain(2, 128);
  train.deterministic = true;
  const MemoryPlan codes = CudaPlan(CudaTinyShape(true), train, {2, 0, 0, 0});
  const Output in_codes = Step(codes, source, {128, 128});
  ExpectClose(codes, in_codes, Step(CpuTwin(codes), source, {128, 128}));
  EXPECT_EQ(Step(CudaPlan(CudaTinyShape(true), train, {2, 2, 0, 0}), source, {128, 128}).gradient, in_codes.gradient);
  // As values, as they are stored.
  train.base = BaseWeights::kAsStored;
  EXPECT_EQ(Step(CudaPlan(CudaTinyShape(true), train, {2, 2, 0, 0}), source, {128, 128}).gradient, in_codes.gradient);
}

TEST(CudaStoredNf4, ScalesThatAreNotQuantisedAreReadWhereLayersAreCached) {
  const StoredNf4Source source(CudaTinyShape(), /*nested=*/false);
  const MemoryPlan cached = CudaPlan(CudaTinyShape(), CudaTinyTrain(1, 128), {2, 2, 0, 0});
  ExpectClose(cached, Step(cached, source, {128}), Step(CpuTwin(cached), source, {128}));

  const MemoryPlan codes = CudaPlan(CudaTinyShape(), CudaTinyTrain(1, 128), {2, 1, 0, 0});
  const auto exec = CreateExec(codes, false);
  ASSERT_TRUE(exec.ok()) << exec.status();
  const auto memory = EngineMemory::Create(codes, **exec);
  ASSERT_TRUE(memory.ok()) << memory.status();
  const absl::Status status = LoadWeights(source, **memory, **exec, CarveWeights(**memory));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(status.message().find("scales not quantised"), std::string::npos) << status;
}

class DropoutTrainer : public testing::Test, public TrainerObserver {
 protected:
  void OnProgress(const TrainProgress& progress) override { losses_.push_back(progress.loss); }
  std::vector<double> Losses(const MemoryPlan& plan) {
    std::vector<TinyBatch> documents;
    for (uint64_t i = 0; i < 4; ++i) documents.emplace_back(std::vector<int64_t>{128}, 520, 40 + i);
    FixedBatches batches(std::move(documents), 2);
    TrainerOptions options;
    options.plan = plan;
    options.hyper.max_steps = 6;
    options.hyper.learning_rate = 5e-3;
    options.hyper.lora_dropout = 0.2;
    RunToEnd control;
    const RealClock clock;
    auto trainer = Trainer::Create(options, Bf16Source(plan.shape), &batches, &batches, this, &control, &clock);
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    if (!trainer.ok()) return {};
    EXPECT_TRUE((*trainer)->Run().ok());
    return std::move(losses_);
  }
  std::vector<double> losses_;
};

// Evaluations before and after, without dropout, run between: masks belong to training alone.
TEST_F(DropoutTrainer, LearnsAsTheCpuDoes) {
  TrainShape train = CudaTinyTrain(1, 128);
  train.accumulation_steps = 2;
  train.lora_dropout = true;
  const MemoryPlan plan = CudaPlan(CudaTinyShape(true), train);
  const std::vector<double> cuda = Losses(plan), cpu = Losses(CpuTwin(plan));
  ASSERT_EQ(cuda.size(), 6u);
  ASSERT_EQ(cpu.size(), 6u);
  EXPECT_LT(cuda[5], cuda[1]);
  for (size_t i = 0; i < cuda.size(); ++i) EXPECT_NEAR(cuda[i], cpu[i], 0.01 * cpu[i]) << i;
}

}  // namespace
}  // namespace longhaul::train
