// What a matrix product of the CUDA backend looks like: everything that decides which kernel of the library runs it.
// Pure: no CUDA header, so that the memory plan and the LoRA foldings (lora_fold.h) can speak of shapes.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace longhaul::kernels::cuda {

enum class GemmElement { kBF16, kF32, kE4M3 };
// Scales of FP8 operands, f32 in device memory, each element = stored * scale. kTensor: one for a matrix. kRow: one for
// each row of op(a), one for each column of op(b).
enum class GemmScale { kNone, kTensor, kRow };

// c [m, n] = alpha * op(a) [m, k] * op(b) [k, n] + (accumulate ? c : 0), row-major; op is the transpose where the flag
// says so. Sums in f32, c rounded once. a and b: bf16 or E4M3. c: bf16 or f32.
// FP8 (a, b E4M3): transpose_b only (the tensor cores of Hopper take operands that are contiguous along k).
struct GemmShape {
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;
  // FP8: partial sums of 14 bits, the tensor cores' fast mode; else they are promoted to f32 as they are formed.
  bool fast_accumulation = false;
  GemmElement input = GemmElement::kBF16;
  GemmElement output = GemmElement::kBF16;
  GemmScale scale = GemmScale::kNone;
  int64_t m = 0, n = 0, k = 0;
  // Elements from one stored row to the next of a, b, c; at least the stored columns (k or m, n or k, n).
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  // What every pointer is a multiple of. Strides are checked against it too; below 16 the fast kernels are lost.
  int64_t alignment_bytes = 16;

  auto operator<=>(const GemmShape&) const = default;
  // Multiplications and additions.
  double flops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
};

inline int64_t GemmElementBytes(GemmElement element) {
  return element == GemmElement::kF32 ? 4 : element == GemmElement::kBF16 ? 2 : 1;
}

// INVALID_ARGUMENT, reason INVALID_FIELD: a size below 1 or above int32, a stride below the columns, strides that break
// the alignment, types or scales that do not go together.
absl::Status CheckGemmShape(const GemmShape& shape);

// "bf16>f32 NT m4096 n4096 k4128 a4160 b4160 c4096 al16 +c fast row": one word or number a fact, never two shapes
// alike.
std::string GemmKey(const GemmShape& shape);
// The inverse. INVALID_ARGUMENT names the word that it does not understand.
absl::StatusOr<GemmShape> ParseGemmKey(const std::string& key);

}  // namespace longhaul::kernels::cuda
