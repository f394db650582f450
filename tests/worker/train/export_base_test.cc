// An exported base is what the engine multiplies with: the folder is read back, by the real loaders, and compared with
// the engine's own weights and with what Transformers computed over bitsandbytes' dequantised weights.
#include "worker/train/export_base.h"

#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/worker/train/golden_rig.h"
#include "worker/train/base_reader.h"

namespace longhaul::train {
namespace {

using formats::ModelSource;
using formats::StorageType;
using testing::HasSubstr;

ModelSource OpenGolden(const std::string& model) { return Must(ModelSource::Open(formats::Golden("engine_" + model))); }

std::vector<float> WeightsOf(const ModelSource& source, const formats::StoredTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.rows * tensor.cols));
  const absl::Status read = source.ReadRows(tensor.hf_name, 0, tensor.rows, values.data());
  EXPECT_TRUE(read.ok()) << read;
  return values;
}

bool IsNorm(const std::string& name) { return name.ends_with("norm.weight"); }

TEST(ExportBase, FoldersOpenWithTheSameShapeAndWeights) {
  for (const char* model :
       {"llama_tied", "llama_untied", "qwen3", "qwen3_yarn", "llama_dynamic", "llama_longrope", "llama_nf4"}) {
    SCOPED_TRACE(model);
    const ModelSource source = OpenGolden(model);
    const formats::TempDir dir;
    ASSERT_TRUE(ExportBaseWeights(source, {}, dir.File("base")).ok());
    const ModelSource exported = Must(ModelSource::Open(dir.File("base")));
    EXPECT_EQ(ModelShapeToJson(exported.shape()), ModelShapeToJson(source.shape()));
    ASSERT_EQ(exported.tensors().size(), source.tensors().size());
    for (const formats::StoredTensor& tensor : exported.tensors()) {
      EXPECT_EQ(tensor.type, StorageType::kF32) << tensor.hf_name;
      const std::vector<float> values = WeightsOf(source, *source.Find(tensor.hf_name));
      EXPECT_EQ(formats::Bits(WeightsOf(exported, tensor)), formats::Bits(values)) << tensor.hf_name;
    }
    const auto config = nlohmann::json::parse(formats::ReadAll(dir.File("base/config.json")));
    EXPECT_EQ(config["torch_dtype"], "float32");
    EXPECT_FALSE(config.contains("quantization_config"));
  }
}

// The engine over the exported folder computes the bits that it computes over the model with base nf4, and those are
// Transformers' over bitsandbytes' weights.
TEST(ExportBase, Nf4WeightsAreTheOnesOfTraining) {
  const GoldenCase nf4{"", "llama_nf4", "llama_tied", "llama_tied", BaseWeights::kNf4};
  GoldenCase exported = nf4;
  exported.base = BaseWeights::kAsStored;
  ExportBaseOptions options;
  options.base = BaseWeights::kNf4;
  options.threads = 2;
  const formats::TempDir dir;
  ASSERT_TRUE(ExportBaseWeights(OpenGolden("llama_tied"), options, dir.path()).ok());
  const Expected expected("llama_nf4");
  const TokenBatch batch = expected.batch.view();
  const std::vector<double> logits = Engine(exported, ComputeType::kF64, dir.path()).Logits(batch);
  EXPECT_EQ(logits, Engine(nf4, ComputeType::kF64).Logits(batch));
  EXPECT_LE(RelativeError(logits, Doubles(expected.set, "logits")), 1e-9);
}

TEST(ExportBase, Bf16RoundsWhatABf16RunPacks) {
  const ModelSource source = OpenGolden("llama_tied");
  ExportBaseOptions options;
  options.base = BaseWeights::kNf4;
  options.compute = ComputeType::kBF16;
  const formats::TempDir dir;
  ASSERT_TRUE(ExportBaseWeights(source, options, dir.path()).ok());
  const ModelSource exported = Must(ModelSource::Open(dir.path()));
  const ModelWeightSource weights(source);
  BaseReader reader(weights, BaseWeights::kNf4, 1);
  for (const formats::StoredTensor& tensor : exported.tensors()) {
    EXPECT_EQ(tensor.type, IsNorm(tensor.hf_name) ? StorageType::kF32 : StorageType::kBF16) << tensor.hf_name;
    std::vector<float> values(static_cast<size_t>(tensor.rows * tensor.cols));
    const bool linear = tensor.hf_name.find("_proj.") != std::string::npos;
    ASSERT_TRUE(reader.Read(tensor.hf_name, tensor.rows, tensor.cols, linear, values.data()).ok());
    if (!IsNorm(tensor.hf_name)) {
      for (float& x : values) x = Bf16ToFloat(FloatToBf16(x));
    }
    EXPECT_EQ(formats::Bits(WeightsOf(exported, tensor)), formats::Bits(values)) << tensor.hf_name;
  }
}

TEST(ExportBase, ShardsHaveAnIndexAndReadAsOne) {
  const ModelSource source = OpenGolden("qwen3");
  ExportBaseOptions options;
  options.shard_bytes = 20'000;
  const formats::TempDir dir;
  ASSERT_TRUE(ExportBaseWeights(source, options, dir.path()).ok());
  EXPECT_FALSE(FileExists(dir.File("model.safetensors")));
  const auto index = nlohmann::json::parse(formats::ReadAll(dir.File("model.safetensors.index.json")));
  EXPECT_EQ(index["metadata"]["total_size"], source.shape().TotalParams() * 4);
  std::map<std::string, int64_t> shard_bytes;
  const ModelSource exported = Must(ModelSource::Open(dir.path()));
  for (const formats::StoredTensor& tensor : exported.tensors()) {
    shard_bytes[index["weight_map"][tensor.hf_name]] += tensor.bytes;
    EXPECT_EQ(WeightsOf(exported, tensor), WeightsOf(source, *source.Find(tensor.hf_name))) << tensor.hf_name;
  }
  EXPECT_GT(shard_bytes.size(), 5u);
  const int64_t largest_tensor = source.shape().vocab * source.shape().hidden * 4;
  for (const auto& [name, bytes] : shard_bytes) EXPECT_LE(bytes, std::max(options.shard_bytes, largest_tensor)) << name;
}

TEST(ExportBase, NeverWritesOverAModel) {
  const ModelSource source = OpenGolden("qwen3");
  const formats::TempDir dir;
  formats::WriteAll(dir.File("tokenizer.json"), "{}");
  ASSERT_TRUE(ExportBaseWeights(source, {}, dir.path()).ok());
  const std::string weights = formats::ReadAll(dir.File("model.safetensors"));
  ExportBaseOptions nf4;
  nf4.base = BaseWeights::kNf4;
  const absl::Status again = ExportBaseWeights(source, nf4, dir.path());
  EXPECT_EQ(ErrorReason(again), "FOLDER_NOT_EMPTY");
  EXPECT_THAT(std::string(again.message()), HasSubstr("config.json"));
  EXPECT_EQ(formats::ReadAll(dir.File("model.safetensors")), weights);
}

}  // namespace
}  // namespace longhaul::train
