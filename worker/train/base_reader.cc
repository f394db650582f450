#include "worker/train/base_reader.h"

#include <algorithm>
#include <mutex>
#include <numeric>

#include "base/error.h"
#include "base/status_macros.h"
#include "model/plan_layout.h"
#include "worker/formats/bnb_nf4.h"
#include "worker/formats/half.h"

namespace longhaul::train {
namespace {

constexpr int64_t kChunkElements = 1 << 16;

void RoundTo(StoredAs type, float* w, int64_t n) {
  if (type == StoredAs::kBF16) {
    for (int64_t i = 0; i < n; ++i) w[i] = formats::Bf16ToFloat(formats::FloatToBf16(w[i]));
  } else if (type == StoredAs::kF16) {
    for (int64_t i = 0; i < n; ++i) w[i] = formats::F16ToFloat(formats::FloatToF16(w[i]));
  }
}

}  // namespace

// body(first row, end row) over chunks of whole rows that are also whole NF4 blocks; the first error wins.
template <typename Body>
absl::Status BaseReader::Chunks(int64_t rows, int64_t cols, const Body& body) const {
  const int64_t granule = formats::kNf4DefaultBlock / std::gcd(cols, formats::kNf4DefaultBlock);
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
  const int64_t block = formats::kNf4DefaultBlock;
  const int64_t blocks = formats::Nf4Blocks(n, block);
  packed_.resize(static_cast<size_t>(formats::Nf4PackedBytes(n)));
  absmax_.resize(static_cast<size_t>(blocks));
  absmax_codes_.resize(static_cast<size_t>(blocks));
  nested_absmax_.resize(static_cast<size_t>(formats::Nf4Blocks(blocks, formats::kNf4NestedBlock)));
  absl::Status quantised = Chunks(rows, cols, [&](int64_t begin, int64_t end) -> absl::Status {
    float* const w = out + begin * cols;
    LH_RETURN_IF_ERROR(source_.ReadRows(name, begin, end, w));
    return Annotate(formats::QuantizeNf4(w, (end - begin) * cols, block, packed_.data() + begin * cols / 2,
                                         absmax_.data() + begin * cols / block),
                    name);
  });
  LH_RETURN_IF_ERROR(quantised);
  const float offset = formats::MeanAbsmax(absmax_.data(), blocks);
  formats::QuantizeAbsmax(absmax_.data(), blocks, offset, absmax_codes_.data(), nested_absmax_.data());
  formats::DequantizeAbsmax(absmax_codes_.data(), formats::kNf4NestedCodes.data(), nested_absmax_.data(), offset, 0,
                            blocks, formats::kNf4NestedBlock, absmax_.data());
  return Chunks(rows, cols, [&](int64_t begin, int64_t end) {
    formats::DequantizeNf4(packed_.data(), absmax_.data(), begin * cols, end * cols, block, out + begin * cols);
    RoundTo(type, out + begin * cols, (end - begin) * cols);
    return absl::OkStatus();
  });
}

}  // namespace longhaul::train
