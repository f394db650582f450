#include "worker/train/export_base.h"

#include <cstdio>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/env.h"
#include "base/error.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/formats/safetensors.h"
#include "worker/train/base_reader.h"
#include "worker/train/weight_source.h"

namespace longhaul::train {
namespace {

using formats::StorageType;
using formats::StoredTensor;
using nlohmann::json;

constexpr char kIndexName[] = "model.safetensors.index.json";

bool IsVector(const StoredTensor& tensor) { return tensor.hf_name.ends_with("norm.weight"); }

// Only a layer's linears are ever quantised.
bool IsLinear(const StoredTensor& tensor) { return tensor.hf_name.find("_proj.weight") != std::string::npos; }

StorageType TypeOf(const StoredTensor& tensor, ComputeType compute) {
  return compute == ComputeType::kBF16 && !IsVector(tensor) ? StorageType::kBF16 : StorageType::kF32;
}

int64_t BytesOf(const StoredTensor& tensor, ComputeType compute) {
  return tensor.rows * tensor.cols * (TypeOf(tensor, compute) == StorageType::kBF16 ? 2 : 4);
}

using Shard = std::vector<const StoredTensor*>;

std::vector<Shard> SplitIntoShards(const formats::ModelSource& source, const ExportBaseOptions& options) {
  std::vector<Shard> shards;
  int64_t bytes = 0;
  for (const StoredTensor& tensor : source.tensors()) {
    const int64_t more = BytesOf(tensor, options.compute);
    if (shards.empty() || bytes + more > options.shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(&tensor);
    bytes += more;
  }
  return shards;
}

std::string ShardName(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

absl::Status WriteShard(const Shard& shard, const ExportBaseOptions& options, BaseReader* reader,
                        const std::string& path) {
  std::vector<std::vector<float>> singles;
  std::vector<std::vector<uint16_t>> halves;
  singles.reserve(shard.size());  // the writer keeps pointers into the inner vectors
  halves.reserve(shard.size());
  formats::SafetensorsWriter writer;
  std::vector<float> values;
  for (const StoredTensor* tensor : shard) {
    const StorageType type = TypeOf(*tensor, options.compute);
    values.resize(static_cast<size_t>(tensor->rows * tensor->cols));
    LH_RETURN_IF_ERROR(reader->Read(tensor->hf_name, tensor->rows, tensor->cols, IsLinear(*tensor), values.data()));
    const void* data = nullptr;
    if (type == StorageType::kBF16) {
      std::vector<uint16_t>& half = halves.emplace_back(values.size());
      for (size_t i = 0; i < values.size(); ++i) half[i] = FloatToBf16(values[i]);
      data = half.data();
    } else {
      data = singles.emplace_back(std::move(values)).data();
      values = {};
    }
    std::vector<int64_t> shape = {tensor->rows, tensor->cols};
    if (IsVector(*tensor)) shape = {tensor->cols};
    writer.Add({tensor->hf_name, type, std::move(shape), data});
  }
  return writer.WriteFile(path);
}

absl::Status WriteIndex(const std::vector<Shard>& shards, const ExportBaseOptions& options, const std::string& folder) {
  json weight_map = json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const StoredTensor* tensor : shards[i]) {
      weight_map[tensor->hf_name] = ShardName(i, shards.size());
      total += BytesOf(*tensor, options.compute);
    }
  }
  const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  return WriteFileAtomic(JoinPath(folder, kIndexName), index.dump(2) + "\n");
}

}  // namespace

absl::Status CheckExportFolder(const std::string& folder) {
  LH_RETURN_IF_ERROR(CreateDirs(folder));
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(folder));
  for (const std::string& name : names) {
    if (name != "config.json" && name != kIndexName && !name.ends_with(".safetensors")) continue;
    return MakeError(absl::StatusCode::kAlreadyExists, "FOLDER_NOT_EMPTY",
                     folder + " holds " + name + "; a base is exported into a folder without a model");
  }
  return absl::OkStatus();
}

absl::Status ExportBaseWeights(const formats::ModelSource& source, const ExportBaseOptions& options,
                               const std::string& folder) {
  LH_CHECK(options.compute != ComputeType::kF64);
  LH_RETURN_IF_ERROR(CheckExportFolder(folder));
  const ModelWeightSource weights(source);
  BaseReader reader(weights, options.base, options.threads);
  const std::vector<Shard> shards = SplitIntoShards(source, options);
  for (size_t i = 0; i < shards.size(); ++i) {
    LH_RETURN_IF_ERROR(WriteShard(shards[i], options, &reader, JoinPath(folder, ShardName(i, shards.size()))));
  }
  if (shards.size() > 1) LH_RETURN_IF_ERROR(WriteIndex(shards, options, folder));
  json config = ConfigJsonOfModelShape(source.shape());
  config["torch_dtype"] = options.compute == ComputeType::kBF16 ? "bfloat16" : "float32";
  return WriteFileAtomic(JoinPath(folder, "config.json"), config.dump(2) + "\n");
}

}  // namespace longhaul::train
