// Gated activations: act(x) = x * s(z(x)), s the logistic function; z as in cpu/activation.cc. f32 inside, each result
// rounded once.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/map.cuh"

namespace longhaul::kernels::cuda {
namespace {

struct Silu {
  static __device__ float Argument(float x) { return x; }
  static __device__ float Slope(float, float s, float act) { return s + act * (1.0f - s); }
};

struct GeluTanh {
  static constexpr float kScale = 1.5957691216057307118f;  // 2 sqrt(2/pi)
  static constexpr float kCubic = 0.044715f;
  static __device__ float Argument(float x) { return kScale * (x + kCubic * x * x * x); }
  static __device__ float Slope(float x, float s, float act) {
    return s + act * (1.0f - s) * kScale * (1.0f + 3 * kCubic * x * x);
  }
};

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// y = act(gate) * up.
template <typename T, typename Activation>
struct ForwardBody {
  Rows<T> gate, up, y;
  template <int kCount>
  struct Operands {
    Pack<T, kCount> gate, up;
  };
  template <int kCount>
  __device__ void Load(int64_t row, int64_t col, Operands<kCount>* o) const {
    o->gate = cuda::Load<kCount>(gate(row, col));
    o->up = cuda::Load<kCount>(up(row, col));
  }
  template <int kCount>
  __device__ void Store(int64_t row, int64_t col, const Operands<kCount>& o) const {
    float result[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float g = o.gate[i];
      result[i] = g * Sigmoid(Activation::Argument(g)) * o.up[i];
    }
    cuda::Store(y(row, col), PackOf<T>(result));
  }
};

// dgate = dy * up * act'(gate); dup = dy * act(gate); y (where asked for) = act(gate) * up, with the forward's bits.
template <typename T, typename Activation>
struct BackwardBody {
  Rows<T> dy, gate, up, dgate, dup, y;
  template <int kCount>
  struct Operands {
    Pack<T, kCount> dy, gate, up;
  };
  template <int kCount>
  __device__ void Load(int64_t row, int64_t col, Operands<kCount>* o) const {
    o->dy = cuda::Load<kCount>(dy(row, col));
    o->gate = cuda::Load<kCount>(gate(row, col));
    o->up = cuda::Load<kCount>(up(row, col));
  }
  template <int kCount>
  __device__ void Store(int64_t row, int64_t col, const Operands<kCount>& o) const {
    float d_gate[kCount], d_up[kCount], product[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float g = o.gate[i], u = o.up[i], d = o.dy[i];
      const float s = Sigmoid(Activation::Argument(g));
      const float act = g * s;
      d_gate[i] = d * u * Activation::Slope(g, s, act);
      d_up[i] = d * act;
      product[i] = act * u;
    }
    cuda::Store(dgate(row, col), PackOf<T>(d_gate));
    cuda::Store(dup(row, col), PackOf<T>(d_up));
    if (y.data != nullptr) cuda::Store(y(row, col), PackOf<T>(product));
  }
};

template <typename Activation>
void Forward(const Exec& exec, const char* op, const Tensor& gate, const Tensor& up, const Tensor& y) {
  WithActivation(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    Map<VectorOf<T>()>(exec, op, y.rows, y.cols, {gate, up, y},
                       ForwardBody<T, Activation>{Rows<T>(gate), Rows<T>(up), Rows<T>(y)});
  });
}

template <typename Activation>
void Backward(const Exec& exec, const char* op, const Tensor& dy, const Tensor& gate, const Tensor& up,
              const Tensor& dgate, const Tensor& dup, const Tensor& y) {
  WithActivation(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    Map<VectorOf<T>()>(
        exec, op, dy.rows, dy.cols, {dy, gate, up, dgate, dup, y},
        BackwardBody<T, Activation>{Rows<T>(dy), Rows<T>(gate), Rows<T>(up), Rows<T>(dgate), Rows<T>(dup), Rows<T>(y)});
  });
}

}  // namespace

void SwiGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  Forward<Silu>(exec, "SwiGlu", gate, up, y);
}

void SwiGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                    const Tensor& dup, const Tensor& y) {
  Backward<Silu>(exec, "SwiGluBackward", dy, gate, up, dgate, dup, y);
}

void GeGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  Forward<GeluTanh>(exec, "GeGlu", gate, up, y);
}

void GeGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                   const Tensor& dup, const Tensor& y) {
  Backward<GeluTanh>(exec, "GeGluBackward", dy, gate, up, dgate, dup, y);
}

}  // namespace longhaul::kernels::cuda
