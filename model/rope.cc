#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul {
namespace {

absl::Status CheckFactor(const std::string& field, double value) {
  if (std::isfinite(value) && value > 0 && value <= kMaxRopeFactor) return absl::OkStatus();
  return InvalidField("model.rope." + field, "is " + std::to_string(value) + "; must be above 0 and at most 1e6");
}

absl::Status CheckOriginalPositions(int64_t value) {
  if (value >= 1 && value <= limits::kMaxSequenceLength) return absl::OkStatus();
  return InvalidField("model.rope.original_max_position_embeddings",
                      "is " + std::to_string(value) + "; must be 1 to " + std::to_string(limits::kMaxSequenceLength));
}

absl::Status ValidateLlama3(const RopeFacts& rope) {
  for (const auto& [field, value] :
       {std::pair{"low_freq_factor", rope.low_freq_factor}, std::pair{"high_freq_factor", rope.high_freq_factor}}) {
    if (absl::Status status = CheckFactor(field, value); !status.ok()) return status;
  }
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    return InvalidField("model.rope.high_freq_factor", "must be above low_freq_factor");
  }
  return CheckOriginalPositions(rope.original_max_position_embeddings);
}

absl::Status ValidateYarn(const RopeFacts& rope) {
  // The ramp divides by the logarithm of theta, and a model that is scaled down has nothing to gain by it.
  if (rope.theta <= 1) return InvalidField("model.rope.theta", "must be above 1 where the scaling is yarn");
  if (rope.factor < 1) return InvalidField("model.rope.factor", "must be at least 1 where the scaling is yarn");
  for (const auto& [field, value] : {std::pair{"beta_fast", rope.beta_fast}, std::pair{"beta_slow", rope.beta_slow},
                                     std::pair{"attention_factor", rope.attention_factor}}) {
    if (absl::Status status = CheckFactor(field, value); !status.ok()) return status;
  }
  if (rope.beta_fast < rope.beta_slow) return InvalidField("model.rope.beta_fast", "must not be below beta_slow");
  return CheckOriginalPositions(rope.original_max_position_embeddings);
}

absl::Status ValidateDynamic(const RopeFacts& rope, int64_t head_dim) {
  if (rope.factor < 1) {
    return InvalidField("model.rope.factor",
                        "is " + std::to_string(rope.factor) + "; must be at least 1 where the scaling is dynamic");
  }
  // Its exponent is head_dim / (head_dim - 2).
  if (head_dim <= 2) {
    return InvalidField("model.head_dim",
                        "is " + std::to_string(head_dim) + "; must be above 2 where the RoPE scaling is dynamic");
  }
  return CheckOriginalPositions(rope.original_max_position_embeddings);
}

absl::Status ValidateLongRope(const RopeFacts& rope, int64_t head_dim) {
  for (const auto& [field, factors] :
       {std::pair{"short_factor", &rope.short_factor}, std::pair{"long_factor", &rope.long_factor}}) {
    if (static_cast<int64_t>(factors->size()) != head_dim / 2) {
      return InvalidField(std::string("model.rope.") + field, "has " + std::to_string(factors->size()) +
                                                                  " values; must have head_dim / 2, " +
                                                                  std::to_string(head_dim / 2));
    }
    for (size_t i = 0; i < factors->size(); ++i) {
      LH_RETURN_IF_ERROR(CheckFactor(std::string(field) + "[" + std::to_string(i) + "]", (*factors)[i]));
    }
  }
  LH_RETURN_IF_ERROR(CheckFactor("attention_factor", rope.attention_factor));
  return CheckOriginalPositions(rope.original_max_position_embeddings);
}

// NTK-aware: theta grows so that the slowest frequency is divided by factor x times - (factor - 1), the faster ones by
// less and the fastest not at all. 1 at the original context, where it is as without scaling.
double DynamicTheta(const RopeFacts& rope, int64_t head_dim, int64_t length) {
  const auto original = static_cast<double>(rope.original_max_position_embeddings), dim = static_cast<double>(head_dim);
  const double times = std::max(1.0, static_cast<double>(length) / original);
  return rope.theta * std::pow(rope.factor * times - (rope.factor - 1.0), dim / (dim - 2.0));
}

double Llama3(const RopeFacts& rope, double f) {
  const double length = static_cast<double>(rope.original_max_position_embeddings);
  const double wavelength = 2.0 * std::numbers::pi / f;
  if (wavelength > length / rope.low_freq_factor) return f / rope.factor;
  if (wavelength < length / rope.high_freq_factor) return f;
  const double smooth = (length / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - smooth) * f / rope.factor + smooth * f;
}

// Where yarn's ramp begins and ends, in pairs of elements.
struct YarnRamp {
  double low, high;
};

YarnRamp RampOf(const RopeFacts& rope, int64_t head_dim) {
  const double dim = static_cast<double>(head_dim);
  const auto pair_of = [&](double turns) {  // the one that turns so often within the original context
    const double length = static_cast<double>(rope.original_max_position_embeddings);
    return dim * std::log(length / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(rope.theta));
  };
  YarnRamp ramp{pair_of(rope.beta_fast), pair_of(rope.beta_slow)};
  if (rope.truncate) ramp = {std::floor(ramp.low), std::ceil(ramp.high)};
  ramp = {std::max(ramp.low, 0.0), std::min(ramp.high, dim - 1.0)};
  if (ramp.low == ramp.high) ramp.high += 0.001;
  return ramp;
}

}  // namespace

const std::vector<std::string>& RopeScalingNames() {
  static const std::vector<std::string> names = {"none", "linear", "llama3", "yarn", "dynamic", "longrope"};
  return names;
}

double YarnAttentionFactor(double factor, double scale) {
  return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

double LongRopeAttentionFactor(double factor, int64_t original_max_position_embeddings) {
  if (factor <= 1 || original_max_position_embeddings <= 1) return 1.0;
  return std::sqrt(1.0 + std::log(factor) / std::log(static_cast<double>(original_max_position_embeddings)));
}

int64_t ExtendedPositions(const RopeFacts& rope) {
  const double positions = rope.factor * static_cast<double>(rope.original_max_position_embeddings);
  return std::llround(std::min(positions, static_cast<double>(limits::kMaxSequenceLength)));
}

absl::Status ValidateRope(const RopeFacts& rope, int64_t head_dim) {
  if (!(std::isfinite(rope.theta) && rope.theta > 0)) {
    return InvalidField("model.rope.theta", "must be a positive number");
  }
  if (rope.scaling == RopeScaling::kNone) return absl::OkStatus();
  if (absl::Status status = CheckFactor("factor", rope.factor); !status.ok()) return status;
  if (rope.scaling == RopeScaling::kLlama3) return ValidateLlama3(rope);
  if (rope.scaling == RopeScaling::kYarn) return ValidateYarn(rope);
  if (rope.scaling == RopeScaling::kDynamic) return ValidateDynamic(rope, head_dim);
  if (rope.scaling == RopeScaling::kLongRope) return ValidateLongRope(rope, head_dim);
  return absl::OkStatus();
}

double RopeAttentionFactor(const RopeFacts& rope) {
  return rope.scaling == RopeScaling::kYarn || rope.scaling == RopeScaling::kLongRope ? rope.attention_factor : 1.0;
}

void RopeInverseFrequencies(const RopeFacts& rope, int64_t head_dim, int64_t length, double* out) {
  const double theta = rope.scaling == RopeScaling::kDynamic ? DynamicTheta(rope, head_dim, length) : rope.theta;
  const std::vector<double>& divisors =
      length > rope.original_max_position_embeddings ? rope.long_factor : rope.short_factor;
  const YarnRamp ramp = rope.scaling == RopeScaling::kYarn ? RampOf(rope, head_dim) : YarnRamp{0, 1};
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double f = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    switch (rope.scaling) {
      case RopeScaling::kNone:
      case RopeScaling::kDynamic:
        out[i] = f;
        break;
      case RopeScaling::kLongRope:
        out[i] = f / divisors[static_cast<size_t>(i)];
        break;
      case RopeScaling::kLinear:
        out[i] = f / rope.factor;
        break;
      case RopeScaling::kLlama3:
        out[i] = Llama3(rope, f);
        break;
      case RopeScaling::kYarn: {
        const double divided = std::clamp((static_cast<double>(i) - ramp.low) / (ramp.high - ramp.low), 0.0, 1.0);
        out[i] = divided * f / rope.factor + (1.0 - divided) * f;
        break;
      }
    }
  }
}

}  // namespace longhaul
