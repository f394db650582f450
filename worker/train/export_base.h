// The frozen base as a Hugging Face folder: the very weights that the engine multiplies with, for other tools to load
// an adapter over. Backs `longhaul-tool export-base`.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "base/limits.h"
#include "model/train_shape.h"
#include "worker/formats/model_source.h"

namespace longhaul::train {

struct ExportBaseOptions {
  BaseWeights base = BaseWeights::kAsStored;
  // kF32: every tensor as F32. kBF16: linears, embedding and head as BF16, as a bf16 run packs them; norms stay F32.
  ComputeType compute = ComputeType::kF32;
  int threads = 1;
  int64_t shard_bytes = limits::kExportShardBytes;  // a file holds at least one tensor and then at most this
};

// Makes `folder` where it is absent. ALREADY_EXISTS FOLDER_NOT_EMPTY where it holds a model or part of one.
absl::Status CheckExportFolder(const std::string& folder);

// Writes config.json and model.safetensors (or shards and their index) into `folder`, which is created and must be
// empty but for files that it does not write; the config last, so that a folder with one is whole. Holds one shard in
// memory. ModelSource::Open(folder) gives the same shape, and the same weights as f32.
// REQUIRES: compute is not kF64, threads >= 1. Errors: the source's, the file system's, ALREADY_EXISTS where the folder
// holds a model, INVALID_ARGUMENT for a weight that NF4 cannot hold.
absl::Status ExportBaseWeights(const formats::ModelSource& source, const ExportBaseOptions& options,
                               const std::string& folder);

}  // namespace longhaul::train
