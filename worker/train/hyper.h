// The numbers of a run that are not shapes: learning rate and its schedule, AdamW, clipping, length. A value.
// Source: FORMATS.md section 9 (what Hugging Face's Trainer does).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "nlohmann/json_fwd.hpp"

namespace longhaul::train {

enum class Schedule { kLinear, kCosine, kConstant };

struct Hyper {
  double lora_alpha = 32;
  double lora_dropout = 0;
  bool use_rslora = false;
  double learning_rate = 2e-4;
  Schedule schedule = Schedule::kLinear;
  double warmup_ratio = 0.03;  // of all updates; ignored where warmup_steps >= 0
  int64_t warmup_steps = -1;
  double weight_decay = 0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double max_grad_norm = 1;  // 0 = no clipping
  double epochs = 1;         // ignored where max_steps > 0
  int64_t max_steps = 0;
  uint64_t seed = 42;                   // of the adapter's initialisation and of dropout; the data's order has its own
  int64_t eval_every_steps = 0;         // 0 = before the first and after the last update only
  int64_t checkpoint_every_steps = 20;  // 0 = the final one only
  bool allow_nonidentical_resume = false;
};

// INVALID_ARGUMENT naming the field, its value and the limit.
absl::Status ValidateHyper(const Hyper& hyper);

// s: alpha / r, or alpha / sqrt(r).
double LoraScale(const Hyper& hyper, int64_t rank);
// INVALID_ARGUMENT where that would be more than limits::kMaxSteps updates, of which no checkpoint could be read again.
absl::Status CheckTotalSteps(const Hyper& hyper, int64_t updates_per_epoch);
// Optimizer updates of the whole run: max_steps, or ceil(epochs * updates_per_epoch). REQUIRES: CheckTotalSteps.
int64_t TotalSteps(const Hyper& hyper, int64_t updates_per_epoch);
int64_t WarmupSteps(const Hyper& hyper, int64_t total_steps);
// Of update t, 0-based.
double LearningRateAt(const Hyper& hyper, int64_t total_steps, int64_t t);

// Everything that a resumed run must share with the run it continues.
nlohmann::json HyperToJson(const Hyper& hyper);

}  // namespace longhaul::train
