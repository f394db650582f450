#include "wire/job_spec.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/limits.h"
#include "model/train_shape.h"

namespace longhaul::wire {
namespace {

constexpr int64_t kDefaultSequenceLength = 2048;
constexpr int64_t kDefaultCheckpointEverySteps = 20;
constexpr int64_t kDefaultBackoffSeconds = 10;

void ResolveTargets(v1::Hyperparameters* hyper) {
  uint32_t targets = kAllLoraTargets;
  if (hyper->target_modules_size() > 0) {
    const std::vector<std::string> names(hyper->target_modules().begin(), hyper->target_modules().end());
    targets = LoraTargetsFromNames(names).value_or(kAllLoraTargets);
  }
  hyper->clear_target_modules();
  for (const std::string& name : LoraTargetNames(targets)) hyper->add_target_modules(name);
}

void ResolveAdapter(v1::Hyperparameters* hyper) {
  if (!hyper->has_lora_rank()) hyper->set_lora_rank(16);
  if (!hyper->has_lora_alpha()) hyper->set_lora_alpha(2.0 * hyper->lora_rank());
  if (!hyper->has_lora_dropout()) hyper->set_lora_dropout(0);
  if (!hyper->has_use_rslora()) hyper->set_use_rslora(false);
  ResolveTargets(hyper);
}

void ResolveOptimizer(v1::Hyperparameters* hyper) {
  if (!hyper->has_learning_rate()) hyper->set_learning_rate(2e-4);
  if (hyper->schedule() == v1::LEARNING_RATE_SCHEDULE_UNSPECIFIED)
    hyper->set_schedule(v1::LEARNING_RATE_SCHEDULE_LINEAR);
  if (!hyper->has_warmup_ratio()) hyper->set_warmup_ratio(0.03);
  if (!hyper->has_weight_decay()) hyper->set_weight_decay(0);
  if (!hyper->has_adam_beta1()) hyper->set_adam_beta1(0.9);
  if (!hyper->has_adam_beta2()) hyper->set_adam_beta2(0.999);
  if (!hyper->has_adam_epsilon()) hyper->set_adam_epsilon(1e-8);
  if (!hyper->has_max_grad_norm()) hyper->set_max_grad_norm(1);
  if (!hyper->has_epochs()) hyper->set_epochs(1);
}

void ResolveData(const ModelShape& shape, v1::Hyperparameters* hyper) {
  if (!hyper->has_batch_size()) hyper->set_batch_size(1);
  if (!hyper->has_gradient_accumulation_steps()) hyper->set_gradient_accumulation_steps(1);
  if (!hyper->has_max_sequence_length()) {
    hyper->set_max_sequence_length(std::min(kDefaultSequenceLength, shape.max_position_embeddings));
  }
  if (!hyper->has_packing()) hyper->set_packing(true);
  if (!hyper->has_seed()) hyper->set_seed(42);
  if (!hyper->has_eval_examples()) hyper->set_eval_examples(0);
  if (!hyper->has_eval_every_steps()) hyper->set_eval_every_steps(0);
  if (!hyper->has_checkpoint_every_steps()) hyper->set_checkpoint_every_steps(kDefaultCheckpointEverySteps);
  if (!hyper->has_train_on_responses_only()) hyper->set_train_on_responses_only(true);
  if (!hyper->has_allow_long_positions()) hyper->set_allow_long_positions(false);
}

}  // namespace

void ResolveJobSpec(v1::JobSpec* spec, const ModelShape& shape, const std::string& model_storage) {
  v1::Hyperparameters* hyper = spec->mutable_hyperparameters();
  ResolveAdapter(hyper);
  ResolveOptimizer(hyper);
  ResolveData(shape, hyper);
  if (hyper->base_storage() == v1::BASE_STORAGE_UNSPECIFIED) {
    const bool gguf = model_storage.rfind("gguf", 0) == 0;
    hyper->set_base_storage(gguf ? v1::BASE_STORAGE_AS_STORED : v1::BASE_STORAGE_NF4);
  }
  if (!hyper->has_allow_nonidentical_resume()) hyper->set_allow_nonidentical_resume(false);
  v1::Resources* resources = spec->mutable_resources();
  if (resources->device_share() == v1::DEVICE_SHARE_UNSPECIFIED) resources->set_device_share(v1::DEVICE_SHARE_WHOLE);
  v1::RetryPolicy* retry = spec->mutable_retry();
  if (!retry->has_limit()) retry->set_limit(limits::kDefaultRetryLimit);
  if (!retry->has_backoff_seconds()) retry->set_backoff_seconds(kDefaultBackoffSeconds);
  if (spec->priority() == v1::PRIORITY_CLASS_UNSPECIFIED) spec->set_priority(v1::PRIORITY_CLASS_NORMAL);
}

}  // namespace longhaul::wire
