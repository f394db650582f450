// Gated activations: act(x) = x * s(z(x)), s the logistic function. silu: z = x. gelu (tanh): z = 2 sqrt(2/pi) (x +
// 0.044715 x^3), because (1 + tanh(u)) / 2 = s(2u); the form with tanh would cancel for negative x.
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd.h"

namespace longhaul::kernels::cpu {
namespace {

struct Silu {
  template <typename T>
  static LONGHAUL_SIMD_INLINE T Argument(T x) {
    return x;
  }
  // act' = s + act (1 - s) z', with z' = 1.
  template <typename T>
  static LONGHAUL_SIMD_INLINE T Slope(T, T s, T act) {
    return s + act * (T{1} - s);
  }
};

struct GeluTanh {
  static constexpr double kScale = 1.5957691216057307118;  // 2 sqrt(2/pi)
  static constexpr double kCubic = 0.044715;
  template <typename T>
  static LONGHAUL_SIMD_INLINE T Argument(T x) {
    return static_cast<T>(kScale) * (x + static_cast<T>(kCubic) * x * x * x);
  }
  template <typename T>
  static LONGHAUL_SIMD_INLINE T Slope(T x, T s, T act) {
    return s + act * (T{1} - s) * static_cast<T>(kScale) * (T{1} + static_cast<T>(3 * kCubic) * x * x);
  }
};

// y = act(gate) * up.
template <typename Activation, typename T>
LONGHAUL_SIMD void ForwardRow(const T* gate, const T* up, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] * Sigmoid(Activation::Argument(gate[i])) * up[i];
}

// Everything of an element is read before anything of it is written.
template <typename Activation, typename T>
LONGHAUL_SIMD void BackwardRow(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T g = gate[i], u = up[i], d = dy[i];
    const T s = Sigmoid(Activation::Argument(g));
    const T act = g * s;
    dgate[i] = d * u * Activation::Slope(g, s, act);
    dup[i] = d * act;
  }
}

template <typename Activation>
void Forward(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  WithFloatType(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        ForwardRow<Activation>(Row<T>(gate, i), Row<T>(up, i), Row<T>(y, i), y.cols);
      }
    });
  });
}

template <typename Activation>
void Backward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
              const Tensor& dup, const Tensor& y) {
  WithFloatType(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, dy.rows, dy.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        // The forward's own loop, so that the product has the forward's bits.
        if (y.data != nullptr) ForwardRow<Activation>(Row<T>(gate, i), Row<T>(up, i), Row<T>(y, i), dy.cols);
        BackwardRow<Activation>(Row<T>(dy, i), Row<T>(gate, i), Row<T>(up, i), Row<T>(dgate, i), Row<T>(dup, i),
                                dy.cols);
      }
    });
  });
}

}  // namespace

void SwiGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  Forward<Silu>(exec, gate, up, y);
}

void SwiGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                    const Tensor& dup, const Tensor& y) {
  Backward<Silu>(exec, dy, gate, up, dgate, dup, y);
}

void GeGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  Forward<GeluTanh>(exec, gate, up, y);
}

void GeGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                   const Tensor& dup, const Tensor& y) {
  Backward<GeluTanh>(exec, dy, gate, up, dgate, dup, y);
}

}  // namespace longhaul::kernels::cpu
