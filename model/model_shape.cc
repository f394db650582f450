#include "model/model_shape.h"

#include <cmath>

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
constexpr int64_t kAnySize =
    int64_t{1} << 40;  // of reading: ValidateModelShape has the real limits and better messages

absl::Status OutOfRange(const char* field, int64_t value, int64_t min, int64_t max) {
  return InvalidField(std::string("model.") + field, "is " + std::to_string(value) + "; must be " +
                                                         std::to_string(min) + " to " + std::to_string(max));
}

nlohmann::json RopeToJson(const RopeFacts& rope) {
  nlohmann::json out = {{"theta", rope.theta},
                        {"scaling", RopeScalingNames()[static_cast<size_t>(rope.scaling)]},
                        {"factor", rope.factor},
                        {"low_freq_factor", rope.low_freq_factor},
                        {"high_freq_factor", rope.high_freq_factor},
                        {"original_max_position_embeddings", rope.original_max_position_embeddings}};
  if (rope.scaling == RopeScaling::kYarn) {  // shapes written before it was known have none of these
    out["beta_fast"] = rope.beta_fast;
    out["beta_slow"] = rope.beta_slow;
    out["attention_factor"] = rope.attention_factor;
    out["truncate"] = rope.truncate;
  } else if (rope.scaling == RopeScaling::kLongRope) {
    out["attention_factor"] = rope.attention_factor;
    out["short_factor"] = rope.short_factor;
    out["long_factor"] = rope.long_factor;
  }
  return out;
}

absl::StatusOr<RopeFacts> RopeFromJson(const nlohmann::json& json) {
  RopeFacts rope;
  JsonFields fields(json, "model shape: rope");
  constexpr double kAnyFactor = 1e300;  // ValidateRope has the real limits
  int scaling = 0;
  fields.Double("theta", 0, kAnyFactor, &rope.theta);
  fields.Choice("scaling", RopeScalingNames(), &scaling);
  rope.scaling = static_cast<RopeScaling>(scaling);
  fields.Double("factor", 0, kAnyFactor, &rope.factor);
  fields.Double("low_freq_factor", 0, kAnyFactor, &rope.low_freq_factor);
  fields.Double("high_freq_factor", 0, kAnyFactor, &rope.high_freq_factor);
  fields.Int("original_max_position_embeddings", 0, kAnySize, &rope.original_max_position_embeddings);
  if (rope.scaling == RopeScaling::kYarn) {
    fields.Double("beta_fast", 0, kAnyFactor, &rope.beta_fast);
    fields.Double("beta_slow", 0, kAnyFactor, &rope.beta_slow);
    fields.Double("attention_factor", 0, kAnyFactor, &rope.attention_factor);
    fields.Bool("truncate", &rope.truncate);
  } else if (rope.scaling == RopeScaling::kLongRope) {
    fields.Double("attention_factor", 0, kAnyFactor, &rope.attention_factor);
    fields.Doubles("short_factor", kMaxHeadDim / 2, 0, kAnyFactor, &rope.short_factor);
    fields.Doubles("long_factor", kMaxHeadDim / 2, 0, kAnyFactor, &rope.long_factor);
  }
  if (!fields.status().ok()) return fields.status();
  return rope;
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
  return ValidateRope(shape.rope, shape.head_dim);
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
          {"rope", RopeToJson(shape.rope)}};
}

absl::StatusOr<ModelShape> ModelShapeFromJson(const nlohmann::json& json) {
  ModelShape shape;
  JsonFields fields(json, "model shape");
  fields.String("family", 64, &shape.family);
  fields.Int("layers", 0, kAnySize, &shape.layers);
  fields.Int("hidden", 0, kAnySize, &shape.hidden);
  fields.Int("intermediate", 0, kAnySize, &shape.intermediate);
  fields.Int("heads", 0, kAnySize, &shape.heads);
  fields.Int("kv_heads", 0, kAnySize, &shape.kv_heads);
  fields.Int("head_dim", 0, kAnySize, &shape.head_dim);
  fields.Int("vocab", 0, kAnySize, &shape.vocab);
  fields.Int("max_position_embeddings", 0, kAnySize, &shape.max_position_embeddings);
  fields.Double("rms_norm_eps", 0, 1, &shape.rms_norm_eps);
  fields.Bool("tied_embeddings", &shape.tied_embeddings);
  fields.Bool("qk_norm", &shape.qk_norm);
  if (const nlohmann::json* rope = fields.RequiredObject("rope")) {
    auto facts = RopeFromJson(*rope);
    if (!facts.ok()) return facts.status();
    shape.rope = *facts;
  }
  if (!fields.status().ok()) return fields.status();
  if (absl::Status status = ValidateModelShape(shape); !status.ok()) return status;
  return shape;
}

}  // namespace longhaul
