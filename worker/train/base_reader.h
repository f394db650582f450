// One matrix of the frozen base at a time, in f32, as the engine multiplies with it: as stored, or through NF4 with
// double quantisation, bit for bit as bitsandbytes would keep it. The engine's loader and `longhaul-tool export-base`
// read through this, so that what is exported is what is trained on.
// Not thread-safe; uses threads of its own while it reads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/train_shape.h"
#include "worker/train/weight_source.h"

namespace longhaul::train {

class BaseReader {
 public:
  // Borrows `source`. REQUIRES: threads >= 1.
  BaseReader(const WeightSource& source, BaseWeights base, int threads)
      : source_(source), base_(base), threads_(threads) {}

  // out: [rows, cols], the whole tensor. `may_quantise`: it is a linear, not an embedding, a head or a norm; a weight
  // stored as NF4 is never quantised again. Scratch is bounded by one tensor's 4-bit form and kept.
  // The source's errors; INVALID_ARGUMENT names a weight that is not finite (NF4 only).
  absl::Status Read(const std::string& name, int64_t rows, int64_t cols, bool may_quantise, float* out);

 private:
  template <typename Body>
  absl::Status Chunks(int64_t rows, int64_t cols, const Body& body) const;
  absl::Status ReadThroughNf4(const std::string& name, int64_t rows, int64_t cols, StoredAs type, float* out);

  const WeightSource& source_;
  BaseWeights base_;
  int threads_;
  std::vector<uint8_t> packed_;
  std::vector<float> absmax_;
  std::vector<uint8_t> absmax_codes_;
  std::vector<float> nested_absmax_;
};

}  // namespace longhaul::train
