#include "worker/formats/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "model/family.h"
#include "worker/formats/dequant.h"
#include "worker/formats/file_error.h"

namespace longhaul::formats {
namespace {

constexpr char kRopeDivisors[] = "rope_freqs.weight";

// All Llama 3.x models share these; only the factor (8, 32) differs.
constexpr double kLlama3LowFreqFactor = 1.0;
constexpr double kLlama3HighFreqFactor = 4.0;
constexpr int64_t kLlama3OriginalPositions = 8192;

absl::StatusOr<const FamilyFacts*> FamilyOf(const GgufFile& file) {
  LH_ASSIGN_OR_RETURN(const std::string type, file.String("general.type", "model"));
  if (type != "model") return BadFile(file.path(), "holds a \"" + Printable(type) + "\", not a model");
  LH_ASSIGN_OR_RETURN(const std::string architecture, file.String("general.architecture"));
  const FamilyFacts* family = FindFamilyByGgufArchitecture(architecture);
  if (family == nullptr) {
    return Unsupported(file.path(), "architecture \"" + Printable(architecture) +
                                        "\" is not supported; supported: " + SupportedFamilies());
  }
  if (family->missing[0] != '\0') {
    return Unsupported(file.path(), "architecture \"" + architecture + "\" needs " + family->missing);
  }
  LH_ASSIGN_OR_RETURN(const int64_t splits, file.Int("split.count", 0));
  if (splits > 1) return Unsupported(file.path(), "the model is split over " + std::to_string(splits) + " GGUF files");
  return family;
}

absl::Status ReadSizes(const GgufFile& file, const std::string& prefix, ModelShape* shape) {
  LH_ASSIGN_OR_RETURN(shape->layers, file.Int(prefix + "block_count"));
  LH_ASSIGN_OR_RETURN(shape->hidden, file.Int(prefix + "embedding_length"));
  LH_ASSIGN_OR_RETURN(shape->intermediate, file.Int(prefix + "feed_forward_length"));
  LH_ASSIGN_OR_RETURN(shape->heads, file.Int(prefix + "attention.head_count"));
  LH_ASSIGN_OR_RETURN(shape->kv_heads, file.Int(prefix + "attention.head_count_kv", shape->heads));
  if (shape->heads < 1) return BadFile(file.path(), prefix + "attention.head_count must be positive");
  LH_ASSIGN_OR_RETURN(shape->head_dim, file.Int(prefix + "attention.key_length", shape->hidden / shape->heads));
  LH_ASSIGN_OR_RETURN(const int64_t value_dim, file.Int(prefix + "attention.value_length", shape->head_dim));
  if (value_dim != shape->head_dim) {
    return Unsupported(file.path(), "attention keys of " + std::to_string(shape->head_dim) + " and values of " +
                                        std::to_string(value_dim) + " elements");
  }
  LH_ASSIGN_OR_RETURN(shape->max_position_embeddings, file.Int(prefix + "context_length"));
  LH_ASSIGN_OR_RETURN(shape->rms_norm_eps, file.Float(prefix + "attention.layer_norm_rms_epsilon"));
  LH_ASSIGN_OR_RETURN(const int64_t experts, file.Int(prefix + "expert_count", 0));
  if (experts > 0) return Unsupported(file.path(), "mixture-of-experts layers");
  LH_ASSIGN_OR_RETURN(const int64_t window, file.Int(prefix + "attention.sliding_window", 0));
  if (window > 0 && window < shape->max_position_embeddings) {
    return Unsupported(file.path(), "sliding-window attention of " + std::to_string(window) + " tokens");
  }
  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->dims.size() != 2) {
    return BadFile(file.path(), "lacks the matrix token_embd.weight");
  }
  shape->vocab = embedding->dims[1];
  return absl::OkStatus();
}

// Sets llama3 scaling if the divisors are what that scaling gives.
absl::Status RecogniseDivisors(const GgufFile& file, const GgufTensor& tensor, ModelShape* shape) {
  const int64_t half = shape->head_dim / 2;
  if (tensor.type != StorageType::kF32 || tensor.dims != std::vector<int64_t>{half}) {
    return BadFile(file.path(), std::string(kRopeDivisors) + " must be F32 [" + std::to_string(half) + "]");
  }
  std::vector<float> divisors(static_cast<size_t>(half));
  DequantizeRows(tensor.type, file.Data(tensor), 1, half, divisors.data());
  const double factor = static_cast<double>(*std::max_element(divisors.begin(), divisors.end()));
  RopeFacts plain = shape->rope;
  RopeFacts scaled = shape->rope;
  if (factor > 1.0) {
    scaled.scaling = RopeScaling::kLlama3;
    scaled.factor = factor;
    scaled.low_freq_factor = kLlama3LowFreqFactor;
    scaled.high_freq_factor = kLlama3HighFreqFactor;
    scaled.original_max_position_embeddings = kLlama3OriginalPositions;
  }
  std::vector<double> before(divisors.size());
  std::vector<double> after(divisors.size());
  RopeInverseFrequencies(plain, shape->head_dim, shape->max_position_embeddings, before.data());
  RopeInverseFrequencies(scaled, shape->head_dim, shape->max_position_embeddings, after.data());
  for (size_t i = 0; i < divisors.size(); ++i) {
    // The file's divisors are made in f32 from f32 wavelengths: a few ulp, 2^-20 leaves room.
    constexpr double kTolerance = 0x1p-20;
    const double expected = before[i] / after[i];
    if (!(std::fabs(static_cast<double>(divisors[i]) - expected) <= expected * kTolerance)) {
      return Unsupported(file.path(), "RoPE divisor " + std::to_string(i) + " is " + std::to_string(divisors[i]) +
                                          ", which is not Llama 3's scaling (" + std::to_string(expected) + ")");
    }
  }
  shape->rope = scaled;
  return absl::OkStatus();
}

// What llama.cpp makes of these keys; it has no other attention factor than the paper's times attn_factor.
absl::Status ReadYarn(const GgufFile& file, const std::string& prefix, ModelShape* shape) {
  if (file.FindTensor(kRopeDivisors) != nullptr) {
    return Unsupported(file.path(), "yarn RoPE scaling together with RoPE divisors");
  }
  const std::string key = prefix + "rope.scaling.";
  RopeFacts& rope = shape->rope;
  rope.scaling = RopeScaling::kYarn;
  LH_ASSIGN_OR_RETURN(rope.factor, file.Float(key + "factor", 1.0));
  LH_ASSIGN_OR_RETURN(rope.original_max_position_embeddings,
                      file.Int(key + "original_context_length", shape->max_position_embeddings));
  LH_ASSIGN_OR_RETURN(rope.beta_fast, file.Float(key + "yarn_beta_fast", rope.beta_fast));
  LH_ASSIGN_OR_RETURN(rope.beta_slow, file.Float(key + "yarn_beta_slow", rope.beta_slow));
  LH_ASSIGN_OR_RETURN(const double attention, file.Float(key + "attn_factor", 1.0));
  rope.attention_factor = attention * YarnAttentionFactor(rope.factor);
  if (rope.factor > 0 && rope.original_max_position_embeddings > 0) {  // what is not is refused with the whole shape
    shape->max_position_embeddings = std::max(shape->max_position_embeddings, ExtendedPositions(rope));
  }
  for (const auto& [name, usual] :
       {std::pair{"yarn_ext_factor", 1.0}, std::pair{"yarn_attn_factor", 1.0}, std::pair{"yarn_log_multiplier", 0.0}}) {
    LH_ASSIGN_OR_RETURN(const double value, file.Float(key + name, usual));
    if (value != usual) {
      return Unsupported(file.path(), "yarn RoPE scaling with " + std::string(name) + " " + std::to_string(value));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadRope(const GgufFile& file, const std::string& prefix, const FamilyFacts& family, ModelShape* shape) {
  LH_ASSIGN_OR_RETURN(shape->rope.theta, file.Float(prefix + "rope.freq_base", family.default_rope_theta));
  LH_ASSIGN_OR_RETURN(const int64_t rotated, file.Int(prefix + "rope.dimension_count", shape->head_dim));
  if (rotated != shape->head_dim) {
    return Unsupported(file.path(), "rotary embedding of " + std::to_string(rotated) + " of " +
                                        std::to_string(shape->head_dim) + " elements of a head");
  }
  LH_ASSIGN_OR_RETURN(const std::string scaling, file.String(prefix + "rope.scaling.type", "none"));
  if (scaling == "yarn") return ReadYarn(file, prefix, shape);
  if (scaling != "none" && scaling != "linear") {
    return Unsupported(file.path(), "RoPE scaling \"" + Printable(scaling) + "\"");
  }
  LH_ASSIGN_OR_RETURN(const double old_factor, file.Float(prefix + "rope.scale_linear", 1.0));
  LH_ASSIGN_OR_RETURN(const double factor, file.Float(prefix + "rope.scaling.factor", old_factor));
  if (factor != 1.0 && (scaling == "linear" || old_factor != 1.0)) {
    shape->rope.scaling = RopeScaling::kLinear;
    shape->rope.factor = factor;
  }
  const GgufTensor* divisors = file.FindTensor(kRopeDivisors);
  if (divisors == nullptr) return absl::OkStatus();
  if (shape->rope.scaling != RopeScaling::kNone) {
    return Unsupported(file.path(), "linear RoPE scaling together with RoPE divisors");
  }
  return RecogniseDivisors(file, *divisors, shape);
}

}  // namespace

absl::StatusOr<ModelShape> ModelShapeFromGguf(const GgufFile& file) {
  LH_ASSIGN_OR_RETURN(const FamilyFacts* family, FamilyOf(file));
  const std::string prefix = std::string(family->gguf_architecture) + ".";
  ModelShape shape;
  shape.family = family->name;
  shape.qk_norm = family->qk_norm;
  shape.tied_embeddings = file.FindTensor("output.weight") == nullptr;
  LH_RETURN_IF_ERROR(ReadSizes(file, prefix, &shape));
  // Before the RoPE divisors: they allocate by head_dim.
  if (absl::Status status = ValidateModelShape(shape); !status.ok()) return Annotate(status, file.path());
  LH_RETURN_IF_ERROR(ReadRope(file, prefix, *family, &shape));
  if (absl::Status status = ValidateModelShape(shape); !status.ok()) return Annotate(status, file.path());
  return shape;
}

}  // namespace longhaul::formats
