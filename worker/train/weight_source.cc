#include "worker/train/weight_source.h"

#include <cmath>
#include <functional>

#include "base/error.h"
#include "base/random.h"
#include "base/status_macros.h"

namespace longhaul::train {
namespace {

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

int64_t Columns(const ModelShape& shape, const std::string& name) {
  if (EndsWith(name, "o_proj.weight")) return shape.q_dim();
  if (EndsWith(name, "down_proj.weight")) return shape.intermediate;
  if (EndsWith(name, "q_norm.weight") || EndsWith(name, "k_norm.weight")) return shape.head_dim;
  return shape.hidden;
}

uint64_t NameKey(const std::string& name, uint64_t seed) {
  uint64_t key = 1469598103934665603ull ^ seed;  // FNV-1a: the same on every machine
  for (char c : name) key = (key ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  return key;
}

}  // namespace

absl::Status CheckFingerprint(const formats::ModelSource& source, const std::string& fingerprint) {
  if (fingerprint.empty()) return absl::OkStatus();
  LH_ASSIGN_OR_RETURN(const std::string now, source.Fingerprint());
  if (now == fingerprint) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, "INVALID_MODEL",
                   source.path() +
                       ": its files have changed since the worker took their digest; it takes it again and offers the "
                       "model that they are now");
}

absl::Status ModelWeightSource::ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const {
  return source_.ReadRows(name, begin, end, out);
}

StoredAs ModelWeightSource::Type(const std::string& name) const {
  const formats::StoredTensor* tensor = source_.Find(name);
  if (tensor == nullptr) return StoredAs::kF32;
  switch (tensor->type) {
    case formats::StorageType::kNF4:
      return StoredAs::kNf4;
    case formats::StorageType::kBF16:
      return StoredAs::kBF16;
    case formats::StorageType::kF16:
      return StoredAs::kF16;
    default:
      return StoredAs::kF32;
  }
}

std::optional<UniformValues> SyntheticWeightSource::Uniform(const std::string& name) const {
  const bool norm = EndsWith(name, "norm.weight");
  const bool embedding = EndsWith(name, "embed_tokens.weight");
  UniformValues values;
  values.key = NameKey(name, seed_);
  values.width = norm || embedding ? 1.0 : std::sqrt(12.0 / static_cast<double>(Columns(shape_, name)));
  values.shift = norm ? 1.0 : 0.0;
  return values;
}

absl::Status SyntheticWeightSource::ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const {
  const int64_t cols = Columns(shape_, name);
  const UniformValues values = *Uniform(name);
  for (int64_t i = begin * cols; i < end * cols; ++i) {
    const double uniform = CounterUniform(values.key, static_cast<uint64_t>(i)) - 0.5;
    out[i - begin * cols] = static_cast<float>(values.shift + values.width * uniform);
  }
  return absl::OkStatus();
}

}  // namespace longhaul::train
