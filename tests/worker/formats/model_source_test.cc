#include "worker/formats/model_source.h"

#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/worker/formats/test_support.h"
#include "worker/formats/gguf_model.h"

namespace longhaul::formats {
namespace {

using testing::HasSubstr;

// A Hugging Face folder made of the golden files, for a test to damage.
class HuggingFaceFolder {
 public:
  HuggingFaceFolder() : config(nlohmann::json::parse(ReadAll(Golden("formats_hf_config.json")))) {
    nlohmann::json weight_map;
    for (const char* shard : {"00001", "00002"}) {
      const std::string name = std::string("model-") + shard + "-of-00002.safetensors";
      WriteAll(dir.File(name), ReadAll(Golden(std::string("formats_hf_") + shard + ".safetensors")));
      const auto set = SafetensorsSet::OpenFile(dir.File(name));
      for (const auto& [tensor, view] : set->tensors()) weight_map[tensor] = name;
    }
    WriteAll(dir.File("model.safetensors.index.json"), nlohmann::json{{"weight_map", weight_map}}.dump());
    WriteConfig();
  }
  void WriteConfig() { WriteAll(dir.File("config.json"), config.dump()); }
  absl::Status OpenStatus() const { return ModelSource::Open(dir.path()).status(); }

  TempDir dir;
  nlohmann::json config;
};

// Rewrites the weights of a folder as one file; `change` may drop, add or reshape tensors.
template <typename Change>
void RewriteWeights(const HuggingFaceFolder& folder, Change change) {
  const auto set = SafetensorsSet::OpenFolder(folder.dir.path());
  LH_CHECK(set.ok());
  std::map<std::string, SafetensorsInput> tensors;
  for (const auto& [name, view] : set->tensors())
    tensors[name] = {name, view.entry->type, view.entry->shape, view.data};
  change(tensors);
  SafetensorsWriter writer;
  for (const auto& [name, tensor] : tensors) writer.Add(tensor);
  LH_CHECK(writer.WriteFile(folder.dir.File("model.safetensors")).ok());
  LH_CHECK(RemoveFile(folder.dir.File("model.safetensors.index.json")).ok());
}

void ExpectRows(const ModelSource& source, const std::string& golden_file) {
  const auto golden = SafetensorsSet::OpenFile(Golden(golden_file));
  ASSERT_TRUE(golden.ok()) << golden.status();
  ASSERT_EQ(source.tensors().size(), golden->tensors().size());
  for (const StoredTensor& tensor : source.tensors()) {
    const std::vector<float> expected = Floats(*golden, tensor.hf_name);
    std::vector<float> out(expected.size(), std::nanf(""));
    ASSERT_EQ(static_cast<size_t>(tensor.rows * tensor.cols), expected.size()) << tensor.hf_name;
    ASSERT_TRUE(source.ReadRows(tensor.hf_name, 0, tensor.rows, out.data()).ok());
    EXPECT_EQ(Bits(out), Bits(expected)) << tensor.hf_name;
    // Row by row it is the same.
    std::vector<float> row(static_cast<size_t>(tensor.cols));
    for (int64_t r = 0; r < tensor.rows; ++r) {
      ASSERT_TRUE(source.ReadRows(tensor.hf_name, r, r + 1, row.data()).ok());
      const auto begin = expected.begin() + r * tensor.cols;
      ASSERT_EQ(Bits(row), Bits({begin, begin + tensor.cols})) << tensor.hf_name << " row " << r;
    }
  }
}

TEST(ModelSourceTest, ReadsAGgufInHuggingFaceOrder) {
  const auto source = ModelSource::Open(Golden("formats_tiny.gguf"));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->shape().family, "llama");
  EXPECT_EQ(source->shape().layers, 2);
  EXPECT_EQ(source->shape().hidden, 64);
  EXPECT_EQ(source->shape().intermediate, 96);
  EXPECT_EQ(source->shape().heads, 4);
  EXPECT_EQ(source->shape().kv_heads, 2);
  EXPECT_EQ(source->shape().head_dim, 16);
  EXPECT_EQ(source->shape().vocab, 80);
  EXPECT_EQ(source->shape().max_position_embeddings, 256);
  EXPECT_TRUE(source->shape().tied_embeddings);
  EXPECT_NE(source->gguf(), nullptr);
  EXPECT_EQ(source->folder(), "");
  const StoredTensor* q = source->Find("model.layers.1.self_attn.q_proj.weight");
  ASSERT_NE(q, nullptr);
  EXPECT_EQ(q->type, StorageType::kQ4_1);
  EXPECT_EQ(q->source_name, "blk.1.attn_q.weight");
  EXPECT_EQ(q->bytes, 64 * 64 / 32 * 20);
  ExpectRows(*source, "formats_tiny_expected.safetensors");
}

TEST(ModelSourceTest, StoredRowsDequantiseToTheSameRows) {
  const auto source = ModelSource::Open(Golden("formats_tiny.gguf"));
  ASSERT_TRUE(source.ok());
  for (const StoredTensor& tensor : source->tensors()) {
    std::vector<uint8_t> stored(static_cast<size_t>(tensor.bytes));
    ASSERT_TRUE(source->ReadStoredRows(tensor.hf_name, 0, tensor.rows, stored.data()).ok());
    std::vector<float> from_stored(static_cast<size_t>(tensor.rows * tensor.cols));
    std::vector<float> direct = from_stored;
    DequantizeRows(tensor.type, stored.data(), tensor.rows, tensor.cols, from_stored.data());
    ASSERT_TRUE(source->ReadRows(tensor.hf_name, 0, tensor.rows, direct.data()).ok());
    EXPECT_EQ(Bits(from_stored), Bits(direct)) << tensor.hf_name;
  }
}

TEST(ModelSourceTest, ReadsAShardedHuggingFaceFolder) {
  HuggingFaceFolder folder;
  const auto source = ModelSource::Open(folder.dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->gguf(), nullptr);
  EXPECT_EQ(source->folder(), folder.dir.path());
  EXPECT_EQ(source->Find("model.norm.weight")->type, StorageType::kBF16);
  EXPECT_EQ(source->Find("model.layers.1.mlp.up_proj.weight")->type, StorageType::kF32);
  EXPECT_EQ(source->bytes(), 73192 + 124336);
  ExpectRows(*source, "formats_hf_expected.safetensors");
}

TEST(ModelSourceTest, ATiedHeadIsTheEmbedding) {
  const auto source = ModelSource::Open(Golden("formats_tiny.gguf"));
  ASSERT_TRUE(source.ok());
  EXPECT_EQ(source->Find("lm_head.weight"), source->Find("model.embed_tokens.weight"));
  std::vector<float> head(64), embedding(64);
  ASSERT_TRUE(source->ReadRows("lm_head.weight", 79, 80, head.data()).ok());
  ASSERT_TRUE(source->ReadRows("model.embed_tokens.weight", 79, 80, embedding.data()).ok());
  EXPECT_EQ(head, embedding);
}

TEST(ModelSourceTest, RefusesRowsAndNamesThatAreNotThere) {
  const auto source = ModelSource::Open(Golden("formats_tiny.gguf"));
  ASSERT_TRUE(source.ok());
  float out[64];
  EXPECT_EQ(source->ReadRows("nothing", 0, 1, out).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(source->ReadRows("lm_head.weight", 80, 81, out).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(source->ReadRows("lm_head.weight", -1, 0, out).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(source->ReadRows("lm_head.weight", 2, 1, out).code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(source->ReadRows("lm_head.weight", 80, 80, out).ok());
}

TEST(ModelSourceTest, FindsTheOneGgufOfAFolder) {
  TempDir dir;
  EXPECT_THAT(ModelSource::Open(dir.path()).status().message(), HasSubstr("neither config.json nor a .gguf"));
  EXPECT_EQ(ModelSource::Open(dir.File("gone")).status().code(), absl::StatusCode::kNotFound);
  WriteAll(dir.File("m.gguf"), ReadAll(Golden("formats_tiny.gguf")));
  const auto source = ModelSource::Open(dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->gguf()->path(), dir.File("m.gguf"));
  WriteAll(dir.File("n.gguf"), "x");
  EXPECT_THAT(ModelSource::Open(dir.path()).status().message(), HasSubstr("2 .gguf files (m.gguf, n.gguf)"));
}

TEST(ModelSourceTest, TheDigestFollowsTheContentAndNotThePlace) {
  const auto gguf = ModelSource::Open(Golden("formats_tiny.gguf"));
  ASSERT_TRUE(gguf.ok());
  EXPECT_EQ(*gguf->ComputeDigest(), Sha256Hex(ReadAll(Golden("formats_tiny.gguf"))));

  HuggingFaceFolder one;
  HuggingFaceFolder two;
  const auto digest = [](const HuggingFaceFolder& folder) {
    return *ModelSource::Open(folder.dir.path())->ComputeDigest();
  };
  EXPECT_EQ(digest(one), digest(two));
  WriteAll(two.dir.File("notes.txt"), "ignored");
  EXPECT_EQ(digest(one), digest(two));
  WriteAll(two.dir.File("tokenizer.json"), "{}");
  EXPECT_NE(digest(one), digest(two));
}

TEST(ModelSourceTest, RefusesMissingMisshapenAndForeignTensors) {
  HuggingFaceFolder folder;
  const float zeros[64 * 96] = {};
  RewriteWeights(folder, [](auto& tensors) { tensors.erase("model.layers.1.mlp.up_proj.weight"); });
  absl::Status status = folder.OpenStatus();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("lacks tensor \"model.layers.1.mlp.up_proj.weight\" [96, 64]"));

  HuggingFaceFolder misshapen;
  RewriteWeights(misshapen, [&](auto& tensors) {
    const std::string name = "model.layers.0.mlp.down_proj.weight";
    tensors[name] = {name, StorageType::kF32, {96, 64}, zeros};
  });
  EXPECT_THAT(misshapen.OpenStatus().message(), HasSubstr("down_proj.weight\" is [96, 64]; expected [64, 96]"));

  HuggingFaceFolder biased;
  RewriteWeights(biased, [&](auto& tensors) {
    const std::string name = "model.layers.0.self_attn.q_proj.bias";
    tensors[name] = {name, StorageType::kF32, {64}, zeros};
  });
  status = biased.OpenStatus();
  EXPECT_EQ(ErrorReason(status), "MODEL_UNSUPPORTED");
  EXPECT_THAT(status.message(), HasSubstr("q_proj.bias\" has no place in a llama model"));

  HuggingFaceFolder integers;
  RewriteWeights(integers, [&](auto& tensors) {
    const std::string name = "model.norm.weight";
    tensors[name] = {name, StorageType::kI8, {64}, zeros};
  });
  EXPECT_THAT(integers.OpenStatus().message(), HasSubstr("\"model.norm.weight\" is stored as I8"));

  // A tied head's copy and old RoPE buffers change nothing.
  HuggingFaceFolder harmless;
  RewriteWeights(harmless, [&](auto& tensors) {
    tensors["lm_head.weight"] = {"lm_head.weight", StorageType::kF32, {80, 64}, zeros};
    const std::string name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    tensors[name] = {name, StorageType::kF32, {8}, zeros};
  });
  EXPECT_TRUE(harmless.OpenStatus().ok()) << harmless.OpenStatus();
}

TEST(ModelSourceTest, RefusesAnotherFamilyAndQuantisation) {
  HuggingFaceFolder folder;
  folder.config["model_type"] = "mamba";
  folder.config["architectures"] = {"MambaForCausalLM"};
  folder.WriteConfig();
  absl::Status status = folder.OpenStatus();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(ErrorReason(status), "MODEL_UNSUPPORTED");
  EXPECT_THAT(status.message(), HasSubstr("mamba"));
  EXPECT_THAT(status.message(), HasSubstr(folder.dir.path()));

  HuggingFaceFolder gptq;
  gptq.config["quantization_config"] = {{"quant_method", "gptq"}};
  gptq.WriteConfig();
  EXPECT_THAT(gptq.OpenStatus().message(), HasSubstr("not bitsandbytes NF4"));
}

// A GGUF with only metadata and an embedding, from which the shape follows.
class GgufShapeTest : public testing::Test {
 protected:
  static std::string Str(const std::string& s) { return Le<uint64_t>(s.size()) + s; }
  void SetUp() override {
    Text("general.architecture", "llama");
    Int("llama.block_count", 2);
    Int("llama.embedding_length", 256);
    Int("llama.feed_forward_length", 512);
    Int("llama.attention.head_count", 2);
    Int("llama.context_length", 131072);
    Float("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    Float("llama.rope.freq_base", 500000.0f);
  }
  void Text(const std::string& key, const std::string& v) { values_[key] = Le<uint32_t>(8) + Str(v); }
  void Int(const std::string& key, uint32_t v) { values_[key] = Le<uint32_t>(4) + Le(v); }
  void Float(const std::string& key, float v) { values_[key] = Le<uint32_t>(6) + Le(v); }
  absl::StatusOr<ModelShape> Shape(const std::vector<float>& divisors = {}) {
    const uint64_t embedding_bytes = 256 * 4 * 2;
    bytes_ = "GGUF" + Le<uint32_t>(3) + Le<uint64_t>(divisors.empty() ? 1 : 2) + Le<uint64_t>(values_.size());
    for (const auto& [key, value] : values_) bytes_ += Str(key) + value;
    bytes_ += Str("token_embd.weight") + Le<uint32_t>(2) + Le<uint64_t>(256) + Le<uint64_t>(4) + Le<uint32_t>(1) +
              Le<uint64_t>(0);
    if (!divisors.empty()) {
      bytes_ += Str("rope_freqs.weight") + Le<uint32_t>(1) + Le<uint64_t>(divisors.size()) + Le<uint32_t>(0) +
                Le<uint64_t>(embedding_bytes);
    }
    bytes_.resize((bytes_.size() + 31) / 32 * 32);
    bytes_ += std::string(embedding_bytes, '\0');
    for (float divisor : divisors) bytes_ += Le(divisor);
    const auto file = GgufFile::FromBytes(bytes_, "s.gguf");
    LH_CHECK(file.ok(), file.status().ToString());
    return ModelShapeFromGguf(*file);
  }
  std::string Error() {
    const auto shape = Shape();
    return shape.ok() ? "OK" : std::string(shape.status().message());
  }
  // The converter's formula, with wavelengths against the low and high bounds.
  static std::vector<float> Llama3Divisors(double factor) {
    std::vector<float> out;
    for (int i = 0; i < 64; ++i) {
      const double frequency = std::pow(500000.0, -2.0 * i / 128.0);
      const double wavelength = 2.0 * M_PI / frequency;
      const double smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
      const double divisor = wavelength < 8192.0 / 4.0   ? 1.0
                             : wavelength > 8192.0 / 1.0 ? factor
                                                         : 1.0 / ((1.0 - smooth) / factor + smooth);
      out.push_back(static_cast<float>(divisor));
    }
    return out;
  }
  std::map<std::string, std::string> values_;
  std::string bytes_;
};

TEST_F(GgufShapeTest, DefaultsFollowTheFormat) {
  const auto shape = Shape();
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(shape->kv_heads, 2);
  EXPECT_EQ(shape->head_dim, 128);
  EXPECT_EQ(shape->vocab, 4);
  EXPECT_EQ(shape->rope.theta, 500000.0);
  EXPECT_EQ(shape->rope.scaling, RopeScaling::kNone);
}

TEST_F(GgufShapeTest, RecognisesLlama3ScalingFromItsDivisors) {
  for (double factor : {8.0, 32.0}) {
    const auto shape = Shape(Llama3Divisors(factor));
    ASSERT_TRUE(shape.ok()) << shape.status();
    EXPECT_EQ(shape->rope.scaling, RopeScaling::kLlama3);
    EXPECT_EQ(shape->rope.factor, factor);
    EXPECT_EQ(shape->rope.low_freq_factor, 1.0);
    EXPECT_EQ(shape->rope.high_freq_factor, 4.0);
    EXPECT_EQ(shape->rope.original_max_position_embeddings, 8192);
  }
  const auto plain = Shape(std::vector<float>(64, 1.0f));
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->rope.scaling, RopeScaling::kNone);
  std::vector<float> odd = Llama3Divisors(8.0);
  odd[30] *= 1.001f;
  EXPECT_THAT(Shape(odd).status().message(), HasSubstr("RoPE divisor 30"));
  EXPECT_FALSE(Shape(std::vector<float>(64, std::nanf(""))).ok());
  EXPECT_THAT(Shape(std::vector<float>(63, 1.0f)).status().message(), HasSubstr("must be F32 [64]"));
}

TEST_F(GgufShapeTest, NamesWhatItCannotRead) {
  ASSERT_EQ(Error(), "OK");
  Text("general.architecture", "mamba");
  EXPECT_THAT(Error(), HasSubstr("s.gguf: architecture \"mamba\" is not supported; supported: llama"));
  Text("general.architecture", "gemma2");
  EXPECT_THAT(Error(), HasSubstr("architecture \"gemma2\" needs"));
  Text("general.architecture", "llama");
  Text("general.type", "adapter");
  EXPECT_THAT(Error(), HasSubstr("holds a \"adapter\", not a model"));
  Text("general.type", "model");
  Int("llama.expert_count", 8);
  EXPECT_THAT(Error(), HasSubstr("mixture-of-experts"));
  Int("llama.expert_count", 0);
  Text("llama.rope.scaling.type", "longrope");
  EXPECT_THAT(Error(), HasSubstr("RoPE scaling \"longrope\""));
  Text("llama.rope.scaling.type", "yarn");
  Float("llama.rope.scaling.factor", 4.0f);
  Int("llama.rope.scaling.original_context_length", 2048);
  ASSERT_EQ(Error(), "OK");
  EXPECT_EQ(Shape()->rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(Shape()->rope.original_max_position_embeddings, 2048);
  EXPECT_GE(Shape()->max_position_embeddings, 4 * 2048);
  EXPECT_EQ(Shape()->rope.attention_factor, YarnAttentionFactor(4.0));
  Float("llama.rope.scaling.yarn_log_multiplier", 0.1f);
  EXPECT_THAT(Error(), HasSubstr("yarn_log_multiplier 0.1"));
  Float("llama.rope.scaling.yarn_log_multiplier", 0.0f);
  Text("llama.rope.scaling.type", "linear");
  Float("llama.rope.scaling.factor", 4.0f);
  EXPECT_EQ(Shape()->rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(Shape()->rope.factor, 4.0);
  Int("llama.rope.dimension_count", 64);
  EXPECT_THAT(Error(), HasSubstr("rotary embedding of 64 of 128"));
  Int("llama.rope.dimension_count", 128);
  Int("llama.attention.value_length", 64);
  EXPECT_THAT(Error(), HasSubstr("values of 64"));
  Int("llama.attention.value_length", 128);
  Int("llama.attention.head_count", 0);
  EXPECT_THAT(Error(), HasSubstr("head_count must be positive"));
  values_.erase("llama.block_count");
  EXPECT_THAT(Error(), HasSubstr("metadata lacks llama.block_count"));
}

}  // namespace
}  // namespace longhaul::formats
