#include "worker/formats/peft_adapter.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/env.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/formats/safetensors.h"

namespace longhaul::formats {
namespace {

// YAML reads a JSON string as one of its own.
std::string YamlString(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// One line of Markdown that can break neither the table nor the heading it stands in.
std::string CellText(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '\n' || c == '\r') {
      out += ' ';
    } else {
      if (c == '|' || c == '<') out += '\\';
      out += c;
    }
  }
  return out;
}

// PEFT writes whole numbers as integers.
nlohmann::json Number(double value) {
  if (value == std::floor(value) && std::fabs(value) < 1e15) return static_cast<int64_t>(value);
  return value;
}

absl::Status CheckTensor(const AdapterConfig& config, const AdapterTensor& tensor) {
  const bool is_a = tensor.key.ends_with(".lora_A.weight");
  const bool is_b = tensor.key.ends_with(".lora_B.weight");
  const bool ok = (is_a || is_b) && tensor.shape.size() == 2 && tensor.shape[0] > 0 && tensor.shape[1] > 0 &&
                  tensor.shape[is_a ? 0 : 1] == config.r && tensor.data != nullptr;
  if (ok) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "TENSOR_INVALID",
                   "adapter tensor \"" + tensor.key + "\" is no lora_A [" + std::to_string(config.r) +
                       ", in] or lora_B [out, " + std::to_string(config.r) + "]");
}

}  // namespace

double AdapterConfig::Scale() const {
  const auto rank = static_cast<double>(r);
  return lora_alpha / (use_rslora ? std::sqrt(rank) : rank);
}

std::string AdapterConfigToJson(const AdapterConfig& config) {
  std::vector<std::string> targets = config.target_modules;
  std::sort(targets.begin(), targets.end());
  const nlohmann::json json = {
      {"alpha_pattern", nlohmann::json::object()},
      {"base_model_name_or_path", config.base_model_name_or_path},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"layers_pattern", nullptr},
      {"layers_to_transform", nullptr},
      {"lora_alpha", Number(config.lora_alpha)},
      {"lora_dropout", config.lora_dropout},
      {"modules_to_save", nullptr},
      {"peft_type", "LORA"},
      {"r", config.r},
      {"rank_pattern", nlohmann::json::object()},
      {"revision", nullptr},
      {"target_modules", targets},
      {"task_type", "CAUSAL_LM"},
      {"use_dora", false},
      {"use_rslora", config.use_rslora},
  };
  return json.dump(2, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
}

const std::vector<std::string>& LoraTargets() {
  static const auto& targets =
      *new std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  return targets;
}

std::string LoraModulePath(int64_t layer, const std::string& target) {
  const auto& targets = LoraTargets();
  const auto index = std::find(targets.begin(), targets.end(), target) - targets.begin();
  LH_CHECK(index < 7, target);
  return "model.layers." + std::to_string(layer) + (index < 4 ? ".self_attn." : ".mlp.") + target;
}

std::string LoraAKey(int64_t layer, const std::string& target) {
  return "base_model.model." + LoraModulePath(layer, target) + ".lora_A.weight";
}

std::string LoraBKey(int64_t layer, const std::string& target) {
  return "base_model.model." + LoraModulePath(layer, target) + ".lora_B.weight";
}

std::pair<int64_t, int64_t> LoraTargetDims(const ModelShape& shape, const std::string& target) {
  if (target == "q_proj") return {shape.q_dim(), shape.hidden};
  if (target == "k_proj" || target == "v_proj") return {shape.kv_dim(), shape.hidden};
  if (target == "o_proj") return {shape.hidden, shape.q_dim()};
  if (target == "gate_proj" || target == "up_proj") return {shape.intermediate, shape.hidden};
  LH_CHECK(target == "down_proj", target);
  return {shape.hidden, shape.intermediate};
}

std::string ModelCardToMarkdown(const ModelCard& card) {
  std::string out = "---\nbase_model: " + YamlString(card.base_model) + "\nlibrary_name: peft\n";
  if (!card.tags.empty()) {
    out += "tags:\n";
    for (const std::string& tag : card.tags) out += "- " + YamlString(tag) + "\n";
  }
  out += "---\n\n# " + CellText(card.title) + "\n\n";
  out += "A LoRA adapter for " + CellText(card.base_model) + ".\n";
  if (!card.facts.empty()) {
    out += "\n| fact | value |\n|---|---|\n";
    for (const auto& [name, value] : card.facts) out += "| " + CellText(name) + " | " + CellText(value) + " |\n";
  }
  return out;
}

absl::Status WriteAdapter(const std::string& folder, const AdapterConfig& config,
                          const std::vector<AdapterTensor>& tensors, const ModelCard& card) {
  SafetensorsWriter writer;
  for (const AdapterTensor& tensor : tensors) {
    LH_RETURN_IF_ERROR(CheckTensor(config, tensor));
    writer.Add({tensor.key, StorageType::kF32, tensor.shape, tensor.data});
  }
  LH_RETURN_IF_ERROR(CreateDirs(folder));
  LH_RETURN_IF_ERROR(writer.WriteFile(JoinPath(folder, "adapter_model.safetensors")));
  LH_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(folder, "README.md"), ModelCardToMarkdown(card)));
  return WriteFileAtomic(JoinPath(folder, "adapter_config.json"), AdapterConfigToJson(config));
}

}  // namespace longhaul::formats
