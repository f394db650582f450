#include "wire/model_values.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/status_macros.h"

namespace longhaul::wire {
v1::RopeFacts ToProto(const RopeFacts& rope) {
  v1::RopeFacts out;
  out.set_theta(rope.theta);
  out.set_scaling(RopeScalingNames()[static_cast<size_t>(rope.scaling)]);
  out.set_factor(rope.factor);
  out.set_low_freq_factor(rope.low_freq_factor);
  out.set_high_freq_factor(rope.high_freq_factor);
  out.set_original_max_position_embeddings(rope.original_max_position_embeddings);
  if (rope.scaling == RopeScaling::kYarn) {
    out.set_beta_fast(rope.beta_fast);
    out.set_beta_slow(rope.beta_slow);
    out.set_attention_factor(rope.attention_factor);
    out.set_truncate(rope.truncate);
  } else if (rope.scaling == RopeScaling::kLongRope) {
    out.set_attention_factor(rope.attention_factor);
    out.mutable_short_factor()->Add(rope.short_factor.begin(), rope.short_factor.end());
    out.mutable_long_factor()->Add(rope.long_factor.begin(), rope.long_factor.end());
  }
  return out;
}

v1::ModelShape ToProto(const ModelShape& shape) {
  v1::ModelShape out;
  out.set_family(shape.family);
  out.set_layers(shape.layers);
  out.set_hidden(shape.hidden);
  out.set_intermediate(shape.intermediate);
  out.set_heads(shape.heads);
  out.set_kv_heads(shape.kv_heads);
  out.set_head_dim(shape.head_dim);
  out.set_vocab(shape.vocab);
  out.set_max_position_embeddings(shape.max_position_embeddings);
  out.set_rms_norm_eps(shape.rms_norm_eps);
  out.set_tied_embeddings(shape.tied_embeddings);
  out.set_qk_norm(shape.qk_norm);
  *out.mutable_rope() = ToProto(shape.rope);
  return out;
}

v1::DeviceFacts ToProto(const DeviceFacts& facts) {
  v1::DeviceFacts out;
  out.set_device_class(facts.device_class);
  out.set_kind(facts.kind == DeviceKind::kCuda ? v1::DEVICE_KIND_CUDA : v1::DEVICE_KIND_CPU);
  out.set_device_bytes(facts.device_bytes);
  out.set_host_bytes(facts.host_bytes);
  out.set_disk_bytes(facts.disk_bytes);
  out.set_cpu_threads(facts.cpu_threads);
  out.set_isa(facts.isa);
  out.set_has_bf16(facts.has_bf16);
  out.set_context_bytes(facts.context_bytes);
  out.set_gemm_flops(facts.gemm_flops);
  out.set_copy_bytes_per_second(facts.copy_bytes_per_second);
  out.set_compute_capability(facts.compute_capability);
  out.set_runtime_host_bytes(facts.runtime_host_bytes);
  out.set_cudnn_version(facts.cudnn_version);
  out.set_has_fp8(facts.has_fp8);
  out.set_memory_bytes_per_second(facts.memory_bytes_per_second);
  return out;
}

absl::StatusOr<RopeFacts> FromProto(const v1::RopeFacts& rope) {
  RopeFacts out;
  out.theta = rope.theta();
  const std::vector<std::string>& names = RopeScalingNames();
  const auto name = rope.scaling().empty() ? names.begin() : std::find(names.begin(), names.end(), rope.scaling());
  if (name == names.end()) {
    return InvalidField("model_shape.rope.scaling",
                        "is \"" + rope.scaling() + "\"; one of " + absl::StrJoin(names, ", "));
  }
  out.scaling = static_cast<RopeScaling>(name - names.begin());
  // A message without scaling need not carry the factors of one.
  if (out.scaling != RopeScaling::kNone) out.factor = rope.factor();
  if (out.scaling == RopeScaling::kLlama3) {
    out.low_freq_factor = rope.low_freq_factor();
    out.high_freq_factor = rope.high_freq_factor();
    out.original_max_position_embeddings = rope.original_max_position_embeddings();
  } else if (out.scaling == RopeScaling::kYarn) {
    out.original_max_position_embeddings = rope.original_max_position_embeddings();
    out.beta_fast = rope.beta_fast();
    out.beta_slow = rope.beta_slow();
    out.attention_factor = rope.attention_factor();
    out.truncate = rope.truncate();
  } else if (out.scaling == RopeScaling::kDynamic) {
    out.original_max_position_embeddings = rope.original_max_position_embeddings();
  } else if (out.scaling == RopeScaling::kLongRope) {
    out.original_max_position_embeddings = rope.original_max_position_embeddings();
    out.attention_factor = rope.attention_factor();
    out.short_factor.assign(rope.short_factor().begin(), rope.short_factor().end());
    out.long_factor.assign(rope.long_factor().begin(), rope.long_factor().end());
  }
  return out;
}

absl::StatusOr<ModelShape> FromProto(const v1::ModelShape& shape) {
  ModelShape out;
  out.family = shape.family();
  out.layers = shape.layers();
  out.hidden = shape.hidden();
  out.intermediate = shape.intermediate();
  out.heads = shape.heads();
  out.kv_heads = shape.kv_heads();
  out.head_dim = shape.head_dim();
  out.vocab = shape.vocab();
  out.max_position_embeddings = shape.max_position_embeddings();
  out.rms_norm_eps = shape.rms_norm_eps();
  out.tied_embeddings = shape.tied_embeddings();
  out.qk_norm = shape.qk_norm();
  LH_ASSIGN_OR_RETURN(out.rope, FromProto(shape.rope()));
  LH_RETURN_IF_ERROR(ValidateModelShape(out));
  return out;
}

absl::StatusOr<DeviceFacts> FromProto(const v1::DeviceFacts& facts) {
  DeviceFacts out;
  out.device_class = facts.device_class();
  switch (facts.kind()) {
    case v1::DEVICE_KIND_CPU:
      out.kind = DeviceKind::kCpu;
      break;
    case v1::DEVICE_KIND_CUDA:
      out.kind = DeviceKind::kCuda;
      break;
    default:
      return InvalidField("device.kind", "is " + std::to_string(facts.kind()) + "; must be CPU or CUDA");
  }
  out.device_bytes = facts.device_bytes();
  out.host_bytes = facts.host_bytes();
  out.disk_bytes = facts.disk_bytes();
  out.cpu_threads = facts.cpu_threads();
  out.isa = facts.isa();
  out.has_bf16 = facts.has_bf16();
  out.context_bytes = facts.context_bytes();
  out.gemm_flops = facts.gemm_flops();
  out.copy_bytes_per_second = facts.copy_bytes_per_second();
  out.compute_capability = facts.compute_capability();
  out.runtime_host_bytes = facts.runtime_host_bytes();
  out.cudnn_version = facts.cudnn_version();
  out.has_fp8 = facts.has_fp8();
  out.memory_bytes_per_second = facts.memory_bytes_per_second();
  LH_RETURN_IF_ERROR(ValidateDeviceFacts(out));
  return out;
}

}  // namespace longhaul::wire
