#include "kernels/shapes/fp8_linear.h"

namespace longhaul::kernels::cuda {
namespace {

GemmShape Product(int64_t rows, int64_t n, int64_t k, int64_t c_stride, bool accumulate) {
  return {.transpose_b = true,
          .accumulate = accumulate,
          .fast_accumulation = true,
          .input = GemmElement::kE4M3,
          .output = GemmElement::kBF16,
          .scale = GemmScale::kRow,
          .m = rows,
          .n = n,
          .k = k,
          .a_stride = k,
          .b_stride = k,
          .c_stride = c_stride};
}

}  // namespace

GemmShape Fp8Forward(const Fp8Linear& linear, int64_t rows, int64_t y_stride, bool accumulate) {
  return Product(rows, linear.out, linear.in, y_stride, accumulate);
}

GemmShape Fp8Backward(const Fp8Linear& linear, int64_t rows, int64_t dx_stride, bool accumulate) {
  return Product(rows, linear.in, linear.out, dx_stride, accumulate);
}

}  // namespace longhaul::kernels::cuda
