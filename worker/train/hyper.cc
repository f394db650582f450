#include "worker/train/hyper.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "base/format.h"
#include "base/limits.h"
#include "nlohmann/json.hpp"

namespace longhaul::train {
namespace {

std::string Show(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

absl::Status Check(const char* field, double value, double min, double max, bool open_min = false) {
  if (std::isfinite(value) && (open_min ? value > min : value >= min) && value <= max) return absl::OkStatus();
  return InvalidField(field, "is " + Show(value) + "; must be " + (open_min ? "above " : "") + Show(min) +
                                 (open_min ? " and at most " : " to ") + Show(max));
}

absl::Status Check(const char* field, int64_t value, int64_t min) {
  if (value >= min && value <= limits::kMaxSteps) return absl::OkStatus();
  return InvalidField(field, "is " + std::to_string(value) + "; must be " + std::to_string(min) + " to " +
                                 std::to_string(limits::kMaxSteps));
}

// Before it is known to fit an integer.
double StepsWanted(const Hyper& hyper, int64_t updates_per_epoch) {
  if (hyper.max_steps > 0) return static_cast<double>(hyper.max_steps);
  return std::max(1.0, std::ceil(hyper.epochs * static_cast<double>(updates_per_epoch)));
}

}  // namespace

absl::Status ValidateHyper(const Hyper& h) {
  const absl::Status checks[] = {
      Check("lora_alpha", h.lora_alpha, 0, limits::kMaxLoraAlpha, true),
      Check("lora_dropout", h.lora_dropout, 0, limits::kMaxLoraDropout),
      Check("learning_rate", h.learning_rate, 0, limits::kMaxLearningRate, true),
      Check("warmup_ratio", h.warmup_ratio, 0, 1),
      Check("weight_decay", h.weight_decay, 0, limits::kMaxWeightDecay),
      Check("adam_beta1", h.adam_beta1, 0, limits::kMaxAdamBeta),
      Check("adam_beta2", h.adam_beta2, 0, limits::kMaxAdamBeta),
      Check("adam_epsilon", h.adam_epsilon, 0, limits::kMaxAdamEpsilon, true),
      Check("max_grad_norm", h.max_grad_norm, 0, limits::kMaxGradNorm),
      Check("epochs", h.epochs, 0, limits::kMaxEpochs, true),
      Check("max_steps", h.max_steps, 0),
      Check("warmup_steps", h.warmup_steps, -1),
      Check("eval_every_steps", h.eval_every_steps, 0),
      Check("checkpoint_every_steps", h.checkpoint_every_steps, 0),
  };
  for (const absl::Status& status : checks) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

double LoraScale(const Hyper& hyper, int64_t rank) {
  const double r = static_cast<double>(rank);
  return hyper.lora_alpha / (hyper.use_rslora ? std::sqrt(r) : r);
}

absl::Status CheckTotalSteps(const Hyper& hyper, int64_t updates_per_epoch) {
  const double steps = StepsWanted(hyper, updates_per_epoch);
  if (steps <= static_cast<double>(limits::kMaxSteps)) return absl::OkStatus();
  return InvalidField("epochs", "is " + Show(hyper.epochs) + ", which is " + Show(steps) + " updates of " +
                                    FormatCount(updates_per_epoch) + " an epoch; a run has at most " +
                                    FormatCount(limits::kMaxSteps));
}

int64_t TotalSteps(const Hyper& hyper, int64_t updates_per_epoch) {
  const double steps = StepsWanted(hyper, updates_per_epoch);
  LH_CHECK(steps <= static_cast<double>(limits::kMaxSteps));
  return static_cast<int64_t>(steps);
}

int64_t WarmupSteps(const Hyper& hyper, int64_t total_steps) {
  if (hyper.warmup_steps >= 0) return hyper.warmup_steps;
  return static_cast<int64_t>(std::ceil(hyper.warmup_ratio * static_cast<double>(total_steps)));
}

double LearningRateAt(const Hyper& hyper, int64_t total_steps, int64_t t) {
  const int64_t warmup = WarmupSteps(hyper, total_steps);
  if (t < warmup) {
    return hyper.learning_rate * static_cast<double>(t) / static_cast<double>(std::max<int64_t>(1, warmup));
  }
  const double span = static_cast<double>(std::max<int64_t>(1, total_steps - warmup));
  switch (hyper.schedule) {
    case Schedule::kConstant:
      return hyper.learning_rate;
    case Schedule::kLinear:
      return hyper.learning_rate * std::max(0.0, static_cast<double>(total_steps - t) / span);
    case Schedule::kCosine:
      return hyper.learning_rate *
             std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * static_cast<double>(t - warmup) / span)));
  }
  return 0;
}

nlohmann::json HyperToJson(const Hyper& h) {
  return {{"lora_alpha", h.lora_alpha},
          {"lora_dropout", h.lora_dropout},
          {"use_rslora", h.use_rslora},
          {"learning_rate", h.learning_rate},
          {"schedule", static_cast<int>(h.schedule)},
          {"warmup_ratio", h.warmup_ratio},
          {"warmup_steps", h.warmup_steps},
          {"weight_decay", h.weight_decay},
          {"adam_beta1", h.adam_beta1},
          {"adam_beta2", h.adam_beta2},
          {"adam_epsilon", h.adam_epsilon},
          {"max_grad_norm", h.max_grad_norm},
          {"epochs", h.epochs},
          {"max_steps", h.max_steps},
          {"seed", h.seed}};
}

}  // namespace longhaul::train
