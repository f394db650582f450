#include "model/train_shape.h"

#include <iterator>

#include "base/error.h"
#include "base/format.h"
#include "base/limits.h"
#include "model/json_fields.h"

namespace longhaul {
namespace {

const std::string kTargetNames[kLoraTargets] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                "gate_proj", "up_proj", "down_proj"};
const std::vector<std::string>& ComputeNames() {
  static const std::vector<std::string> names = {"f32", "bf16", "f64", "fp8"};
  return names;
}
const std::vector<std::string>& BaseNames() {
  static const std::vector<std::string> names = {"nf4", "as_stored"};
  return names;
}
constexpr int64_t kMaxTokens = int64_t{1} << 31;  // ids and positions are i32
constexpr int64_t kMaxDatasetTokens = int64_t{1} << 44;
constexpr int kMaxThreads = 4096;

}  // namespace

const char* LoraTargetName(LoraTarget target) { return kTargetNames[static_cast<int>(target)].c_str(); }
const char* ComputeTypeName(ComputeType type) { return ComputeNames()[static_cast<size_t>(type)].c_str(); }
const char* BaseWeightsName(BaseWeights base) { return BaseNames()[static_cast<size_t>(base)].c_str(); }

absl::StatusOr<uint32_t> LoraTargetsFromNames(const std::vector<std::string>& names) {
  const std::string field = "target_modules";
  if (names.empty()) return InvalidField(field, "is empty; name at least one of q_proj ... down_proj");
  uint32_t targets = 0;
  for (const std::string& name : names) {
    int found = -1;
    for (int i = 0; i < kLoraTargets; ++i) {
      if (kTargetNames[i] == name) found = i;
    }
    if (found < 0) {
      const std::string near = NearestWord(name, std::begin(kTargetNames), std::end(kTargetNames));
      return InvalidField(field, "has \"" + name + "\"; " + (near.empty() ? "" : "did you mean \"" + near + "\"? ") +
                                     "They are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj");
    }
    if ((targets >> found) & 1u) return InvalidField(field, "has \"" + name + "\" twice");
    targets |= 1u << found;
  }
  return targets;
}

std::vector<std::string> LoraTargetNames(uint32_t targets) {
  std::vector<std::string> names;
  for (int i = 0; i < kLoraTargets; ++i) {
    if ((targets >> i) & 1u) names.push_back(kTargetNames[i]);
  }
  return names;
}

int64_t LoraTargetIn(const ModelShape& shape, LoraTarget target) {
  switch (target) {
    case LoraTarget::kO:
      return shape.q_dim();
    case LoraTarget::kDown:
      return shape.intermediate;
    default:
      return shape.hidden;
  }
}

int64_t LoraTargetOut(const ModelShape& shape, LoraTarget target) {
  switch (target) {
    case LoraTarget::kQ:
      return shape.q_dim();
    case LoraTarget::kK:
    case LoraTarget::kV:
      return shape.kv_dim();
    case LoraTarget::kGate:
    case LoraTarget::kUp:
      return shape.intermediate;
    default:
      return shape.hidden;
  }
}

ComputeType FastestCompute(const DeviceFacts& facts) { return facts.has_bf16 ? ComputeType::kBF16 : ComputeType::kF32; }

absl::Status ValidateTrainShape(const TrainShape& train) {
  struct Range {
    const char* field;
    int64_t value, min, max;
  };
  const Range ranges[] = {
      {"lora_rank", train.lora_rank, 1, limits::kMaxLoraRank},
      {"target_modules", train.lora_targets, 0, kAllLoraTargets},
      {"batch_size", train.batch_size, 1, limits::kMaxBatchSize},
      {"max_sequence_length", train.sequence_length, 1, limits::kMaxSequenceLength},
      {"longest_document", train.longest_document, 0, train.sequence_length},
      {"gradient_accumulation_steps", train.accumulation_steps, 1, limits::kMaxAccumulationSteps},
      {"dataset_tokens", train.dataset_tokens, 0, kMaxDatasetTokens},
      {"dataset_bytes", train.dataset_bytes, 0, limits::kMaxBlobBytes * 2},
      {"cpu_threads", train.cpu_threads, 0, kMaxThreads},
  };
  for (const Range& range : ranges) {
    if (range.value < range.min || range.value > range.max) {
      return InvalidField(range.field, "is " + std::to_string(range.value) + "; must be " + std::to_string(range.min) +
                                           " to " + std::to_string(range.max));
    }
  }
  if (train.tokens() > kMaxTokens) {
    return InvalidField("batch_size", "x max_sequence_length is " + std::to_string(train.tokens()) +
                                          " tokens a micro-batch; at most " + std::to_string(kMaxTokens));
  }
  return absl::OkStatus();
}

int64_t AdapterParams(const ModelShape& shape, const TrainShape& train) {
  int64_t per_layer = 0;
  for (int i = 0; i < kLoraTargets; ++i) {
    const LoraTarget target = static_cast<LoraTarget>(i);
    if (HasTarget(train.lora_targets, target)) {
      per_layer += train.lora_rank * (LoraTargetIn(shape, target) + LoraTargetOut(shape, target));
    }
  }
  return shape.layers * per_layer;
}

nlohmann::json TrainShapeToJson(const TrainShape& train) {
  nlohmann::json json = {{"compute", ComputeTypeName(train.compute)},
                         {"base", BaseWeightsName(train.base)},
                         {"lora_rank", train.lora_rank},
                         {"lora_targets", train.lora_targets},
                         {"lora_dropout", train.lora_dropout},
                         {"batch_size", train.batch_size},
                         {"sequence_length", train.sequence_length},
                         {"longest_document", train.longest_document},
                         {"accumulation_steps", train.accumulation_steps},
                         {"dataset_tokens", train.dataset_tokens},
                         {"dataset_bytes", train.dataset_bytes},
                         {"cpu_threads", train.cpu_threads}};
  if (train.deterministic) json["deterministic"] = true;
  return json;
}

absl::StatusOr<TrainShape> TrainShapeFromJson(const nlohmann::json& json) {
  constexpr int64_t kAny = int64_t{1} << 50;  // ValidateTrainShape has the real limits
  TrainShape train;
  JsonFields fields(json, "train shape");
  int compute = 0;
  int base = 0;
  int64_t targets = 0;
  fields.Choice("compute", ComputeNames(), &compute);
  fields.Choice("base", BaseNames(), &base);
  fields.Int("lora_rank", 0, kAny, &train.lora_rank);
  fields.Int("lora_targets", 0, kAllLoraTargets, &targets);
  fields.Bool("lora_dropout", &train.lora_dropout);
  if (fields.Find("deterministic") != nullptr) fields.Bool("deterministic", &train.deterministic);
  fields.Int("batch_size", 0, kAny, &train.batch_size);
  fields.Int("sequence_length", 0, kAny, &train.sequence_length);
  fields.Int("longest_document", 0, kAny, &train.longest_document);
  fields.Int("accumulation_steps", 0, kAny, &train.accumulation_steps);
  fields.Int("dataset_tokens", 0, kAny, &train.dataset_tokens);
  fields.Int("dataset_bytes", 0, kAny, &train.dataset_bytes);
  fields.Int("cpu_threads", 0, kMaxThreads, &train.cpu_threads);
  if (!fields.status().ok()) return fields.status();
  train.compute = static_cast<ComputeType>(compute);
  train.base = static_cast<BaseWeights>(base);
  train.lora_targets = static_cast<uint32_t>(targets);
  if (absl::Status status = ValidateTrainShape(train); !status.ok()) return status;
  return train;
}

}  // namespace longhaul
