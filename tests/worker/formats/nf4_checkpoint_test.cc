// A bitsandbytes NF4 checkpoint in a Hugging Face folder, whose q_proj is a matrix that CUDA quantised.
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/half.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/worker/formats/test_support.h"
#include "worker/formats/bnb_nf4.h"
#include "worker/formats/model_source.h"

namespace longhaul::formats {
namespace {

using testing::HasSubstr;

constexpr int64_t kHidden = 256;
constexpr int64_t kInter = 64;
constexpr int64_t kVocab = 16;
constexpr char kQuery[] = "model.layers.0.self_attn.q_proj.weight";

class Nf4CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    const nlohmann::json config = {
        {"architectures", {"LlamaForCausalLM"}},
        {"model_type", "llama"},
        {"hidden_size", kHidden},
        {"intermediate_size", kInter},
        {"num_hidden_layers", 1},
        {"num_attention_heads", 8},
        {"num_key_value_heads", 8},
        {"head_dim", 16},
        {"rms_norm_eps", 1e-5},
        {"max_position_embeddings", 64},
        {"vocab_size", kVocab},
        {"hidden_act", "silu"},
        {"tie_word_embeddings", true},
        {"quantization_config",
         {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"bnb_4bit_quant_type", "nf4"}}}};
    WriteAll(dir_.File("config.json"), config.dump());
    auto golden = SafetensorsSet::OpenFile(Golden("nf4_cuda.safetensors"));
    ASSERT_TRUE(golden.ok());
    golden_ = std::make_unique<SafetensorsSet>(*std::move(golden));
    zeros_.assign(kHidden * kHidden * 2, '\0');
    const std::string layer = "model.layers.0.";
    Plain("model.embed_tokens.weight", {kVocab, kHidden});
    Plain("model.norm.weight", {kHidden});
    Plain(layer + "input_layernorm.weight", {kHidden});
    Plain(layer + "post_attention_layernorm.weight", {kHidden});
    Plain(layer + "self_attn.k_proj.weight", {128, kHidden});
    Plain(layer + "self_attn.v_proj.weight", {128, kHidden});
    Plain(layer + "self_attn.o_proj.weight", {kHidden, 128});
    Plain(layer + "mlp.gate_proj.weight", {kInter, kHidden});
    Plain(layer + "mlp.up_proj.weight", {kInter, kHidden});
    Plain(layer + "mlp.down_proj.weight", {kHidden, kInter});
  }
  void Plain(const std::string& name, std::vector<int64_t> shape) {
    tensors_[name] = {name, StorageType::kF16, std::move(shape), zeros_.data()};
  }
  void FromGolden(const std::string& name, const std::string& golden_name, std::vector<int64_t> shape) {
    const TensorView* view = golden_->Find(golden_name);
    tensors_[name] = {name, view->entry->type, std::move(shape), view->data};
  }
  // [128, 256] f16 in 512 blocks of 64.
  void AddQuery(bool nested, std::vector<int64_t> shape = {128, kHidden}) {
    Nf4QuantState state;
    state.shape = std::move(shape);
    state.dtype = StorageType::kF16;
    state.nested = nested;
    state.nested_offset = Floats(*golden_, "normal_f16.dq_offset")[0];
    json_ = Nf4QuantStateToJson(state);
    const std::string name = kQuery;
    FromGolden(name, "normal_f16.packed", {128 * kHidden / 2, 1});
    FromGolden(name + ".absmax", nested ? "normal_f16.dq_absmax_u8" : "normal_f16.absmax", {512});
    FromGolden(name + ".quant_map", "code", {16});
    if (nested) {
      FromGolden(name + ".nested_absmax", "normal_f16.dq_nested_absmax", {2});
      FromGolden(name + ".nested_quant_map", "nested_code", {256});
    }
    const std::string state_name = name + ".quant_state.bitsandbytes__nf4";
    tensors_[state_name] = {state_name, StorageType::kU8, {static_cast<int64_t>(json_.size())}, json_.data()};
  }
  absl::StatusOr<ModelSource> Open() {
    SafetensorsWriter writer;
    for (const auto& [name, tensor] : tensors_) writer.Add(tensor);
    LH_CHECK(writer.WriteFile(dir_.File("model.safetensors")).ok());
    return ModelSource::Open(dir_.path());
  }
  void ExpectQuery(const std::string& golden_name) {
    const auto source = Open();
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ(source->Find(kQuery)->type, StorageType::kNF4);
    const std::vector<float> expected = Floats(*golden_, golden_name);
    std::vector<float> out(expected.size(), std::nanf(""));
    ASSERT_TRUE(source->ReadRows(kQuery, 0, 128, out.data()).ok());
    EXPECT_EQ(Bits(out), Bits(expected));
    std::vector<float> part(3 * kHidden, std::nanf(""));
    ASSERT_TRUE(source->ReadRows(kQuery, 77, 80, part.data()).ok());
    EXPECT_EQ(Bits(part), Bits({expected.begin() + 77 * kHidden, expected.begin() + 80 * kHidden}));
    EXPECT_EQ(source->ReadStoredRows(kQuery, 0, 1, out.data()).code(), absl::StatusCode::kFailedPrecondition);
    ExpectView(*source, expected);
  }
  // What FindNf4 shows dequantises to the same values.
  void ExpectView(const ModelSource& source, const std::vector<float>& expected) {
    EXPECT_FALSE(source.FindNf4("model.norm.weight").has_value());
    EXPECT_FALSE(source.FindNf4("no such tensor").has_value());
    const auto view = source.FindNf4(kQuery);
    ASSERT_TRUE(view.has_value());
    const int64_t n = view->state->elements(), block = view->state->block_size, blocks = Nf4Blocks(n, block);
    ASSERT_EQ(n, static_cast<int64_t>(expected.size()));
    std::vector<float> scales(static_cast<size_t>(blocks)), out(expected.size());
    if (view->state->nested) {
      DequantizeAbsmax(view->absmax, view->nested_map, view->nested_absmax, view->state->nested_offset, 0, blocks,
                       view->state->nested_block_size, scales.data());
    } else {
      std::memcpy(scales.data(), view->absmax, scales.size() * sizeof(float));
    }
    DequantizeNf4(view->packed, scales.data(), 0, n, block, out.data());
    for (float& value : out) value = F16ToFloat(FloatToF16(value));
    EXPECT_EQ(Bits(out), Bits(expected));
  }
  std::string Error() {
    const auto source = Open();
    return source.ok() ? "OK" : std::string(source.status().message());
  }
  TempDir dir_;
  std::unique_ptr<SafetensorsSet> golden_;
  std::string zeros_;
  std::string json_;
  std::map<std::string, SafetensorsInput> tensors_;
};

// bitsandbytes hands its packed bytes about as [n/2, 1] and as the transposed view [1, n/2]. The matrix is the same:
// only the quant_state's shape says what it is, and that is never transposed.
TEST_F(Nf4CheckpointTest, ATransposedViewIsTheSameMatrix) {
  AddQuery(/*nested=*/true);
  FromGolden(kQuery, "normal_f16.packed", {1, 128 * kHidden / 2});
  ExpectQuery("normal_f16.dq_dequant");
  AddQuery(/*nested=*/true, {kHidden, 128});
  EXPECT_THAT(Error(), HasSubstr(std::string(kQuery)));
}

TEST_F(Nf4CheckpointTest, PlainScalesReadAsCudaDequantises) {
  AddQuery(/*nested=*/false);
  ExpectQuery("normal_f16.dequant");
}

TEST_F(Nf4CheckpointTest, NestedScalesReadAsCudaDequantises) {
  AddQuery(/*nested=*/true);
  ExpectQuery("normal_f16.dq_dequant");
}

TEST_F(Nf4CheckpointTest, PackedBytesMayPoseAsAnotherDtype) {
  AddQuery(/*nested=*/true);
  tensors_[kQuery].type = StorageType::kBF16;
  tensors_[kQuery].shape = {128 * kHidden / 4, 1};
  ExpectQuery("normal_f16.dq_dequant");
}

TEST_F(Nf4CheckpointTest, RefusesAnIncompleteOrWrongState) {
  const std::string name = kQuery;
  AddQuery(true);
  ASSERT_EQ(Error(), "OK");
  tensors_.erase(name + ".nested_absmax");
  EXPECT_THAT(Error(), HasSubstr("q_proj.weight.nested_absmax\" is missing"));
  AddQuery(true);
  tensors_[name + ".absmax"].shape = {511};
  EXPECT_THAT(Error(), HasSubstr("expected U8 [512]"));
  AddQuery(true);
  tensors_[name].shape = {128 * kHidden / 2 - 1, 1};
  EXPECT_THAT(Error(), HasSubstr("NF4 of its shape has 16384"));
  AddQuery(true);
  const std::vector<float> other(16, 0.5f);
  tensors_[name + ".quant_map"].data = other.data();
  EXPECT_THAT(Error(), HasSubstr("other codes than NF4's"));
  AddQuery(true);
  json_.replace(json_.find("nested_offset"), 13, "nested_offsex");
  tensors_[name + ".quant_state.bitsandbytes__nf4"].data = json_.data();
  EXPECT_THAT(Error(), HasSubstr("nested_offset is missing"));
  AddQuery(true);
  json_.replace(json_.find("[128"), 4, "[127");
  EXPECT_THAT(Error(), HasSubstr("is [127, 256]; expected [128, 256]"));
  AddQuery(true);
  tensors_.erase(name + ".quant_state.bitsandbytes__nf4");  // packed bytes without a state are no matrix
  EXPECT_THAT(Error(), HasSubstr("is [16384, 1]; expected [128, 256]"));
}

}  // namespace
}  // namespace longhaul::formats
