// The facts of a decoder-only model that memory, cost and the engine follow from. A value: no files, no tensors.
// One table of family facts (family.h) and one ModelShape describe every model; the engine has no per-family code paths
// beyond what these fields say.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/rope.h"
#include "nlohmann/json_fwd.hpp"

namespace longhaul {

struct ModelShape {
  std::string family;  // "llama", "qwen3", ...: a key of the family table
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t heads = 0;  // query heads
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  bool tied_embeddings = false;
  bool qk_norm = false;  // per-head RMSNorm of q and k before RoPE
  RopeFacts rope;

  int64_t q_dim() const { return heads * head_dim; }
  int64_t kv_dim() const { return kv_heads * head_dim; }
  int64_t LinearParamsPerLayer() const {
    return hidden * (q_dim() + 2 * kv_dim()) + q_dim() * hidden + 3 * hidden * intermediate;
  }
  int64_t TotalParams() const;  // embedding counted once if tied
};

// Every limit of the fields, in one place; the message names the field, its value and the limit.
absl::Status ValidateModelShape(const ModelShape& shape);

// Reads a Hugging Face config.json (FORMATS.md section 4). INVALID_ARGUMENT names the key and what is expected;
// UNIMPLEMENTED with reason MODEL_UNSUPPORTED names the feature that this family needs and Longhaul lacks.
absl::StatusOr<ModelShape> ModelShapeFromConfigJson(const std::string& config_json);

// The other way: a config.json that gives this shape back and that Transformers opens. No token ids, no dtype.
// REQUIRES: the shape's family is a supported one.
nlohmann::json ConfigJsonOfModelShape(const ModelShape& shape);

// Our own JSON of a shape (the memory plan and the worker's cache carry it).
nlohmann::json ModelShapeToJson(const ModelShape& shape);
absl::StatusOr<ModelShape> ModelShapeFromJson(const nlohmann::json& json);

}  // namespace longhaul
