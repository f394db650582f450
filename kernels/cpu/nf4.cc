// NF4 over the codec of base/nf4.h, rows or blocks split among the threads.
#include "base/nf4.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/check.h"
#include "base/half.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"

namespace longhaul::kernels::cpu {
namespace {

constexpr int64_t kStage = 4096;  // values converted at a time: the largest block

void ReadFloats(const Tensor& w, int64_t begin, int64_t end, float* out) {
  if (w.dtype == DType::kF32) {
    std::memcpy(out, w.as<float>() + begin, static_cast<size_t>(end - begin) * sizeof(float));
    return;
  }
  const uint16_t* const bits = w.as<uint16_t>();
  for (int64_t i = begin; i < end; ++i) {
    out[i - begin] = w.dtype == DType::kBF16 ? Bf16ToFloat(bits[i]) : F16ToFloat(bits[i]);
  }
}

float RoundTo(DType dtype, float x) {
  if (dtype == DType::kBF16) return Bf16ToFloat(FloatToBf16(x));
  return dtype == DType::kF16 ? F16ToFloat(FloatToF16(x)) : x;
}

// The scales of blocks [begin, end).
void Scales(const Nf4Weight& w, int64_t begin, int64_t end, float* out) {
  if (w.absmax_codes == nullptr) {
    std::memcpy(out, w.absmax + begin, static_cast<size_t>(end - begin) * sizeof(float));
    return;
  }
  const float* const map = w.nested_map != nullptr ? w.nested_map : kNf4NestedCodes.data();
  DequantizeAbsmax(w.absmax_codes, map, w.nested_absmax, *w.nested_offset, begin, end, kNf4NestedBlock, out);
}

void DequantizeRow(const Nf4Weight& w, int64_t row, const Tensor& y, int64_t to) {
  float values[kStage];
  float scales[kStage / 32 + 2];
  for (int64_t col = 0; col < w.in; col += kStage) {
    const int64_t begin = row * w.in + col;
    const int64_t end = begin + std::min(kStage, w.in - col);
    const int64_t first = begin / w.block;
    Scales(w, first, (end - 1) / w.block + 1, scales);
    const int64_t base = first * w.block;
    DequantizeNf4(w.packed + base / 2, scales, begin - base, end - base, w.block, values);
    for (int64_t i = 0; i < end - begin; ++i) {
      const float value = RoundTo(w.rounded_to, values[i]);
      const int64_t at = to * y.stride + col + i;
      if (y.dtype == DType::kF32) {
        y.as<float>()[at] = value;
      } else {
        y.as<uint16_t>()[at] = FloatToBf16(value);
      }
    }
  }
}

}  // namespace

void Nf4Quantize(const Exec& exec, const Tensor& w, const Nf4Weight& to) {
  const int64_t n = to.out * to.in;
  ParallelRows(exec, to.blocks(), to.block, [&](int64_t begin, int64_t end) {
    float values[kStage];
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * to.block;
      const int64_t stop = std::min(n, at + to.block);
      ReadFloats(w, at, stop, values);
      const absl::Status status = QuantizeNf4(values, stop - at, to.block, to.packed + at / 2, to.absmax + b);
      LH_CHECK(status.ok(), std::string(status.message()));
    }
  });
}

void Nf4NestAbsmax(const Exec&, const Nf4Weight& w, bool keep_offset) {
  if (!keep_offset) *w.nested_offset = MeanAbsmax(w.absmax, w.blocks());
  QuantizeAbsmax(w.absmax, w.blocks(), *w.nested_offset, w.absmax_codes, w.nested_absmax);
}

void Nf4Dequantize(const Exec& exec, const Nf4Weight& w, int64_t first_row, const Tensor& y) {
  ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) DequantizeRow(w, first_row + i, y, i);
  });
}

}  // namespace longhaul::kernels::cpu
