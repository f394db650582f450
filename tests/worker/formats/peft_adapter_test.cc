#include "worker/formats/peft_adapter.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/worker/formats/test_support.h"

namespace longhaul::formats {
namespace {

using testing::HasSubstr;

AdapterConfig Config() {
  AdapterConfig config;
  config.base_model_name_or_path = "acme/tiny";
  config.r = 4;
  config.lora_alpha = 8;
  config.lora_dropout = 0.05;
  config.target_modules = {"q_proj", "down_proj"};
  return config;
}

ModelShape Shape() {
  ModelShape shape;
  shape.family = "llama";
  shape.layers = 2;
  shape.hidden = 8;
  shape.intermediate = 12;
  shape.heads = 2;
  shape.kv_heads = 1;
  shape.head_dim = 6;
  shape.vocab = 10;
  return shape;
}

TEST(AdapterConfigTest, WritesPeftsBytes) {
  EXPECT_EQ(AdapterConfigToJson(Config()), R"({
  "alpha_pattern": {},
  "base_model_name_or_path": "acme/tiny",
  "bias": "none",
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "layers_pattern": null,
  "layers_to_transform": null,
  "lora_alpha": 8,
  "lora_dropout": 0.05,
  "modules_to_save": null,
  "peft_type": "LORA",
  "r": 4,
  "rank_pattern": {},
  "revision": null,
  "target_modules": [
    "down_proj",
    "q_proj"
  ],
  "task_type": "CAUSAL_LM",
  "use_dora": false,
  "use_rslora": false
})");
}

TEST(AdapterConfigTest, NonAsciiIsEscapedAndBadUtf8Survives) {
  AdapterConfig config = Config();
  config.base_model_name_or_path = "m\u00fc\xff";
  const std::string json = AdapterConfigToJson(config);
  EXPECT_THAT(json, HasSubstr("m\\u00fc\\ufffd"));
}

TEST(AdapterConfigTest, ReadsBackAndScales) {
  AdapterConfig config = Config();
  config.use_rslora = true;
  const auto back = AdapterConfigFromJson(AdapterConfigToJson(config), "c.json");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->r, 4);
  EXPECT_EQ(back->lora_dropout, 0.05);
  EXPECT_EQ(back->target_modules, (std::vector<std::string>{"down_proj", "q_proj"}));
  EXPECT_EQ(back->Scale(), 4.0);
  EXPECT_EQ(Config().Scale(), 2.0);
}

TEST(AdapterConfigTest, RefusesWhatWouldGiveAnotherResult) {
  const auto error = [](const char* key, const nlohmann::json& value) {
    nlohmann::json json = nlohmann::json::parse(AdapterConfigToJson(Config()));
    json[key] = value;
    const auto config = AdapterConfigFromJson(json.dump(), "c.json");
    return config.ok() ? "OK" : std::string(config.status().message());
  };
  EXPECT_EQ(error("revision", "main"), "OK");
  EXPECT_THAT(error("peft_type", "LOHA"), HasSubstr("\"LOHA\"; LORA is supported"));
  EXPECT_THAT(error("peft_type", 3), HasSubstr("lacks peft_type"));
  EXPECT_THAT(error("use_dora", true), HasSubstr("use_dora"));
  EXPECT_THAT(error("rank_pattern", {{"q_proj", 2}}), HasSubstr("rank_pattern"));
  EXPECT_THAT(error("modules_to_save", {"lm_head"}), HasSubstr("modules_to_save"));
  EXPECT_THAT(error("bias", "all"), HasSubstr("biases"));
  EXPECT_THAT(error("r", 0), HasSubstr("from 1 to 1024"));
  EXPECT_THAT(error("r", 1025), HasSubstr("from 1 to 1024"));
  EXPECT_THAT(error("r", 1.5), HasSubstr("from 1 to 1024"));
  EXPECT_THAT(error("r", "8"), HasSubstr("r must be a number"));
  EXPECT_THAT(error("target_modules", "all-linear"), HasSubstr("list of names"));
  EXPECT_THAT(error("target_modules", {1}), HasSubstr("list of names"));
  EXPECT_THAT(error("use_rslora", 1), HasSubstr("use_rslora"));
}

TEST(ModelCardTest, FrontMatterAndTableSurviveAnyText) {
  ModelCard card{"Title", "a: \"b\"\nevil: true", {"lora"}, {{"loss", "1|2\n3"}}};
  const std::string text = ModelCardToMarkdown(card);
  EXPECT_THAT(text, testing::StartsWith("---\nbase_model: \"a: \\\"b\\\"\\nevil: true\"\nlibrary_name: peft\ntags:\n"
                                        "- \"lora\"\n---\n"));
  EXPECT_THAT(text, HasSubstr("| loss | 1\\|2 3 |\n"));
}

class AdapterFolderTest : public testing::Test {
 protected:
  // Every pair of the config's targets, values that F32 keeps.
  void MakeTensors() {
    for (int64_t layer = 0; layer < 2; ++layer) {
      for (const std::string& target : config_.target_modules) {
        const auto [out, in] = LoraTargetDims(Shape(), target);
        AddTensor(LoraAKey(layer, target), {config_.r, in});
        AddTensor(LoraBKey(layer, target), {out, config_.r});
      }
    }
  }
  void AddTensor(const std::string& key, std::vector<int64_t> shape) {
    auto& values = *values_.emplace_back(std::make_unique<std::vector<float>>(shape[0] * shape[1]));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(i) + 0.5f * static_cast<float>(values_.size());
    tensors_.push_back({key, std::move(shape), values.data()});
  }
  absl::Status Write() { return WriteAdapter(dir_.File("adapter"), config_, tensors_, {"T", "acme/tiny", {}, {}}); }
  std::string ReadError() {
    const absl::Status written = Write();
    if (!written.ok()) return std::string(written.message());
    const auto adapter = ReadAdapter(dir_.File("adapter"), Shape());
    return adapter.ok() ? "OK" : std::string(adapter.status().message());
  }
  TempDir dir_;
  AdapterConfig config_ = Config();
  std::vector<std::unique_ptr<std::vector<float>>> values_;
  std::vector<AdapterTensor> tensors_;
};

TEST_F(AdapterFolderTest, WritesPeftsKeysAndReadsThemBack) {
  MakeTensors();
  ASSERT_TRUE(Write().ok());
  const std::string folder = dir_.File("adapter");
  EXPECT_EQ(*ListDir(folder),
            (std::vector<std::string>{"README.md", "adapter_config.json", "adapter_model.safetensors"}));
  const auto set = SafetensorsSet::OpenFile(folder + "/adapter_model.safetensors");
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set->metadata().at("format"), "pt");
  const TensorView* a = set->Find("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->entry->shape, (std::vector<int64_t>{4, 8}));
  EXPECT_NE(set->Find("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"), nullptr);

  const auto adapter = ReadAdapter(folder, Shape());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  ASSERT_EQ(adapter->pairs.size(), 4u);
  EXPECT_EQ(adapter->pairs[0].target, "q_proj");
  EXPECT_EQ(adapter->pairs[1].target, "down_proj");
  EXPECT_EQ(adapter->pairs[2].layer, 1);
  EXPECT_EQ(adapter->pairs[1].in, 12);
  EXPECT_EQ(adapter->pairs[1].out, 8);
  EXPECT_EQ(adapter->pairs[0].a, *values_[0]);
  EXPECT_EQ(adapter->pairs[0].b, *values_[1]);
}

TEST_F(AdapterFolderTest, TheSameAdapterIsTheSameBytes) {
  MakeTensors();
  ASSERT_TRUE(Write().ok());
  const std::string first = ReadAll(dir_.File("adapter/adapter_model.safetensors"));
  std::swap(tensors_.front(), tensors_.back());
  ASSERT_TRUE(Write().ok());
  EXPECT_EQ(ReadAll(dir_.File("adapter/adapter_model.safetensors")), first);
}

TEST_F(AdapterFolderTest, RefusesAMissingHalf) {
  MakeTensors();
  tensors_.pop_back();
  EXPECT_THAT(ReadError(), HasSubstr("model.layers.1.mlp.down_proj has lora_A but lacks lora_B"));
}

TEST_F(AdapterFolderTest, RefusesATensorOfAnotherModel) {
  MakeTensors();
  AddTensor(LoraAKey(2, "q_proj"), {4, 8});
  EXPECT_THAT(ReadError(), HasSubstr("layers.2.self_attn.q_proj.lora_A.weight\" belongs to no linear"));
}

TEST_F(AdapterFolderTest, RefusesAnOddLayerNumber) {
  MakeTensors();
  AddTensor("base_model.model.model.layers.01.self_attn.v_proj.lora_A.weight", {4, 8});
  EXPECT_THAT(ReadError(), HasSubstr("belongs to no linear"));
}

TEST_F(AdapterFolderTest, RefusesAWrongShape) {
  MakeTensors();
  AddTensor(LoraAKey(0, "v_proj"), {4, 9});
  EXPECT_THAT(ReadError(), HasSubstr("is [4, 9]; expected [4, 8]"));
}

TEST_F(AdapterFolderTest, RefusesATargetWithoutTensors) {
  MakeTensors();
  config_.target_modules.push_back("o_proj");
  EXPECT_THAT(ReadError(), HasSubstr("target \"o_proj\" has no tensor"));
}

TEST_F(AdapterFolderTest, RefusesValuesThatAreNotFinite) {
  MakeTensors();
  values_[3]->at(7) = std::numeric_limits<float>::infinity();
  EXPECT_THAT(ReadError(), HasSubstr("not finite"));
}

TEST_F(AdapterFolderTest, RefusesToWriteAnotherRank) {
  MakeTensors();
  AddTensor(LoraAKey(0, "v_proj"), {5, 8});
  EXPECT_THAT(ReadError(), HasSubstr("is no lora_A [4, in]"));
}

}  // namespace
}  // namespace longhaul::formats
