// What a job asks of the engine, as far as memory, cost and bits depend on it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/device_facts.h"
#include "model/model_shape.h"
#include "nlohmann/json_fwd.hpp"

namespace longhaul {

// The linears that may carry LoRA, in the order of everything that lists them.
enum class LoraTarget : int { kQ = 0, kK, kV, kO, kGate, kUp, kDown };
inline constexpr int kLoraTargets = 7;
inline constexpr uint32_t kAllLoraTargets = (1u << kLoraTargets) - 1;

// "q_proj" ... "down_proj".
const char* LoraTargetName(LoraTarget target);
// INVALID_ARGUMENT naming the module and the seven that exist. Repeats are errors; an empty list is too.
absl::StatusOr<uint32_t> LoraTargetsFromNames(const std::vector<std::string>& names);
std::vector<std::string> LoraTargetNames(uint32_t targets);
inline bool HasTarget(uint32_t targets, LoraTarget target) { return (targets >> static_cast<int>(target)) & 1u; }
int64_t LoraTargetIn(const ModelShape& shape, LoraTarget target);
int64_t LoraTargetOut(const ModelShape& shape, LoraTarget target);

// kF64 is the oracle: the same engine in double, for tests only. kFP8 is a GPU's, and never a default: frozen linears
// in E4M3, all else as in kBF16.
enum class ComputeType { kF32, kBF16, kF64, kFP8 };
enum class BaseWeights { kNf4, kAsStored };

const char* ComputeTypeName(ComputeType type);  // "f32", "bf16", "f64", "fp8"
const char* BaseWeightsName(BaseWeights base);  // "nf4", "as_stored"

struct TrainShape {
  ComputeType compute = ComputeType::kF32;
  BaseWeights base = BaseWeights::kNf4;
  int64_t lora_rank = 16;
  uint32_t lora_targets = kAllLoraTargets;  // bit i = LoraTarget i; 0 only to generate
  bool deterministic = false;               // CUDA: the same bits in every run; a CPU device always is
  bool lora_dropout = false;                // any dropout: masked inputs need a tile of their own
  int64_t batch_size = 1;                   // sequences a micro-batch
  int64_t sequence_length = 2048;           // tokens a sequence, at most
  int64_t longest_document = 0;             // tokens; 0 = sequence_length
  int64_t accumulation_steps = 1;
  int64_t dataset_tokens = 0;  // held in RAM, tokenised
  int64_t dataset_bytes = 0;   // on disk
  int cpu_threads = 0;         // 0 = all of the device's

  int64_t tokens() const { return batch_size * sequence_length; }  // a micro-batch, at most
  int64_t longest() const { return longest_document > 0 ? longest_document : sequence_length; }
};

// What a job computes in where it leaves that to the device.
ComputeType FastestCompute(const DeviceFacts& facts);

absl::Status ValidateTrainShape(const TrainShape& train);
// Elements of all A and B of the adapter.
int64_t AdapterParams(const ModelShape& shape, const TrainShape& train);

nlohmann::json TrainShapeToJson(const TrainShape& train);
absl::StatusOr<TrainShape> TrainShapeFromJson(const nlohmann::json& json);

}  // namespace longhaul
