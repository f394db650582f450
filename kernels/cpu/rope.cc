// Rotate-half RoPE: element i of a head pairs with element i + head_dim / 2.
#include "base/check.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd.h"

namespace longhaul::kernels::cpu {
namespace {

// sign is -1 for the inverse rotation.
template <typename T>
LONGHAUL_SIMD void RotateHeads(T* row, int64_t heads, int64_t half, const T* cos, const T* sin, T sign) {
  for (int64_t h = 0; h < heads; ++h) {
    T* const first = row + h * 2 * half;
    T* const second = first + half;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const T a = first[i], b = second[i], s = sign * sin[i];
      first[i] = a * cos[i] - b * s;
      second[i] = b * cos[i] + a * s;
    }
  }
}

}  // namespace

void Rope(const Exec& exec, const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin,
          const int32_t* positions, bool inverse) {
  for (int64_t i = 0; i < x.rows; ++i) LH_CHECK(positions[i] >= 0 && positions[i] < cos.rows);
  WithFloatType(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        RotateHeads(Row<T>(x, i), heads, cos.cols, Row<T>(cos, positions[i]), Row<T>(sin, positions[i]),
                    inverse ? T{-1} : T{1});
      }
    });
  });
}

// Nothing is rounded between the two here.
void HeadRmsNormRope(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps,
                     const Rotation& rotation, const Tensor& raw, const Tensor& y, const Tensor& rstd) {
  if (raw.data != nullptr) kernels::Copy(exec, x, raw);
  cpu::HeadRmsNorm(exec, x, w, heads, eps, y, rstd);
  cpu::Rope(exec, y, heads, rotation.cos, rotation.sin, rotation.positions, /*inverse=*/false);
}

void HeadRmsNormRopeBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                             const Tensor& rstd, const Rotation& rotation, const Tensor& dx) {
  if (dx.data != dy.data) kernels::Copy(exec, dy, dx);
  cpu::Rope(exec, dx, heads, rotation.cos, rotation.sin, rotation.positions, /*inverse=*/true);
  cpu::HeadRmsNormBackward(exec, dx, x, w, heads, rstd, dx);
}

}  // namespace longhaul::kernels::cpu
