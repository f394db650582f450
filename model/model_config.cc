// What Longhaul understands of a Hugging Face config.json, and what it writes (FORMATS.md section 4).
#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "model/family.h"
#include "model/json_fields.h"
#include "model/model_shape.h"

namespace longhaul {
namespace {

using nlohmann::json;

constexpr int64_t kAny = int64_t{1} << 40;

absl::Status Unsupported(const std::string& what) {
  return MakeError(absl::StatusCode::kUnimplemented, "MODEL_UNSUPPORTED", "config.json: " + what);
}

// Nesting is capped before the parser sees it: nlohmann's recursion is on the heap, but its destructor's depth is ours.
bool TooDeep(const std::string& text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > limits::kMaxJsonDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// Zero and null mean the default, as in Transformers. A model that says yarn is good for factor times its original
// context, whatever max_position_embeddings it was published with.
absl::Status ReadYarn(const json& scaling, ModelShape* shape) {
  JsonFields fields(scaling, "config.json: rope_scaling");
  RopeFacts& rope = shape->rope;
  rope.scaling = RopeScaling::kYarn;
  rope.original_max_position_embeddings = shape->max_position_embeddings;
  fields.OptionalInt("original_max_position_embeddings", 1, limits::kMaxSequenceLength,
                     &rope.original_max_position_embeddings);
  rope.factor =
      static_cast<double>(shape->max_position_embeddings) / static_cast<double>(rope.original_max_position_embeddings);
  fields.OptionalDouble("factor", 1, kMaxRopeFactor, &rope.factor);
  double beta_fast = 0, beta_slow = 0, attention_factor = 0, mscale = 0, mscale_all_dim = 0;
  fields.OptionalDouble("beta_fast", 0, kMaxRopeFactor, &beta_fast);
  fields.OptionalDouble("beta_slow", 0, kMaxRopeFactor, &beta_slow);
  fields.OptionalDouble("attention_factor", 1e-6, kMaxRopeFactor, &attention_factor);
  fields.OptionalDouble("mscale", 0, kMaxRopeFactor, &mscale);
  fields.OptionalDouble("mscale_all_dim", 0, kMaxRopeFactor, &mscale_all_dim);
  fields.OptionalBool("truncate", &rope.truncate);
  if (beta_fast > 0) rope.beta_fast = beta_fast;
  if (beta_slow > 0) rope.beta_slow = beta_slow;
  if (attention_factor > 0) {
    rope.attention_factor = attention_factor;
  } else if (mscale > 0 && mscale_all_dim > 0) {
    rope.attention_factor = YarnAttentionFactor(rope.factor, mscale) / YarnAttentionFactor(rope.factor, mscale_all_dim);
  } else {
    rope.attention_factor = YarnAttentionFactor(rope.factor);
  }
  shape->max_position_embeddings = std::max(shape->max_position_embeddings, ExtendedPositions(rope));
  return fields.status();
}

// max_position_embeddings is what the model was made for, and what lengths are compared with.
absl::Status ReadDynamic(const json& scaling, ModelShape* shape) {
  JsonFields fields(scaling, "config.json: rope_scaling");
  RopeFacts& rope = shape->rope;
  rope.scaling = RopeScaling::kDynamic;
  rope.original_max_position_embeddings = shape->max_position_embeddings;
  fields.Double("factor", 1, kMaxRopeFactor, &rope.factor);
  shape->max_position_embeddings = std::max(shape->max_position_embeddings, ExtendedPositions(rope));
  return fields.status();
}

// The original context stands beside the scaling (Phi-3), which goes first, or within it.
absl::Status ReadLongRope(const json& config, const json& scaling, ModelShape* shape) {
  JsonFields outer(config, "config.json"), fields(scaling, "config.json: rope_scaling");
  RopeFacts& rope = shape->rope;
  rope.scaling = RopeScaling::kLongRope;
  rope.original_max_position_embeddings = shape->max_position_embeddings;
  for (JsonFields* where : {&fields, &outer}) {
    where->OptionalInt("original_max_position_embeddings", 1, limits::kMaxSequenceLength,
                       &rope.original_max_position_embeddings);
  }
  rope.factor =
      static_cast<double>(shape->max_position_embeddings) / static_cast<double>(rope.original_max_position_embeddings);
  fields.OptionalDouble("factor", 1e-6, kMaxRopeFactor, &rope.factor);
  rope.attention_factor = LongRopeAttentionFactor(rope.factor, rope.original_max_position_embeddings);
  fields.OptionalDouble("attention_factor", 1e-6, kMaxRopeFactor, &rope.attention_factor);
  const size_t most = static_cast<size_t>(shape->head_dim / 2);
  fields.Doubles("short_factor", most, 1e-6, kMaxRopeFactor, &rope.short_factor);
  fields.Doubles("long_factor", most, 1e-6, kMaxRopeFactor, &rope.long_factor);
  return outer.status().ok() ? fields.status() : outer.status();
}

absl::Status RefusePartialRotary(JsonFields* fields) {
  double partial = 1.0;
  fields->OptionalDouble("partial_rotary_factor", 0, 1, &partial);
  if (partial != 1.0) return Unsupported("partial_rotary_factor " + std::to_string(partial) + " is not supported");
  return fields->status();
}

absl::Status ReadRope(const json& config, const FamilyFacts& family, ModelShape* shape) {
  JsonFields fields(config, "config.json");
  RopeFacts& rope = shape->rope;
  rope.theta = family.default_rope_theta;
  fields.OptionalDouble("rope_theta", 1e-6, 1e300, &rope.theta);
  // Newer files nest everything under rope_parameters; older ones have rope_scaling.
  const json* scaling = fields.Find("rope_parameters");
  if (scaling == nullptr) scaling = fields.Find("rope_scaling");
  if (!fields.status().ok() || scaling == nullptr) return fields.status();

  JsonFields nested(*scaling, "config.json: rope_scaling");
  nested.OptionalDouble("rope_theta", 1e-6, 1e300, &rope.theta);
  std::string type = "default";
  if (nested.Find("rope_type") != nullptr) {
    nested.String("rope_type", 64, &type);
  } else if (nested.Find("type") != nullptr) {
    nested.String("type", 64, &type);
  }
  if (!nested.status().ok()) return nested.status();
  LH_RETURN_IF_ERROR(RefusePartialRotary(&nested));
  if (type == "default") return nested.status();
  LH_RETURN_IF_ERROR(RefusePartialRotary(&fields));  // Transformers' scalings heed it there too, its plain RoPE not
  if (type == "yarn") return ReadYarn(*scaling, shape);
  if (type == "dynamic") return ReadDynamic(*scaling, shape);
  if (type == "longrope") return ReadLongRope(config, *scaling, shape);
  if (type != "linear" && type != "llama3") {
    return Unsupported("rope_type \"" + type +
                       "\" is not supported; supported: default, linear, llama3, yarn, dynamic, longrope");
  }
  nested.Double("factor", 1e-6, kMaxRopeFactor, &rope.factor);
  if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else {
    rope.scaling = RopeScaling::kLlama3;
    nested.Double("low_freq_factor", 1e-6, kMaxRopeFactor, &rope.low_freq_factor);
    nested.Double("high_freq_factor", 1e-6, kMaxRopeFactor, &rope.high_freq_factor);
    nested.Int("original_max_position_embeddings", 1, limits::kMaxSequenceLength,
               &rope.original_max_position_embeddings);
  }
  return nested.status();
}

// Features of a supported family that a particular checkpoint may turn on.
absl::Status RefuseUnsupported(const json& config) {
  JsonFields fields(config, "config.json");
  for (const char* key : {"attention_bias", "mlp_bias", "qkv_bias"}) {
    bool on = false;
    fields.OptionalBool(key, &on);
    if (on) return Unsupported(std::string("\"") + key + "\" true is not supported");
  }
  const json* activation = fields.Find("hidden_act");
  if (activation != nullptr && *activation != "silu" && *activation != "swish") {
    return Unsupported("hidden_act " + activation->dump(-1, ' ', false, json::error_handler_t::replace) +
                       " is not supported; only \"silu\" is");
  }
  bool use_window = true;  // Qwen writes a window and switches it off
  fields.OptionalBool("use_sliding_window", &use_window);
  if (const json* window = fields.Find("sliding_window"); window != nullptr && use_window) {
    return Unsupported("sliding_window is set; only full attention is supported");
  }
  if (const json* types = fields.Find("layer_types"); types != nullptr && types->is_array()) {
    for (const json& type : *types) {
      if (type != "full_attention") return Unsupported("layer_types has other layers than \"full_attention\"");
    }
  }
  return fields.status();
}

absl::StatusOr<const FamilyFacts*> ReadFamily(const json& config) {
  JsonFields fields(config, "config.json");
  std::string name;
  fields.String("model_type", 64, &name);
  LH_RETURN_IF_ERROR(fields.status());
  const FamilyFacts* family = FindFamily(name);
  if (family == nullptr) {
    return Unsupported("model_type \"" + name + "\" is not known; supported: " + SupportedFamilies());
  }
  if (family->missing[0] != '\0') {
    return Unsupported("model_type \"" + name + "\" needs " + family->missing + "; supported: " + SupportedFamilies());
  }
  return family;
}

}  // namespace

absl::StatusOr<ModelShape> ModelShapeFromConfigJson(const std::string& config_json) {
  if (static_cast<int64_t>(config_json.size()) > limits::kMaxJsonFileBytes || TooDeep(config_json)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_JSON",
                     "config.json is larger than " + std::to_string(limits::kMaxJsonFileBytes) +
                         " bytes or nested deeper than " + std::to_string(limits::kMaxJsonDepth));
  }
  const json config = json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_JSON", "config.json is not valid JSON");
  }
  LH_ASSIGN_OR_RETURN(const FamilyFacts* family, ReadFamily(config));
  ModelShape shape;
  shape.family = family->name;
  shape.qk_norm = family->qk_norm;

  JsonFields fields(config, "config.json");
  fields.Int("num_hidden_layers", 1, limits::kMaxLayers, &shape.layers);
  fields.Int("hidden_size", 1, kAny, &shape.hidden);
  fields.Int("intermediate_size", 1, kAny, &shape.intermediate);
  fields.Int("num_attention_heads", 1, kAny, &shape.heads);
  fields.Int("vocab_size", 1, kAny, &shape.vocab);
  fields.Int("max_position_embeddings", 1, kAny, &shape.max_position_embeddings);
  fields.Double("rms_norm_eps", 0, 1, &shape.rms_norm_eps);
  LH_RETURN_IF_ERROR(fields.status());
  shape.kv_heads = shape.heads;
  fields.OptionalInt("num_key_value_heads", 1, kAny, &shape.kv_heads);
  if (fields.Find("head_dim") == nullptr && shape.hidden % shape.heads != 0) {
    fields.Fail("\"hidden_size\" is " + std::to_string(shape.hidden) + ", not a multiple of \"num_attention_heads\" " +
                std::to_string(shape.heads) + ", and there is no \"head_dim\"");
  }
  shape.head_dim = std::max<int64_t>(1, shape.hidden / shape.heads);
  fields.OptionalInt("head_dim", 1, kAny, &shape.head_dim);
  fields.OptionalBool("tie_word_embeddings", &shape.tied_embeddings);
  LH_RETURN_IF_ERROR(fields.status());
  LH_RETURN_IF_ERROR(RefuseUnsupported(config));
  LH_RETURN_IF_ERROR(ReadRope(config, *family, &shape));
  LH_RETURN_IF_ERROR(ValidateModelShape(shape));
  return shape;
}

json ConfigJsonOfModelShape(const ModelShape& shape) {
  const FamilyFacts* family = FindFamily(shape.family);
  LH_CHECK(family != nullptr && family->hf_class[0] != '\0', shape.family);
  json config = {
      {"architectures", {family->hf_class}},
      {"model_type", family->name},
      {"hidden_size", shape.hidden},
      {"intermediate_size", shape.intermediate},
      {"num_hidden_layers", shape.layers},
      {"num_attention_heads", shape.heads},
      {"num_key_value_heads", shape.kv_heads},
      {"head_dim", shape.head_dim},
      {"vocab_size", shape.vocab},
      {"max_position_embeddings", shape.max_position_embeddings},
      {"rms_norm_eps", shape.rms_norm_eps},
      {"tie_word_embeddings", shape.tied_embeddings},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"sliding_window", nullptr},  // Mistral's default is a window
      {"rope_theta", shape.rope.theta},
      {"rope_scaling", nullptr},
  };
  // The older form of the RoPE facts: every version of Transformers reads it.
  if (shape.rope.scaling == RopeScaling::kLinear) {
    config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", shape.rope.factor}};
  } else if (shape.rope.scaling == RopeScaling::kLlama3) {
    config["rope_scaling"] = {{"rope_type", "llama3"},
                              {"factor", shape.rope.factor},
                              {"low_freq_factor", shape.rope.low_freq_factor},
                              {"high_freq_factor", shape.rope.high_freq_factor},
                              {"original_max_position_embeddings", shape.rope.original_max_position_embeddings}};
  } else if (shape.rope.scaling == RopeScaling::kYarn) {
    config["rope_scaling"] = {{"rope_type", "yarn"},
                              {"factor", shape.rope.factor},
                              {"original_max_position_embeddings", shape.rope.original_max_position_embeddings},
                              {"beta_fast", shape.rope.beta_fast},
                              {"beta_slow", shape.rope.beta_slow},
                              {"attention_factor", shape.rope.attention_factor},
                              {"truncate", shape.rope.truncate}};
  } else if (shape.rope.scaling == RopeScaling::kDynamic) {
    config["max_position_embeddings"] = shape.rope.original_max_position_embeddings;
    config["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", shape.rope.factor}};
  } else if (shape.rope.scaling == RopeScaling::kLongRope) {
    config["original_max_position_embeddings"] = shape.rope.original_max_position_embeddings;
    config["rope_scaling"] = {{"rope_type", "longrope"},
                              {"factor", shape.rope.factor},
                              {"original_max_position_embeddings", shape.rope.original_max_position_embeddings},
                              {"attention_factor", shape.rope.attention_factor},
                              {"short_factor", shape.rope.short_factor},
                              {"long_factor", shape.rope.long_factor}};
  }
  return config;
}

}  // namespace longhaul
