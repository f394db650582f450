#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>

#include "base/env.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/formats/dequant.h"
#include "worker/formats/file_error.h"
#include "worker/formats/json_strict.h"
#include "worker/formats/peft_adapter.h"
#include "worker/formats/safetensors.h"

namespace longhaul::formats {
namespace {

// True where the key is absent or holds what an adapter without that feature holds.
bool IsUnset(const nlohmann::json& config, const char* key) {
  if (!config.contains(key)) return true;
  const nlohmann::json& value = config[key];
  return value.is_null() || value == false || ((value.is_object() || value.is_array()) && value.empty());
}

absl::Status CheckFeatures(const nlohmann::json& config, const std::string& file) {
  for (const char* key : {"alpha_pattern", "rank_pattern", "use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias",
                          "layer_replication", "megatron_config", "eva_config", "trainable_token_indices", "use_qalora",
                          "target_parameters", "exclude_modules"}) {
    if (!IsUnset(config, key)) return Unsupported(file, std::string("adapters with ") + key + " are not supported");
  }
  if (config.contains("bias") && config["bias"] != "none") {
    return Unsupported(file, "adapters with trained biases are not supported");
  }
  return absl::OkStatus();
}

absl::StatusOr<double> FiniteNumber(const nlohmann::json& config, const char* key, double absent,
                                    const std::string& file) {
  if (!config.contains(key)) return absent;
  if (!config[key].is_number() || !std::isfinite(config[key].get<double>())) {
    return BadFile(file, std::string(key) + " must be a number");
  }
  return config[key].get<double>();
}

struct ParsedKey {
  int64_t layer = 0;
  std::string target;
  bool is_a = false;
};

std::optional<ParsedKey> ParseKey(const std::string& key) {
  constexpr std::string_view kPrefix = "base_model.model.model.layers.";
  if (!key.starts_with(kPrefix)) return std::nullopt;
  ParsedKey parsed;
  const char* end = key.data() + key.size();
  const auto number = std::from_chars(key.data() + kPrefix.size(), end, parsed.layer);
  if (number.ec != std::errc() || parsed.layer < 0) return std::nullopt;
  for (const std::string& target : LoraTargets()) {
    for (const bool is_a : {true, false}) {
      // Comparing whole keys also refuses "007" and "+7" as layer numbers.
      if (key != (is_a ? LoraAKey(parsed.layer, target) : LoraBKey(parsed.layer, target))) continue;
      parsed.target = target;
      parsed.is_a = is_a;
      return parsed;
    }
  }
  return std::nullopt;
}

absl::Status LoadHalf(const TensorView& view, int64_t rows, int64_t cols, std::vector<float>* out) {
  const SafetensorsEntry& entry = *view.entry;
  const std::string shown = "tensor \"" + Printable(entry.name) + "\" is ";
  if (entry.shape != std::vector<int64_t>{rows, cols}) {
    return BadFile(*view.file, shown + ShapeText(entry.shape) + "; expected " + ShapeText({rows, cols}));
  }
  if (entry.type != StorageType::kF32 && entry.type != StorageType::kF16 && entry.type != StorageType::kBF16) {
    return BadFile(*view.file, shown + StorageTypeName(entry.type) + "; expected F32, F16 or BF16");
  }
  out->resize(static_cast<size_t>(rows * cols));
  DequantizeRows(entry.type, view.data, rows, cols, out->data());
  if (!std::all_of(out->begin(), out->end(), [](float x) { return std::isfinite(x); })) {
    return BadFile(*view.file, shown + "not finite everywhere");
  }
  return absl::OkStatus();
}

size_t TargetIndex(const std::string& target) {
  const auto& targets = LoraTargets();
  return static_cast<size_t>(std::find(targets.begin(), targets.end(), target) - targets.begin());
}

}  // namespace

absl::StatusOr<AdapterConfig> AdapterConfigFromJson(std::string_view json, const std::string& file) {
  LH_ASSIGN_OR_RETURN(nlohmann::json parsed, ParseJsonStrict(json, file));
  if (!parsed.is_object()) return BadFile(file, "is no JSON object");
  if (!parsed.contains("peft_type") || !parsed["peft_type"].is_string()) return BadFile(file, "lacks peft_type");
  if (parsed["peft_type"] != "LORA") {
    return Unsupported(file,
                       "peft_type is \"" + Printable(parsed["peft_type"].get<std::string>()) + "\"; LORA is supported");
  }
  LH_RETURN_IF_ERROR(CheckFeatures(parsed, file));
  AdapterConfig config;
  if (parsed.contains("base_model_name_or_path") && parsed["base_model_name_or_path"].is_string()) {
    config.base_model_name_or_path = parsed["base_model_name_or_path"].get<std::string>();
  }
  // PEFT's own defaults where a key is absent.
  LH_ASSIGN_OR_RETURN(const double rank, FiniteNumber(parsed, "r", 8.0, file));
  if (rank < 1.0 || rank > limits::kMaxLoraRank || rank != std::floor(rank)) {
    return BadFile(file, "r must be a whole number from 1 to " + std::to_string(limits::kMaxLoraRank));
  }
  config.r = static_cast<int64_t>(rank);
  LH_ASSIGN_OR_RETURN(config.lora_alpha, FiniteNumber(parsed, "lora_alpha", 8.0, file));
  LH_ASSIGN_OR_RETURN(config.lora_dropout, FiniteNumber(parsed, "lora_dropout", 0.0, file));
  if (parsed.contains("use_rslora")) {
    if (!parsed["use_rslora"].is_boolean()) return BadFile(file, "use_rslora must be true or false");
    config.use_rslora = parsed["use_rslora"].get<bool>();
  }
  if (!parsed.contains("target_modules") || !parsed["target_modules"].is_array()) {
    return BadFile(file, "target_modules must be a list of names");
  }
  for (const nlohmann::json& target : parsed["target_modules"]) {
    if (!target.is_string()) return BadFile(file, "target_modules must be a list of names");
    config.target_modules.push_back(target.get<std::string>());
  }
  std::sort(config.target_modules.begin(), config.target_modules.end());
  return config;
}

absl::StatusOr<LoadedAdapter> ReadAdapter(const std::string& folder, const ModelShape& shape) {
  const std::string config_path = JoinPath(folder, "adapter_config.json");
  LH_ASSIGN_OR_RETURN(const std::string json, ReadFile(config_path, limits::kMaxJsonFileBytes));
  LoadedAdapter adapter;
  LH_ASSIGN_OR_RETURN(adapter.config, AdapterConfigFromJson(json, config_path));
  const std::string weights_path = JoinPath(folder, "adapter_model.safetensors");
  LH_ASSIGN_OR_RETURN(const SafetensorsSet weights, SafetensorsSet::OpenFile(weights_path));
  std::map<std::pair<int64_t, size_t>, LoraPair> pairs;
  for (const auto& [key, view] : weights.tensors()) {
    const std::optional<ParsedKey> parsed = ParseKey(key);
    if (!parsed || parsed->layer >= shape.layers) {
      return BadFile(weights_path, "tensor \"" + Printable(key) + "\" belongs to no linear of the base model");
    }
    LoraPair& pair = pairs[{parsed->layer, TargetIndex(parsed->target)}];
    pair.layer = parsed->layer;
    pair.target = parsed->target;
    std::tie(pair.out, pair.in) = LoraTargetDims(shape, parsed->target);
    const int64_t r = adapter.config.r;
    LH_RETURN_IF_ERROR(parsed->is_a ? LoadHalf(view, r, pair.in, &pair.a) : LoadHalf(view, pair.out, r, &pair.b));
  }
  for (auto& [place, pair] : pairs) {
    if (pair.a.empty() || pair.b.empty()) {
      return BadFile(weights_path, LoraModulePath(pair.layer, pair.target) + " has lora_" +
                                       (pair.a.empty() ? "B" : "A") + " but lacks lora_" +
                                       (pair.a.empty() ? "A" : "B"));
    }
    adapter.pairs.push_back(std::move(pair));
  }
  if (adapter.pairs.empty()) return BadFile(weights_path, "holds no LoRA tensor");
  for (const std::string& target : adapter.config.target_modules) {
    const bool found = std::any_of(adapter.pairs.begin(), adapter.pairs.end(), [&target](const LoraPair& pair) {
      const std::string module = LoraModulePath(pair.layer, pair.target);
      return module == target || module.ends_with("." + target);
    });
    if (!found) return BadFile(config_path, "target \"" + Printable(target) + "\" has no tensor in " + weights_path);
  }
  return adapter;
}

}  // namespace longhaul::formats
