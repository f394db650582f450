#include "model/model_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "base/error.h"
#include "model/family.h"
#include "nlohmann/json.hpp"
#include "tests/model/shapes.h"

namespace longhaul {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

json LlamaConfig() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05, "rope_theta": 100000, "max_position_embeddings": 8192, "vocab_size": 49152,
    "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": true})");
}

std::string Message(const json& config) {
  const auto shape = ModelShapeFromConfigJson(config.dump());
  return shape.ok() ? "" : std::string(shape.status().message());
}

TEST(ModelConfig, ReadsSmolLm2) {
  const auto shape = ModelShapeFromConfigJson(LlamaConfig().dump());
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(ModelShapeToJson(*shape), [] {
    json expected = ModelShapeToJson(SmolLm2Shape());
    expected["rope"]["original_max_position_embeddings"] = 8192;
    return expected;
  }());
  EXPECT_EQ(shape->TotalParams(), 134515008);
}

TEST(ModelConfig, WrittenConfigsReadBackAsTheSameShape) {
  for (const char* family : {"llama", "mistral", "qwen3"}) {
    for (RopeScaling scaling : {RopeScaling::kNone, RopeScaling::kLinear, RopeScaling::kLlama3, RopeScaling::kYarn,
                                RopeScaling::kDynamic, RopeScaling::kLongRope}) {
      ModelShape shape = SmolLm2Shape();
      shape.family = family;
      shape.qk_norm = FindFamily(family)->qk_norm;
      shape.head_dim = 40;
      shape.tied_embeddings = scaling == RopeScaling::kNone;
      shape.rope.scaling = scaling;
      if (scaling != RopeScaling::kNone) shape.rope.factor = 4.0;
      if (scaling == RopeScaling::kLlama3) {
        shape.rope.low_freq_factor = 1.5;
        shape.rope.high_freq_factor = 6.0;
        shape.rope.original_max_position_embeddings = 2048;
      } else if (scaling == RopeScaling::kYarn) {
        shape.rope.original_max_position_embeddings = 2048;
        shape.rope.beta_fast = 16;
        shape.rope.beta_slow = 2;
        shape.rope.attention_factor = 1.25;
        shape.rope.truncate = false;
      } else if (scaling == RopeScaling::kDynamic) {
        shape.rope.original_max_position_embeddings = 2048;
      } else if (scaling == RopeScaling::kLongRope) {
        shape.rope.original_max_position_embeddings = 2048;
        shape.rope.attention_factor = 1.25;
        for (int i = 0; i < 20; ++i) {
          shape.rope.short_factor.push_back(1 + 0.01 * i);
          shape.rope.long_factor.push_back(1 + i);
        }
      }
      const auto back = ModelShapeFromConfigJson(ConfigJsonOfModelShape(shape).dump());
      ASSERT_TRUE(back.ok()) << family << back.status();
      EXPECT_EQ(ModelShapeToJson(*back), ModelShapeToJson(shape));
    }
  }
}

TEST(ModelConfig, ReadsDynamicAndLongRopeAsTransformersDoes) {
  json config = LlamaConfig();
  config["max_position_embeddings"] = 4096;
  config["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
  auto shape = ModelShapeFromConfigJson(config.dump());
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(shape->rope.scaling, RopeScaling::kDynamic);
  EXPECT_EQ(shape->rope.original_max_position_embeddings, 4096);
  EXPECT_EQ(shape->max_position_embeddings, 8192);
  config["rope_scaling"]["factor"] = 0.5;
  EXPECT_THAT(Message(config), HasSubstr("\"factor\" is 0.5"));

  // As Phi-3 has it: the original context beside the scaling.
  config["max_position_embeddings"] = 131072;
  config["original_max_position_embeddings"] = 4096;
  const std::vector<double> ones(32, 1.0), longs(32, 8.0);
  config["rope_scaling"] = {{"type", "longrope"}, {"short_factor", ones}, {"long_factor", longs}};
  shape = ModelShapeFromConfigJson(config.dump());
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(shape->rope.scaling, RopeScaling::kLongRope);
  EXPECT_EQ(shape->rope.original_max_position_embeddings, 4096);
  EXPECT_EQ(shape->max_position_embeddings, 131072);
  EXPECT_EQ(shape->rope.factor, 32);
  EXPECT_DOUBLE_EQ(shape->rope.attention_factor, std::sqrt(1 + std::log(32.0) / std::log(4096.0)));
  EXPECT_EQ(shape->rope.long_factor, longs);
  config["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_EQ(ModelShapeFromConfigJson(config.dump())->rope.attention_factor, 1.5);

  config["rope_scaling"]["short_factor"].erase(0);
  EXPECT_THAT(Message(config), HasSubstr("model.rope.short_factor has 31 values; must have head_dim / 2, 32"));
  config["rope_scaling"]["short_factor"] = ones;
  config["rope_scaling"]["long_factor"][3] = 0;
  EXPECT_THAT(Message(config), HasSubstr("\"long_factor\"[3] is 0"));
  config["rope_scaling"]["long_factor"][3] = 2e6;
  EXPECT_THAT(Message(config), HasSubstr("\"long_factor\"[3] is 2000000.000000; must be from 0.000001 to 1000000.0"));
  config["rope_scaling"]["long_factor"][3] = std::string(100000, 'x');
  EXPECT_THAT(Message(config), HasSubstr("\"long_factor\"[3] must be a number"));
  EXPECT_LT(Message(config).size(), 200);  // what the file has is not repeated
  config["rope_scaling"]["long_factor"] = std::vector<double>(33, 8.0);
  EXPECT_THAT(Message(config), HasSubstr("\"long_factor\" has 33 elements; must be an array of at most 32 elements"));
  config["rope_scaling"]["long_factor"] = 8.0;
  EXPECT_THAT(Message(config), HasSubstr("\"long_factor\" must be an array of at most 32 elements"));
  config["rope_scaling"].erase("long_factor");
  EXPECT_THAT(Message(config), HasSubstr("\"long_factor\" is missing"));
  config["rope_scaling"]["long_factor"] = longs;
  config["rope_scaling"]["attention_factor"] = 2e6;
  EXPECT_THAT(Message(config), HasSubstr("\"attention_factor\" is 2000000.0"));
  config["rope_scaling"].erase("attention_factor");
  config["original_max_position_embeddings"] = 0;
  EXPECT_THAT(Message(config), HasSubstr("\"original_max_position_embeddings\" is 0; must be a whole number from 1"));
  config["original_max_position_embeddings"] = 131072;  // nothing is extended
  EXPECT_EQ(ModelShapeFromConfigJson(config.dump())->rope.attention_factor, 1.0);
}

// Transformers reads it beside a scaling as well as in it; its plain RoPE has no use for the one beside.
TEST(ModelConfig, RefusesPartialRotaryWhereItCounts) {
  json config = LlamaConfig();
  config["partial_rotary_factor"] = 0.5;
  EXPECT_EQ(Message(config), "");
  config["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", 2.0}};
  EXPECT_THAT(Message(config), HasSubstr("partial_rotary_factor 0.5"));
  config["partial_rotary_factor"] = 1.0;
  EXPECT_EQ(Message(config), "");
  config["rope_scaling"]["partial_rotary_factor"] = 0.5;
  EXPECT_THAT(Message(config), HasSubstr("partial_rotary_factor 0.5"));
}

TEST(ModelConfig, KvHeadsNullMeansHeadsAndHeadDimIsItsOwn) {
  json config = LlamaConfig();
  config["num_key_value_heads"] = nullptr;
  config["head_dim"] = 128;
  const auto shape = ModelShapeFromConfigJson(config.dump());
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(shape->kv_heads, 9);
  EXPECT_EQ(shape->head_dim, 128);
  EXPECT_EQ(shape->q_dim(), 9 * 128);
}

TEST(ModelConfig, ReadsRopeInItsThreeSpellings) {
  const json scaling = {{"factor", 32.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  for (const char* spelling : {"rope_type", "type", "rope_parameters"}) {
    json config = LlamaConfig();
    json rope = scaling;
    if (std::string(spelling) == "rope_parameters") {
      rope["rope_type"] = "llama3";
      rope["rope_theta"] = 500000.0;
      config.erase("rope_theta");
      config["rope_parameters"] = rope;
    } else {
      rope[spelling] = "llama3";
      config["rope_theta"] = 500000.0;
      config["rope_scaling"] = rope;
    }
    const auto shape = ModelShapeFromConfigJson(config.dump());
    ASSERT_TRUE(shape.ok()) << spelling << shape.status();
    EXPECT_EQ(shape->rope.scaling, RopeScaling::kLlama3);
    EXPECT_EQ(shape->rope.factor, 32.0);
    EXPECT_EQ(shape->rope.theta, 500000.0);
  }
}

TEST(ModelConfig, ReadsYarnAsTransformersDoes) {
  json config = LlamaConfig();
  config["max_position_embeddings"] = 40960;
  config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  auto shape = ModelShapeFromConfigJson(config.dump());
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(shape->rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(shape->max_position_embeddings, 131072);
  EXPECT_EQ(shape->rope.beta_fast, 32);
  EXPECT_EQ(shape->rope.beta_slow, 1);
  EXPECT_DOUBLE_EQ(shape->rope.attention_factor, 0.1 * std::log(4.0) + 1);
  EXPECT_TRUE(shape->rope.truncate);

  config["rope_scaling"] = {{"type", "yarn"},  {"factor", 40.0},        {"original_max_position_embeddings", 4096},
                            {"mscale", 0.707}, {"mscale_all_dim", 1.0}, {"truncate", false}};
  shape = ModelShapeFromConfigJson(config.dump());
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_DOUBLE_EQ(shape->rope.attention_factor, (0.0707 * std::log(40.0) + 1) / (0.1 * std::log(40.0) + 1));
  EXPECT_FALSE(shape->rope.truncate);

  config["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_EQ(ModelShapeFromConfigJson(config.dump())->rope.attention_factor, 1.5);
  config["rope_scaling"]["beta_fast"] = 0.5;
  EXPECT_THAT(Message(config), HasSubstr("beta_fast must not be below beta_slow"));
}

TEST(ModelConfig, RefusesWhatTheEngineLacksByName) {
  const std::pair<const char*, json> cases[] = {
      {"sliding_window", 4096},
      {"attention_bias", true},
      {"mlp_bias", true},
      {"hidden_act", "gelu"},
      {"rope_scaling", {{"rope_type", "proportional"}, {"factor", 4.0}}},
      {"model_type", "qwen2"},
      {"model_type", "mamba"},
  };
  for (const auto& [key, value] : cases) {
    json config = LlamaConfig();
    config[key] = value;
    const auto shape = ModelShapeFromConfigJson(config.dump());
    ASSERT_FALSE(shape.ok()) << key;
    EXPECT_EQ(shape.status().code(), absl::StatusCode::kUnimplemented) << shape.status();
    EXPECT_EQ(ErrorReason(shape.status()), "MODEL_UNSUPPORTED");
  }
  json mistral = LlamaConfig();
  mistral["model_type"] = "mistral";
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(Message(mistral), "");
  json qwen2 = LlamaConfig();
  qwen2["model_type"] = "qwen2";
  EXPECT_THAT(Message(qwen2), HasSubstr("biases of q, k and v"));
}

TEST(ModelConfig, NamesTheKeyAtFault) {
  for (const char* key : {"hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps", "intermediate_size"}) {
    json config = LlamaConfig();
    config.erase(key);
    EXPECT_THAT(Message(config), HasSubstr(key));
    for (const json& bad : {json("many"), json(-3), json(1e300), json(json::array()), json(2.5)}) {
      config[key] = bad;
      EXPECT_NE(Message(config), "") << key << bad;
    }
  }
  json heads = LlamaConfig();
  heads["num_key_value_heads"] = 4;
  EXPECT_THAT(Message(heads), HasSubstr("must divide heads"));
}

TEST(ModelConfig, RefusesDeepNestingAndBrokenJson) {
  EXPECT_THAT(std::string(ModelShapeFromConfigJson(std::string(100000, '[')).status().message()), HasSubstr("nested"));
  EXPECT_THAT(std::string(ModelShapeFromConfigJson("{\"a\":").status().message()), HasSubstr("not valid JSON"));
  EXPECT_FALSE(ModelShapeFromConfigJson("[]").ok());
}

TEST(ModelShapeJson, RoundTripsExactly) {
  for (ModelShape shape : {SmolLm2Shape(), Llama8bShape(), Llama70bShape()}) {
    shape.rms_norm_eps = 1.0 / 3e5;
    const json written = ModelShapeToJson(shape);
    const auto read = ModelShapeFromJson(json::parse(written.dump()));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(ModelShapeToJson(*read), written);
  }
}

TEST(Family, EveryGgufArchitectureIsFound) {
  ASSERT_NE(FindFamilyByGgufArchitecture("llama"), nullptr);
  EXPECT_TRUE(FindFamilyByGgufArchitecture("llama")->gguf_permutes_qk);
  EXPECT_FALSE(FindFamilyByGgufArchitecture("qwen3")->gguf_permutes_qk);
  EXPECT_TRUE(FindFamily("qwen3")->qk_norm);
  EXPECT_EQ(FindFamilyByGgufArchitecture(""), nullptr);
  EXPECT_EQ(FindFamily("nothing"), nullptr);
  EXPECT_EQ(SupportedFamilies(), "llama, mistral, qwen3");
}

TEST(Rope, PlainLinearAndLlama3FollowTheirFormulas) {
  RopeFacts rope;
  rope.theta = 10000;
  std::vector<double> plain(32), linear(32), llama3(32);
  RopeInverseFrequencies(rope, 64, 1 << 20, plain.data());
  EXPECT_EQ(plain[0], 1.0);
  EXPECT_NEAR(plain[16], 0.01, 1e-15);
  rope.scaling = RopeScaling::kLinear;
  rope.factor = 4;
  RopeInverseFrequencies(rope, 64, 1 << 20, linear.data());
  for (int i = 0; i < 32; ++i) EXPECT_EQ(linear[i], plain[i] / 4);

  rope = {500000.0, RopeScaling::kLlama3, 8.0, 1.0, 4.0, 8192};
  RopeFacts unscaled = rope;
  unscaled.scaling = RopeScaling::kNone;
  RopeInverseFrequencies(rope, 64, 1 << 20, llama3.data());
  RopeInverseFrequencies(unscaled, 64, 1 << 20, plain.data());
  int kept = 0, divided = 0, between = 0;
  for (int i = 0; i < 32; ++i) {
    const double wavelength = 2 * std::numbers::pi / plain[i];
    if (wavelength < 8192.0 / 4) {
      EXPECT_EQ(llama3[i], plain[i]);
      ++kept;
    } else if (wavelength > 8192.0) {
      EXPECT_EQ(llama3[i], plain[i] / 8);
      ++divided;
    } else {
      EXPECT_LT(llama3[i], plain[i]);
      EXPECT_GT(llama3[i], plain[i] / 8);
      ++between;
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(divided, 0);
  EXPECT_GT(between, 0);
}

TEST(Rope, DynamicStretchesWithTheLongestDocument) {
  RopeFacts plain;
  plain.theta = 10000;
  RopeFacts rope = plain;
  rope.scaling = RopeScaling::kDynamic;
  rope.factor = 4;
  rope.original_max_position_embeddings = 1024;
  std::vector<double> before(32), after(32);
  RopeInverseFrequencies(plain, 64, 1024, before.data());
  for (const int64_t length : {1, 1024}) {
    RopeInverseFrequencies(rope, 64, length, after.data());
    EXPECT_EQ(after, before) << length;
  }
  // Twice the context: theta x (4 x 2 - 3)^(64/62), so the slowest of 32 frequencies is a fifth.
  RopeInverseFrequencies(rope, 64, 2048, after.data());
  EXPECT_EQ(after[0], 1.0);
  EXPECT_NEAR(after[31] * 5, before[31], 1e-12 * before[31]);
  EXPECT_EQ(RopeAttentionFactor(rope), 1.0);
  EXPECT_TRUE(ValidateRope(rope, 64).ok());
  EXPECT_THAT(std::string(ValidateRope(rope, 2).message()), HasSubstr("model.head_dim is 2; must be above 2"));
  rope.original_max_position_embeddings = 0;
  EXPECT_THAT(std::string(ValidateRope(rope, 64).message()),
              HasSubstr("model.rope.original_max_position_embeddings is 0; must be 1 to"));
  rope.factor = 0.5;
  EXPECT_THAT(std::string(ValidateRope(rope, 64).message()),
              HasSubstr("model.rope.factor is 0.500000; must be at least 1"));
}

TEST(Rope, LongRopeTakesItsSecondListBeyondTheOriginalContext) {
  RopeFacts plain;
  plain.theta = 10000;
  RopeFacts rope = plain;
  rope.scaling = RopeScaling::kLongRope;
  rope.original_max_position_embeddings = 1024;
  rope.attention_factor = 1.25;
  for (int i = 0; i < 32; ++i) {
    rope.short_factor.push_back(1 + 0.5 * i);
    rope.long_factor.push_back(2 + i);
  }
  ASSERT_TRUE(ValidateRope(rope, 64).ok()) << ValidateRope(rope, 64);
  std::vector<double> before(32), after(32);
  RopeInverseFrequencies(plain, 64, 1, before.data());
  for (const auto& [length, factors] : {std::pair{1024, &rope.short_factor}, std::pair{1025, &rope.long_factor}}) {
    RopeInverseFrequencies(rope, 64, length, after.data());
    for (size_t i = 0; i < 32; ++i) EXPECT_DOUBLE_EQ(after[i], before[i] / (*factors)[i]) << length;
  }
  EXPECT_EQ(RopeAttentionFactor(rope), 1.25);
  const auto message = [](const RopeFacts& facts) { return std::string(ValidateRope(facts, 64).message()); };
  RopeFacts bad = rope;
  bad.long_factor[5] = -1;
  EXPECT_THAT(message(bad), HasSubstr("model.rope.long_factor[5] is -1.000000; must be above 0 and at most 1e6"));
  bad = rope;
  bad.short_factor[0] = std::nan("");
  EXPECT_THAT(message(bad), HasSubstr("model.rope.short_factor[0] is nan"));
  bad = rope;
  bad.long_factor.push_back(1);
  EXPECT_THAT(message(bad), HasSubstr("model.rope.long_factor has 33 values; must have head_dim / 2, 32"));
  bad = rope;
  bad.attention_factor = 0;
  EXPECT_THAT(message(bad), HasSubstr("model.rope.attention_factor is 0.000000; must be above 0"));
  bad = rope;
  bad.original_max_position_embeddings = int64_t{1} << 40;
  EXPECT_THAT(message(bad), HasSubstr("model.rope.original_max_position_embeddings is 1099511627776; must be 1 to"));
}

}  // namespace
}  // namespace longhaul
