#include "worker/train/base_reader.h"

#include <algorithm>
#include <mutex>
#include <numeric>

#include "base/error.h"
#include "base/half.h"
#include "base/nf4.h"
#include "base/status_macros.h"
#include "model/plan_layout.h"

namespace longhaul::train {
namespace {

constexpr int64_t kChunkElements = 1 << 16;

void RoundTo(StoredAs type, float* w, int64_t n) {
  if (type == StoredAs::kBF16) {
    for (int64_t i = 0; i < n; ++i) w[i] = Bf16ToFloat(FloatToBf16(w[i]));
  } else if (type == StoredAs::kF16) {
    for (int64_t i = 0; i < n; ++i) w[i] = F16ToFloat(FloatToF16(w[i]));
  }
}

}  // namespace

// body(first row, end row) over chunks of whole rows that are also whole NF4 blocks; the first error wins.
template <typename Body>
absl::Status BaseReader::Chunks(int64_t rows, int64_t cols, const Body& body) const {
  const int64_t granule = kNf4DefaultBlock / std::gcd(cols, kNf4DefaultBlock);
  const int64_t step = RoundUp(std::max<int64_t>(1, kChunkElements / cols), granule);
  const int64_t chunks = (rows + step - 1) / step;
  absl::Status first;
  std::mutex mutex;  // guards first
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
  for (int64_t i = 0; i < chunks; ++i) {
    const absl::Status status = body(i * step, std::min(rows, (i + 1) * step));
    if (!status.ok()) {
      std::lock_guard<std::mutex> lock(mutex);
      if (first.ok()) first = status;
    }
  }
  return first;
}

absl::Status BaseReader::Read(const std::string& name, int64_t rows, int64_t cols, bool may_quantise, float* out) {
  const StoredAs type = source_.Type(name);
  if (may_quantise && base_ == BaseWeights::kNf4 && type != StoredAs::kNf4) {
    return ReadThroughNf4(name, rows, cols, type, out);
  }
  return Chunks(rows, cols,
                [&](int64_t begin, int64_t end) { return source_.ReadRows(name, begin, end, out + begin * cols); });
}

absl::Status BaseReader::ReadThroughNf4(const std::string& name, int64_t rows, int64_t cols, StoredAs type,
                                        float* out) {
  const int64_t n = rows * cols;
  const int64_t block = kNf4DefaultBlock;
  const int64_t blocks = Nf4Blocks(n, block);
  packed_.resize(static_cast<size_t>(Nf4PackedBytes(n)));
  absmax_.resize(static_cast<size_t>(blocks));
  absmax_codes_.resize(static_cast<size_t>(blocks));
  nested_absmax_.resize(static_cast<size_t>(Nf4Blocks(blocks, kNf4NestedBlock)));
  absl::Status quantised = Chunks(rows, cols, [&](int64_t begin, int64_t end) -> absl::Status {
    float* const w = out + begin * cols;
    LH_RETURN_IF_ERROR(source_.ReadRows(name, begin, end, w));
    return Annotate(QuantizeNf4(w, (end - begin) * cols, block, packed_.data() + begin * cols / 2,
                                absmax_.data() + begin * cols / block),
                    name);
  });
  LH_RETURN_IF_ERROR(quantised);
  const float offset = MeanAbsmax(absmax_.data(), blocks);
  QuantizeAbsmax(absmax_.data(), blocks, offset, absmax_codes_.data(), nested_absmax_.data());
  DequantizeAbsmax(absmax_codes_.data(), kNf4NestedCodes.data(), nested_absmax_.data(), offset, 0, blocks,
                   kNf4NestedBlock, absmax_.data());
  return Chunks(rows, cols, [&](int64_t begin, int64_t end) {
    DequantizeNf4(packed_.data(), absmax_.data(), begin * cols, end * cols, block, out + begin * cols);
    RoundTo(type, out + begin * cols, (end - begin) * cols);
    return absl::OkStatus();
  });
}

}  // namespace longhaul::train
