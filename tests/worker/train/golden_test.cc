// The engine against Transformers, PEFT and bitsandbytes: tiny models of real structure, read by the real loaders, with
// an adapter that PEFT saved and whose B is random (tests/golden/make_golden_engine.py).
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/worker/train/golden_rig.h"
#include "worker/formats/bnb_nf4.h"

namespace longhaul::train {
namespace {

using formats::SafetensorsSet;
using formats::StorageType;

double Cosine(const std::vector<double>& a, const std::vector<double>& b) {
  double dot = 0, aa = 0, bb = 0;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / std::sqrt(aa * bb);
}

double MaxAbs(const std::vector<double>& values) {
  double most = 0;
  for (double v : values) most = std::max(most, std::abs(v));
  return most;
}

class EngineGolden : public testing::TestWithParam<GoldenCase> {
 protected:
  // Calls check(name, ours, Transformers') for the logits and every LoRA gradient; returns our mean loss.
  template <typename Check>
  double Compare(ComputeType compute, Check check) {
    Engine engine(GetParam(), compute);
    const TokenBatch batch = expected_.batch.view();
    const auto targets = static_cast<double>(expected_.batch.targets());
    check("logits", engine.Logits(batch), Doubles(expected_.set, "logits"));
    const double nats = engine.rig.Step(batch, 1 / targets);
    size_t compared = 0;
    for (const LoraModule& m : engine.rig.adapter->modules()) {
      const int64_t rank = engine.rig.adapter->rank();
      const std::string a = formats::LoraAKey(m.layer, LoraTargetName(m.target));
      const std::string b = formats::LoraBKey(m.layer, LoraTargetName(m.target));
      check(a, engine.Gradient(m.a_offset, rank * m.in), Doubles(expected_.set, "grad." + a));
      check(b, engine.Gradient(m.b_offset, rank * m.out), Doubles(expected_.set, "grad." + b));
      compared += 2;
    }
    size_t there = 0;
    for (const auto& [name, view] : expected_.set.tensors()) there += name.rfind("grad.", 0) == 0;
    EXPECT_EQ(compared, there);
    EXPECT_EQ(compared, 28u);
    return nats / targets;
  }

  double ExpectedLoss() const { return Doubles(expected_.set, "loss")[0]; }

  const Expected expected_{GetParam().expected};
};

// Both sides compute in f64 from the same bits; sums of at most 131 terms through two layers stay far below 1e-9.
TEST_P(EngineGolden, DoubleEqualsTransformers) {
  const double loss = Compare(ComputeType::kF64, [](const std::string& name, const auto& ours, const auto& theirs) {
    EXPECT_LE(RelativeError(ours, theirs), 1e-9) << name;
  });
  EXPECT_NEAR(loss, ExpectedLoss(), 1e-9 * ExpectedLoss());
}

// A logit is the end of 15 products of length <= 80, whose rounding errors add like a random walk: an error of about
// sqrt(15 * 80) * eps of the largest logit, eps = 2^-24. -log softmax moves by at most twice the largest error of its
// logits, and so does a mean of them.
TEST_P(EngineGolden, SingleFollowsTransformers) {
  double largest_logit = 0;
  const double loss = Compare(ComputeType::kF32, [&](const std::string& name, const auto& ours, const auto& theirs) {
    EXPECT_GE(Cosine(ours, theirs), 0.9999) << name;
    EXPECT_NEAR(MaxAbs(ours), MaxAbs(theirs), 1e-4 * MaxAbs(theirs)) << name;  // a cosine does not see a wrong scale
    if (name == "logits") largest_logit = MaxAbs(theirs);
  });
  EXPECT_NEAR(loss, ExpectedLoss(), 2 * std::sqrt(15.0 * 80) * std::ldexp(1, -24) * largest_logit);
}

// The weights are bf16 already, so only what enters a frozen product is rounded: eps = 2^-9, a product's error is about
// eps / sqrt(3) of its norm, and that of 15 in a row sqrt(15 / 3) * 2^-9 = 0.4%. The backward pass subtracts numbers
// that are nearly equal (p - target, dp - sum p dp in the softmax, the projection in the norm), which makes errors
// several times larger relative to what is left: ten times is 4%, a cosine of 1 - 0.04^2 / 2 = 0.999.
TEST_P(EngineGolden, Bf16FollowsTransformers) {
  if (!kernels::ProbeCpu().has_bf16) GTEST_SKIP() << "this CPU has no bf16 products";
  double largest_logit = 0;
  const double loss = Compare(ComputeType::kBF16, [&](const std::string& name, const auto& ours, const auto& theirs) {
    EXPECT_GE(Cosine(ours, theirs), 0.999) << name;
    if (name == "logits") largest_logit = MaxAbs(theirs);
  });
  EXPECT_NEAR(loss, ExpectedLoss(), 2 * std::sqrt(15.0 / 3) * std::ldexp(1, -9) * largest_logit);
}

INSTANTIATE_TEST_SUITE_P(
    Models, EngineGolden,
    testing::Values(
        GoldenCase{"LlamaTied", "llama_tied", "llama_tied", "llama_tied", BaseWeights::kAsStored},
        GoldenCase{"LlamaUntied", "llama_untied", "llama_untied", "llama_untied", BaseWeights::kAsStored},
        GoldenCase{"Qwen3", "qwen3", "qwen3", "qwen3", BaseWeights::kAsStored},
        GoldenCase{"Qwen3Yarn", "qwen3_yarn", "qwen3_yarn", "qwen3_yarn", BaseWeights::kAsStored},
        GoldenCase{"LlamaDynamic", "llama_dynamic", "llama_dynamic", "llama_dynamic", BaseWeights::kAsStored},
        GoldenCase{"LlamaLongRope", "llama_longrope", "llama_longrope", "llama_longrope", BaseWeights::kAsStored},
        // The checkpoint that bitsandbytes wrote, and the same weights quantised by the engine itself.
        GoldenCase{"Nf4Checkpoint", "llama_nf4", "llama_nf4", "llama_tied", BaseWeights::kAsStored},
        GoldenCase{"Nf4CheckpointKeptAsItIs", "llama_nf4", "llama_nf4", "llama_tied", BaseWeights::kNf4},
        GoldenCase{"Nf4QuantisedByTheEngine", "llama_nf4", "llama_tied", "llama_tied", BaseWeights::kNf4}),
    [](const auto& param) { return std::string(param.param.name); });

// Without this the two kinds of base could be one.
TEST(EngineGoldenNf4, QuantisationChangesTheLogits) {
  const GoldenCase plain{"", "llama_tied", "llama_tied", "llama_tied", BaseWeights::kAsStored};
  Engine engine(plain, ComputeType::kF64);
  const Expected nf4("llama_nf4");
  EXPECT_GT(RelativeError(engine.Logits(nf4.batch.view()), Doubles(nf4.set, "logits")), 1e-3);
}

// Codes, absmaxes, double quantisation and the state's JSON, byte for byte as bitsandbytes and Transformers store them.
TEST(EngineGoldenNf4, BytesEqualBitsandbytes) {
  const auto source = Must(formats::ModelSource::Open(formats::Golden("engine_llama_tied")));
  const auto stored = Must(SafetensorsSet::OpenFile(formats::Golden("engine_llama_nf4/model.safetensors")));
  size_t compared = 0;
  for (const formats::StoredTensor& tensor : source.tensors()) {
    const std::string& name = tensor.hf_name;
    if (name.find("_proj.") == std::string::npos) {
      EXPECT_EQ(stored.Find(name + ".absmax"), nullptr) << name;
      continue;
    }
    SCOPED_TRACE(name);
    const int64_t n = tensor.rows * tensor.cols;
    const int64_t blocks = Nf4Blocks(n, kNf4DefaultBlock);
    std::vector<float> w(static_cast<size_t>(n));
    ASSERT_TRUE(source.ReadRows(name, 0, tensor.rows, w.data()).ok());
    std::vector<uint8_t> packed(static_cast<size_t>(Nf4PackedBytes(n)));
    std::vector<float> absmax(static_cast<size_t>(blocks));
    ASSERT_TRUE(QuantizeNf4(w.data(), n, kNf4DefaultBlock, packed.data(), absmax.data()).ok());
    formats::Nf4QuantState state;
    state.shape = {tensor.rows, tensor.cols};
    state.dtype = StorageType::kBF16;
    state.nested = true;
    state.nested_offset = MeanAbsmax(absmax.data(), blocks);
    std::vector<uint8_t> codes(static_cast<size_t>(blocks));
    std::vector<float> nested(static_cast<size_t>(Nf4Blocks(blocks, kNf4NestedBlock)));
    QuantizeAbsmax(absmax.data(), blocks, state.nested_offset, codes.data(), nested.data());

    EXPECT_EQ(packed, formats::BytesOf(stored, name));
    EXPECT_EQ(codes, formats::BytesOf(stored, name + ".absmax"));
    EXPECT_EQ(formats::Bits(nested), formats::Bits(formats::Floats(stored, name + ".nested_absmax")));
    const std::vector<uint8_t> json = formats::BytesOf(stored, name + ".quant_state.bitsandbytes__nf4");
    EXPECT_EQ(formats::Nf4QuantStateToJson(state), std::string(json.begin(), json.end()));
    ++compared;
  }
  EXPECT_EQ(compared, 14u);
}

class PeftGolden : public testing::TestWithParam<const char*> {};

// Keys, order, shapes, types, metadata and values: the tensors' file is PEFT's own, byte for byte. PEFT's config has
// more keys, all at the values that mean "not used"; those that we write are equal.
TEST_P(PeftGolden, FilesEqualWhatPeftSaves) {
  const std::string model = GetParam();
  const GoldenCase c{"", model.c_str(), model.c_str(), model.c_str(), BaseWeights::kAsStored};
  Engine engine(c, ComputeType::kF32);
  Hyper hyper;
  hyper.lora_alpha = engine.loaded.config.lora_alpha;
  const formats::TempDir dir;
  const absl::Status exported = ExportAdapter(dir.File("adapter"), engine.plan, hyper, *engine.rig.adapter,
                                              {engine.loaded.config.base_model_name_or_path, {}});
  ASSERT_TRUE(exported.ok()) << exported;
  const std::string peft = formats::Golden("engine_" + model + "/adapter/");
  EXPECT_EQ(formats::ReadAll(dir.File("adapter/adapter_model.safetensors")),
            formats::ReadAll(peft + "adapter_model.safetensors"));

  const auto ours = nlohmann::json::parse(formats::ReadAll(dir.File("adapter/adapter_config.json")));
  const auto theirs = nlohmann::json::parse(formats::ReadAll(peft + "adapter_config.json"));
  for (const auto& [key, value] : ours.items()) {
    ASSERT_TRUE(theirs.contains(key)) << key;
    EXPECT_EQ(value, theirs[key]) << key;
  }
  for (const auto& [key, value] : theirs.items()) {
    // Facts of PEFT's own that only its other methods read.
    if (ours.contains(key) || key == "peft_version" || key == "megatron_core" || key == "qalora_group_size") continue;
    EXPECT_TRUE(value.is_null() || value == false || value.empty()) << key << " = " << value;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, PeftGolden, testing::Values("llama_tied", "llama_untied", "qwen3"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace longhaul::train
