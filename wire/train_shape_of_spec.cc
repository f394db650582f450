#include "wire/train_shape_of_spec.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/status_macros.h"

namespace longhaul::wire {
namespace {

// English prose and code run at three to five bytes a token; the low end, so that the guess is not too small.
constexpr int64_t kGuessedBytesPerToken = 3;

ComputeType ComputeOf(v1::ComputeType type, const DeviceFacts& facts) {
  switch (type) {
    case v1::COMPUTE_TYPE_F32:
      return ComputeType::kF32;
    case v1::COMPUTE_TYPE_BF16:
      return ComputeType::kBF16;
    case v1::COMPUTE_TYPE_FP8:
      return ComputeType::kFP8;
    default:
      return FastestCompute(facts);
  }
}

}  // namespace

absl::StatusOr<TrainShape> TrainShapeOfSpec(const v1::JobSpec& resolved, const v1::DataReport* report,
                                            const DeviceFacts& facts) {
  const v1::Hyperparameters& hyper = resolved.hyperparameters();
  TrainShape train;
  train.compute = ComputeOf(hyper.compute_type(), facts);
  train.base = hyper.base_storage() == v1::BASE_STORAGE_AS_STORED ? BaseWeights::kAsStored : BaseWeights::kNf4;
  train.lora_rank = hyper.lora_rank();
  const std::vector<std::string> targets(hyper.target_modules().begin(), hyper.target_modules().end());
  LH_ASSIGN_OR_RETURN(train.lora_targets, LoraTargetsFromNames(targets));
  train.deterministic = hyper.deterministic();
  train.lora_dropout = hyper.lora_dropout() > 0;
  train.batch_size = hyper.batch_size();
  train.sequence_length = hyper.max_sequence_length();
  train.accumulation_steps = hyper.gradient_accumulation_steps();
  train.dataset_bytes = resolved.dataset().size_bytes() + resolved.eval_dataset().size_bytes();
  if (report != nullptr) {
    train.longest_document = std::min(report->longest_tokens(), train.sequence_length);
    train.dataset_tokens = report->tokens() + report->eval_tokens();
  } else {
    train.dataset_tokens = train.dataset_bytes / kGuessedBytesPerToken;
  }
  train.cpu_threads = resolved.resources().cpu_threads();
  LH_RETURN_IF_ERROR(ValidateTrainShape(train));
  return train;
}

}  // namespace longhaul::wire
