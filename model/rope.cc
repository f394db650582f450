#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/limits.h"

namespace longhaul {
namespace {

absl::Status CheckFactor(const char* field, double value) {
  if (std::isfinite(value) && value > 0 && value <= kMaxRopeFactor) return absl::OkStatus();
  return InvalidField(std::string("model.rope.") + field,
                      "is " + std::to_string(value) + "; must be above 0 and at most 1e6");
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
  static const std::vector<std::string> names = {"none", "linear", "llama3", "yarn"};
  return names;
}

double YarnAttentionFactor(double factor, double scale) {
  return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

int64_t YarnPositions(const RopeFacts& rope) {
  const double positions = rope.factor * static_cast<double>(rope.original_max_position_embeddings);
  return std::llround(std::min(positions, static_cast<double>(limits::kMaxSequenceLength)));
}

absl::Status ValidateRope(const RopeFacts& rope) {
  if (!(std::isfinite(rope.theta) && rope.theta > 0)) {
    return InvalidField("model.rope.theta", "must be a positive number");
  }
  if (rope.scaling == RopeScaling::kNone) return absl::OkStatus();
  if (absl::Status status = CheckFactor("factor", rope.factor); !status.ok()) return status;
  if (rope.scaling == RopeScaling::kLlama3) return ValidateLlama3(rope);
  if (rope.scaling == RopeScaling::kYarn) return ValidateYarn(rope);
  return absl::OkStatus();
}

void RopeInverseFrequencies(const RopeFacts& rope, int64_t head_dim, double* out) {
  const YarnRamp ramp = rope.scaling == RopeScaling::kYarn ? RampOf(rope, head_dim) : YarnRamp{0, 1};
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double f = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    switch (rope.scaling) {
      case RopeScaling::kNone:
        out[i] = f;
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
