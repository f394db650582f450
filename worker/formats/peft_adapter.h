// A LoRA adapter as Hugging Face PEFT keeps it: adapter_config.json, adapter_model.safetensors, README.md.
// Source: FORMATS.md section 3. Tests: tests/worker/formats/peft_adapter_test.cc
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/model_shape.h"

namespace longhaul::formats {

struct AdapterConfig {
  std::string base_model_name_or_path;
  int64_t r = 0;
  double lora_alpha = 0.0;
  double lora_dropout = 0.0;
  std::vector<std::string> target_modules;  // "q_proj", ...; written sorted
  bool use_rslora = false;

  // What B * A is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA.
  double Scale() const;
};

// adapter_config.json: sorted keys, indent 2, ASCII, no newline at the end.
std::string AdapterConfigToJson(const AdapterConfig& config);
// `file` names the text in messages. INVALID_ARGUMENT names the key; UNIMPLEMENTED (MODEL_UNSUPPORTED) names a feature
// that changes the result and that Longhaul lacks (DoRA, rank patterns, saved modules, trained biases, ...).
absl::StatusOr<AdapterConfig> AdapterConfigFromJson(std::string_view json, const std::string& file);

// "model.layers.3.self_attn.q_proj" for (3, "q_proj"). REQUIRES: target is one of the seven linears of a layer.
std::string LoraModulePath(int64_t layer, const std::string& target);
// "base_model.model." + LoraModulePath + ".lora_A.weight", or lora_B.
std::string LoraAKey(int64_t layer, const std::string& target);
std::string LoraBKey(int64_t layer, const std::string& target);
// The seven: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
const std::vector<std::string>& LoraTargets();
// [out, in] of a target's frozen weight. REQUIRES: target is one of LoraTargets().
std::pair<int64_t, int64_t> LoraTargetDims(const ModelShape& shape, const std::string& target);

// A tensor to write as F32: `data` is the caller's and outlives the call. A: [r, in]; B: [out, r].
struct AdapterTensor {
  std::string key;
  std::vector<int64_t> shape;
  const float* data = nullptr;
};

// The model card. `facts` become a table in the order given.
struct ModelCard {
  std::string title;
  std::string base_model;
  std::vector<std::string> tags;
  std::vector<std::pair<std::string, std::string>> facts;
};
std::string ModelCardToMarkdown(const ModelCard& card);

// Writes the three files into `folder`, which is created; each file durably, the config last, so that a folder with a
// config is whole. Errors: INVALID_ARGUMENT for a tensor that does not fit the config, and the file system's.
absl::Status WriteAdapter(const std::string& folder, const AdapterConfig& config,
                          const std::vector<AdapterTensor>& tensors, const ModelCard& card);

struct LoraPair {
  int64_t layer = 0;
  std::string target;
  int64_t in = 0;
  int64_t out = 0;
  std::vector<float> a;  // [r, in]
  std::vector<float> b;  // [out, r]
};

struct LoadedAdapter {
  AdapterConfig config;
  std::vector<LoraPair> pairs;  // by layer, then in the order of LoraTargets()
};

// Reads an adapter back and checks every tensor against the base model: known module, both halves there, shapes, rank,
// finite. INVALID_ARGUMENT names file, tensor, found and expected.
absl::StatusOr<LoadedAdapter> ReadAdapter(const std::string& folder, const ModelShape& shape);

}  // namespace longhaul::formats
