#include "model/model_shape.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/limits.h"
#include "model/family.h"
#include "model/json_fields.h"

namespace longhaul {
namespace {

constexpr int64_t kMaxHidden = 1 << 16;
constexpr int64_t kMaxIntermediate = 1 << 19;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;

const std::vector<std::string>& ScalingNames() {
  static const std::vector<std::string> names = {"none", "linear", "llama3"};
  return names;
}

absl::Status OutOfRange(const char* field, int64_t value, int64_t min, int64_t max) {
  return InvalidField(std::string("model.") + field, "is " + std::to_string(value) + "; must be " +
                                                         std::to_string(min) + " to " + std::to_string(max));
}

absl::Status ValidateRope(const RopeFacts& rope) {
  const auto positive = [](double v) { return std::isfinite(v) && v > 0; };
  if (!positive(rope.theta)) return InvalidField("model.rope.theta", "must be a positive number");
  if (rope.scaling == RopeScaling::kNone) return absl::OkStatus();
  if (!positive(rope.factor) || rope.factor > 1e6)
    return InvalidField("model.rope.factor", "must be above 0 and at most 1e6");
  if (rope.scaling == RopeScaling::kLlama3) {
    if (!positive(rope.low_freq_factor) || !positive(rope.high_freq_factor) ||
        rope.high_freq_factor <= rope.low_freq_factor) {
      return InvalidField("model.rope.high_freq_factor", "must be above low_freq_factor, and both above 0");
    }
    if (rope.original_max_position_embeddings < 1 ||
        rope.original_max_position_embeddings > limits::kMaxSequenceLength) {
      return OutOfRange("rope.original_max_position_embeddings", rope.original_max_position_embeddings, 1,
                        limits::kMaxSequenceLength);
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t ModelShape::TotalParams() const {
  int64_t per_layer = LinearParamsPerLayer() + 2 * hidden;
  if (qk_norm) per_layer += 2 * head_dim;
  return layers * per_layer + hidden + vocab * hidden * (tied_embeddings ? 1 : 2);
}

absl::Status ValidateModelShape(const ModelShape& shape) {
  const FamilyFacts* family = FindFamily(shape.family);
  if (family == nullptr || family->missing[0] != '\0') {
    return MakeError(absl::StatusCode::kUnimplemented, "MODEL_UNSUPPORTED",
                     "model family \"" + shape.family + "\" is not supported" +
                         (family == nullptr ? "" : std::string(": it needs ") + family->missing) +
                         "; supported: " + SupportedFamilies());
  }
  struct Range {
    const char* field;
    int64_t value, min, max;
  };
  const Range ranges[] = {
      {"layers", shape.layers, 1, limits::kMaxLayers},
      {"hidden", shape.hidden, 8, kMaxHidden},
      {"intermediate", shape.intermediate, 8, kMaxIntermediate},
      {"heads", shape.heads, 1, kMaxHeads},
      {"kv_heads", shape.kv_heads, 1, kMaxHeads},
      {"head_dim", shape.head_dim, 2, kMaxHeadDim},
      {"vocab", shape.vocab, 2, limits::kMaxVocabSize},
      {"max_position_embeddings", shape.max_position_embeddings, 1, limits::kMaxSequenceLength},
  };
  for (const Range& range : ranges) {
    if (range.value < range.min || range.value > range.max) {
      return OutOfRange(range.field, range.value, range.min, range.max);
    }
  }
  if (shape.heads % shape.kv_heads != 0) {
    return InvalidField("model.kv_heads",
                        "is " + std::to_string(shape.kv_heads) + "; must divide heads, " + std::to_string(shape.heads));
  }
  if (shape.head_dim % 2 != 0) return InvalidField("model.head_dim", "is odd; rotary embedding needs an even one");
  if (!(shape.rms_norm_eps > 0 && shape.rms_norm_eps < 1)) {
    return InvalidField("model.rms_norm_eps", "must be above 0 and below 1");
  }
  return ValidateRope(shape.rope);
}

nlohmann::json ModelShapeToJson(const ModelShape& shape) {
  return {{"family", shape.family},
          {"layers", shape.layers},
          {"hidden", shape.hidden},
          {"intermediate", shape.intermediate},
          {"heads", shape.heads},
          {"kv_heads", shape.kv_heads},
          {"head_dim", shape.head_dim},
          {"vocab", shape.vocab},
          {"max_position_embeddings", shape.max_position_embeddings},
          {"rms_norm_eps", shape.rms_norm_eps},
          {"tied_embeddings", shape.tied_embeddings},
          {"qk_norm", shape.qk_norm},
          {"rope",
           {{"theta", shape.rope.theta},
            {"scaling", ScalingNames()[static_cast<size_t>(shape.rope.scaling)]},
            {"factor", shape.rope.factor},
            {"low_freq_factor", shape.rope.low_freq_factor},
            {"high_freq_factor", shape.rope.high_freq_factor},
            {"original_max_position_embeddings", shape.rope.original_max_position_embeddings}}}};
}

absl::StatusOr<ModelShape> ModelShapeFromJson(const nlohmann::json& json) {
  ModelShape shape;
  JsonFields fields(json, "model shape");
  constexpr int64_t kAny = int64_t{1} << 40;  // ValidateModelShape has the real limits and the better messages
  fields.String("family", 64, &shape.family);
  fields.Int("layers", 0, kAny, &shape.layers);
  fields.Int("hidden", 0, kAny, &shape.hidden);
  fields.Int("intermediate", 0, kAny, &shape.intermediate);
  fields.Int("heads", 0, kAny, &shape.heads);
  fields.Int("kv_heads", 0, kAny, &shape.kv_heads);
  fields.Int("head_dim", 0, kAny, &shape.head_dim);
  fields.Int("vocab", 0, kAny, &shape.vocab);
  fields.Int("max_position_embeddings", 0, kAny, &shape.max_position_embeddings);
  fields.Double("rms_norm_eps", 0, 1, &shape.rms_norm_eps);
  fields.Bool("tied_embeddings", &shape.tied_embeddings);
  fields.Bool("qk_norm", &shape.qk_norm);
  if (const nlohmann::json* rope = fields.RequiredObject("rope")) {
    JsonFields rope_fields(*rope, "model shape: rope");
    int scaling = 0;
    rope_fields.Double("theta", 0, 1e300, &shape.rope.theta);
    rope_fields.Choice("scaling", ScalingNames(), &scaling);
    shape.rope.scaling = static_cast<RopeScaling>(scaling);
    rope_fields.Double("factor", 0, 1e6, &shape.rope.factor);
    rope_fields.Double("low_freq_factor", 0, 1e6, &shape.rope.low_freq_factor);
    rope_fields.Double("high_freq_factor", 0, 1e6, &shape.rope.high_freq_factor);
    rope_fields.Int("original_max_position_embeddings", 0, kAny, &shape.rope.original_max_position_embeddings);
    if (!rope_fields.status().ok()) return rope_fields.status();
  }
  if (!fields.status().ok()) return fields.status();
  if (absl::Status status = ValidateModelShape(shape); !status.ok()) return status;
  return shape;
}

void RopeInverseFrequencies(const RopeFacts& rope, int64_t head_dim, double* out) {
  const double pi2 = 2.0 * std::numbers::pi;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    double f = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (rope.scaling == RopeScaling::kLinear) {
      f /= rope.factor;
    } else if (rope.scaling == RopeScaling::kLlama3) {
      const double length = static_cast<double>(rope.original_max_position_embeddings);
      const double wavelength = pi2 / f;
      if (wavelength > length / rope.low_freq_factor) {
        f /= rope.factor;
      } else if (wavelength >= length / rope.high_freq_factor) {
        const double smooth =
            (length / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
        f = (1.0 - smooth) * f / rope.factor + smooth * f;
      }
    }
    out[i] = f;
  }
}

}  // namespace longhaul
