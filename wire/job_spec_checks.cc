// ValidateJobSpec: one Check* a message, each a list of fields with their limits.
#include <array>
#include <cmath>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/limits.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/unknown_field_set.h"
#include "model/train_shape.h"
#include "wire/enum_names.h"
#include "wire/job_spec.h"

namespace longhaul::wire {
namespace {

std::string Show(double value) {
  std::ostringstream text;
  text << value;  // "0.0002", "nan", "inf"
  return text.str();
}

// What of a hostile string is repeated in a message.
std::string Quote(const std::string& text) {
  std::string shown;
  for (const char c : text.substr(0, 64)) shown.push_back(static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c);
  return "\"" + shown + (text.size() > 64 ? "..." : "") + "\"";
}

class Faults {
 public:
  void Add(const std::string& field, const std::string& description) { violations_.push_back({field, description}); }

  void Int(const std::string& field, int64_t value, int64_t min, int64_t max) {
    if (value < min || value > max) {
      Add(field, "is " + std::to_string(value) + "; must be " + std::to_string(min) + " to " + std::to_string(max));
    }
  }
  // (above, to]: `above` itself is excluded; a NaN is outside of everything.
  void Above(const std::string& field, double value, double above, double to) {
    if (!(value > above && value <= to))
      Add(field, "is " + Show(value) + "; must be more than " + Show(above) + " and at most " + Show(to));
  }
  void Within(const std::string& field, double value, double min, double max) {
    if (!(value >= min && value <= max))
      Add(field, "is " + Show(value) + "; must be " + Show(min) + " to " + Show(max));
  }
  template <typename Enum>
  void Named(const std::string& field, Enum value) {
    const auto& type = *google::protobuf::GetEnumDescriptor<Enum>();
    if (type.FindValueByNumber(static_cast<int>(value)) == nullptr) {
      Add(field, "is " + std::to_string(static_cast<int>(value)) + ", which is unknown; one of " + EnumNames(type));
    }
  }

  absl::Status ToStatus() const {
    if (violations_.empty()) return absl::OkStatus();
    std::string message;
    for (const FieldViolation& v : violations_)
      message += (message.empty() ? "" : "; ") + v.field + " " + v.description;
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", message, violations_);
  }

 private:
  std::vector<FieldViolation> violations_;
};

// A client newer than this server says things that would be silently ignored: say so instead.
void CheckUnknownFields(const google::protobuf::Message& message, const std::string& path, Faults* faults) {
  const auto* reflection = message.GetReflection();
  const auto& unknown = reflection->GetUnknownFields(message);
  std::set<int> numbers;
  for (int i = 0; i < unknown.field_count(); ++i) numbers.insert(unknown.field(i).number());
  for (const int number : numbers) {
    faults->Add(path,
                "has the unknown field number " + std::to_string(number) + "; is the client newer than this server?");
  }
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const auto* field : fields) {
    if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE || field->is_repeated()) continue;
    CheckUnknownFields(reflection->GetMessage(message, field), path + "." + field->name(), faults);
  }
}

void CheckDataset(const v1::Dataset& dataset, const std::string& path, Faults* faults) {
  if (!IsSha256Hex(dataset.sha256()))
    faults->Add(path + ".sha256", "is " + Quote(dataset.sha256()) + "; must be 64 lower-case hex digits");
  faults->Int(path + ".size_bytes", dataset.size_bytes(), 1, limits::kMaxBlobBytes);
  faults->Named(path + ".format", dataset.format());
  if (dataset.file_name().size() > limits::kMaxDatasetFileNameBytes) {
    faults->Add(path + ".file_name", "has " + std::to_string(dataset.file_name().size()) + " bytes; at most " +
                                         std::to_string(limits::kMaxDatasetFileNameBytes));
  }
}

void CheckTargets(const v1::Hyperparameters& hyper, const std::string& path, Faults* faults) {
  const std::vector<std::string> known = LoraTargetNames(kAllLoraTargets);
  std::set<std::string> seen;
  for (int i = 0; i < hyper.target_modules_size(); ++i) {
    const std::string& name = hyper.target_modules(i);
    const std::string field = path + ".target_modules[" + std::to_string(i) + "]";
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      const std::string near = NearestWord(name, known.data(), known.data() + known.size());
      std::string all;
      for (const std::string& module : known) all += (all.empty() ? "" : ", ") + module;
      faults->Add(field, "is " + Quote(name) + "; " + (near.empty() ? "" : "did you mean \"" + near + "\"? ") +
                             "one of " + all);
    } else if (!seen.insert(name).second) {
      faults->Add(field, "is \"" + name + "\" a second time");
    }
    // The rest can only be repeats or unknown, and a hostile list may be long.
    if (i >= 4 * kLoraTargets) break;
  }
}

void CheckAdapter(const v1::Hyperparameters& hyper, const std::string& path, Faults* faults) {
  if (hyper.has_lora_rank()) faults->Int(path + ".lora_rank", hyper.lora_rank(), 1, limits::kMaxLoraRank);
  if (hyper.has_lora_alpha()) faults->Above(path + ".lora_alpha", hyper.lora_alpha(), 0, limits::kMaxLoraAlpha);
  if (hyper.has_lora_dropout())
    faults->Within(path + ".lora_dropout", hyper.lora_dropout(), 0, limits::kMaxLoraDropout);
  CheckTargets(hyper, path, faults);
  faults->Named(path + ".base_storage", hyper.base_storage());
  faults->Named(path + ".compute_type", hyper.compute_type());
}

void CheckOptimizer(const v1::Hyperparameters& hyper, const std::string& path, Faults* faults) {
  if (hyper.has_learning_rate())
    faults->Above(path + ".learning_rate", hyper.learning_rate(), 0, limits::kMaxLearningRate);
  faults->Named(path + ".schedule", hyper.schedule());
  if (hyper.has_warmup_ratio()) faults->Within(path + ".warmup_ratio", hyper.warmup_ratio(), 0, 1);
  if (hyper.has_warmup_steps()) faults->Int(path + ".warmup_steps", hyper.warmup_steps(), 0, limits::kMaxSteps);
  if (hyper.has_weight_decay())
    faults->Within(path + ".weight_decay", hyper.weight_decay(), 0, limits::kMaxWeightDecay);
  if (hyper.has_adam_beta1()) faults->Within(path + ".adam_beta1", hyper.adam_beta1(), 0, limits::kMaxAdamBeta);
  if (hyper.has_adam_beta2()) faults->Within(path + ".adam_beta2", hyper.adam_beta2(), 0, limits::kMaxAdamBeta);
  if (hyper.has_adam_epsilon()) faults->Above(path + ".adam_epsilon", hyper.adam_epsilon(), 0, limits::kMaxAdamEpsilon);
  if (hyper.has_max_grad_norm())
    faults->Within(path + ".max_grad_norm", hyper.max_grad_norm(), 0, limits::kMaxGradNorm);
  if (hyper.has_epochs()) faults->Above(path + ".epochs", hyper.epochs(), 0, limits::kMaxEpochs);
  if (hyper.has_max_steps()) faults->Int(path + ".max_steps", hyper.max_steps(), 1, limits::kMaxSteps);
}

void CheckBatches(const v1::Hyperparameters& hyper, const ModelShape* shape, const std::string& path, Faults* faults) {
  if (hyper.has_batch_size()) faults->Int(path + ".batch_size", hyper.batch_size(), 1, limits::kMaxBatchSize);
  if (hyper.has_gradient_accumulation_steps()) {
    faults->Int(path + ".gradient_accumulation_steps", hyper.gradient_accumulation_steps(), 1,
                limits::kMaxAccumulationSteps);
  }
  if (hyper.has_max_sequence_length()) {
    const int64_t length = hyper.max_sequence_length();
    const std::string field = path + ".max_sequence_length";
    // One token predicts nothing.
    faults->Int(field, length, 2, limits::kMaxSequenceLength);
    if (shape != nullptr && length <= limits::kMaxSequenceLength && length > shape->max_position_embeddings &&
        !hyper.allow_long_positions()) {
      faults->Add(field, "is " + std::to_string(length) + "; the model's max_position_embeddings is " +
                             std::to_string(shape->max_position_embeddings) +
                             " (allow_long_positions, or --allow-long-positions, permits it)");
    }
  }
  if (hyper.has_eval_examples())
    faults->Int(path + ".eval_examples", hyper.eval_examples(), 0, limits::kMaxEvalExamples);
  if (hyper.has_eval_every_steps())
    faults->Int(path + ".eval_every_steps", hyper.eval_every_steps(), 0, limits::kMaxSteps);
  if (hyper.has_checkpoint_every_steps()) {
    faults->Int(path + ".checkpoint_every_steps", hyper.checkpoint_every_steps(), 1, limits::kMaxSteps);
  }
}

void CheckResources(const v1::Resources& resources, const std::string& path, Faults* faults) {
  faults->Named(path + ".device_share", resources.device_share());
  if (resources.device_share() == v1::DEVICE_SHARE_BYTES) {
    faults->Int(path + ".device_share_bytes", resources.device_share_bytes(), 1, limits::kMaxDeviceShareBytes);
  } else if (resources.device_share_bytes() != 0) {
    faults->Add(path + ".device_share_bytes",
                "is " + std::to_string(resources.device_share_bytes()) + "; must be 0 unless device_share is BYTES");
  }
  if (resources.has_cpu_threads())
    faults->Int(path + ".cpu_threads", resources.cpu_threads(), 1, limits::kMaxCpuThreads);
}

}  // namespace

absl::Status ValidateJobSpec(const v1::JobSpec& spec, const ModelShape* shape, const JobSpecRules& rules) {
  Faults faults;
  CheckUnknownFields(spec, "spec", &faults);
  if (spec.model().empty() && rules.require_model) faults.Add("spec.model", "is empty; name a model that a worker has");
  if (spec.model().size() > limits::kMaxModelNameBytes) {
    faults.Add("spec.model", "has " + std::to_string(spec.model().size()) + " bytes; at most " +
                                 std::to_string(limits::kMaxModelNameBytes));
  }
  if (spec.has_dataset()) {
    CheckDataset(spec.dataset(), "spec.dataset", &faults);
  } else if (rules.require_dataset) {
    faults.Add("spec.dataset", "is absent; upload a file and name it by its sha256 and size_bytes");
  }
  if (spec.has_eval_dataset()) {
    CheckDataset(spec.eval_dataset(), "spec.eval_dataset", &faults);
    if (spec.hyperparameters().eval_examples() > 0) {
      faults.Add("spec.hyperparameters.eval_examples", "is " + std::to_string(spec.hyperparameters().eval_examples()) +
                                                           "; must be 0 where eval_dataset is given");
    }
  }
  const std::string hyper = "spec.hyperparameters";
  CheckAdapter(spec.hyperparameters(), hyper, &faults);
  CheckOptimizer(spec.hyperparameters(), hyper, &faults);
  CheckBatches(spec.hyperparameters(), shape, hyper, &faults);
  CheckResources(spec.resources(), "spec.resources", &faults);
  if (spec.retry().has_limit()) faults.Int("spec.retry.limit", spec.retry().limit(), 0, limits::kMaxRetryLimit);
  if (spec.retry().has_backoff_seconds()) {
    faults.Int("spec.retry.backoff_seconds", spec.retry().backoff_seconds(), 0, limits::kMaxRetryBackoffSeconds);
  }
  faults.Named("spec.priority", spec.priority());
  faults.Int("spec.deadline_seconds", spec.deadline_seconds(), 0, limits::kMaxDeadlineSeconds);
  return faults.ToStatus();
}

}  // namespace longhaul::wire
