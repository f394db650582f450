// Where frozen weights come from: a model on disk, or a named shape with made-up weights (benchmarks and tests).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "model/model_shape.h"
#include "worker/formats/model_source.h"

namespace longhaul::train {

// What a weight was stored as decides what NF4 dequantises to (FORMATS.md section 2) and whether it is quantised at
// all.
enum class StoredAs { kF32, kF16, kBF16, kNf4 };

// Values that anybody can make: kernels::Uniform of these, from row 0.
struct UniformValues {
  uint64_t key = 0;
  double width = 1;
  double shift = 0;
};

// Thread-safe: immutable.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const ModelShape& shape() const = 0;
  // Rows [begin, end) of a tensor under its Hugging Face name, f32, row-major.
  virtual absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const = 0;
  virtual StoredAs Type(const std::string& name) const = 0;
  // The codes of a tensor of type kNf4, as long as this lives.
  virtual std::optional<formats::Nf4View> Nf4(const std::string& /*name*/) const { return std::nullopt; }
  // Where all values of the tensor are made up: how, so that a device makes them itself.
  virtual std::optional<UniformValues> Uniform(const std::string& /*name*/) const { return std::nullopt; }
  // An error where what was read may not be what the model's digest names: nothing of it may be kept.
  virtual absl::Status CheckUnchanged() const { return absl::OkStatus(); }
};

// INVALID_MODEL where the files' fingerprint is another than `fingerprint`; "" = any.
absl::Status CheckFingerprint(const formats::ModelSource& source, const std::string& fingerprint);

// A model on disk. Borrows `source`. `fingerprint`: what its files must still have once they have been read.
class ModelWeightSource final : public WeightSource {
 public:
  explicit ModelWeightSource(const formats::ModelSource& source, std::string fingerprint = "")
      : source_(source), fingerprint_(std::move(fingerprint)) {}
  const ModelShape& shape() const override { return source_.shape(); }
  absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const override;
  StoredAs Type(const std::string& name) const override;
  std::optional<formats::Nf4View> Nf4(const std::string& name) const override { return source_.FindNf4(name); }
  absl::Status CheckUnchanged() const override { return CheckFingerprint(source_, fingerprint_); }

 private:
  const formats::ModelSource& source_;
  std::string fingerprint_;
};

// Linears uniform with standard deviation 1/sqrt(columns), embeddings uniform in +-0.5, norms in [0.5, 1.5): a model
// that computes like a real one. The same shape and seed give the same values.
class SyntheticWeightSource final : public WeightSource {
 public:
  SyntheticWeightSource(ModelShape shape, uint64_t seed) : shape_(std::move(shape)), seed_(seed) {}
  const ModelShape& shape() const override { return shape_; }
  absl::Status ReadRows(const std::string& name, int64_t begin, int64_t end, float* out) const override;
  StoredAs Type(const std::string&) const override { return StoredAs::kF32; }
  std::optional<UniformValues> Uniform(const std::string& name) const override;

 private:
  ModelShape shape_;
  uint64_t seed_;
};

}  // namespace longhaul::train
