// Norm and rotation of the heads of q or k in one pass, and back: y = rope(x * w * rstd), rounded once.
// A thread holds packs of a head's first half and the packs of the second half that they are turned with, so that a
// pair never leaves it; lanes of a warp share a head and its sums. Which lane holds what depends on head_dim alone.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kThreads = 256;
// Pairs of packs that a thread keeps in registers between the two passes; what a wider head has beyond is read again.
constexpr int kHeld = 2;

struct Heads {
  int64_t count;  // rows * heads
  int64_t heads;
  int64_t half;
  int64_t positions;
};

// Cosines and sines by position.
struct Turns {
  Rows<float> cos, sin;
  const int32_t* positions;
};

template <int kCount>
struct Values {
  float first[kCount], second[kCount];
};

// The head of this thread's lanes. Lanes behind the last head are idle, but take part in sums.
template <int kCount, int kLanes>
struct Place {
  int64_t row, base;  // first column
  int32_t position;
  int half, first, step;
  bool leads;

  __device__ Place(const Heads& s, const int32_t* positions) {
    const int64_t head = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
    const bool active = head < s.count;
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    row = active ? head / s.heads : 0;
    base = (active ? head % s.heads : 0) * 2 * s.half;
    half = active ? static_cast<int>(s.half) : 0;
    first = lane * kCount;
    step = kLanes * kCount;
    leads = active && lane == 0;
    position = positions[row];
    // An index out of range is a bug of the engine: the kernel ends, and with it the trainer.
    if (position < 0 || position >= s.positions) __trap();
  }
};

template <int kCount, typename T>
__device__ Values<kCount> LoadPair(const T* head, int64_t half, int64_t col) {
  const Pack<T, kCount> first = Load<kCount>(head + col), second = Load<kCount>(head + half + col);
  Values<kCount> values;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values.first[i] = first[i];
    values.second[i] = second[i];
  }
  return values;
}

template <int kCount, typename T>
__device__ void StorePair(T* head, int64_t half, int64_t col, const Values<kCount>& values) {
  Store(head + col, PackOf<T>(values.first));
  Store(head + half + col, PackOf<T>(values.second));
}

// sign: -1 turns back.
template <int kCount>
__device__ Values<kCount> Turned(const Values<kCount>& x, const Turns& turns, int32_t position, int64_t col,
                                 float sign) {
  const Pack<float, kCount> c = Load<kCount>(turns.cos(position, col));
  const Pack<float, kCount> t = Load<kCount>(turns.sin(position, col));
  Values<kCount> y;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float turn = sign * t[i];
    y.first[i] = x.first[i] * c[i] - x.second[i] * turn;
    y.second[i] = x.second[i] * c[i] + x.first[i] * turn;
  }
  return y;
}

// body(col, values) for the thread's pairs of packs, those it holds first.
template <int kCount, int kLanes, typename Held, typename Read, typename Body>
__device__ void ForEachPair(const Place<kCount, kLanes>& at, const Held& held, const Read& read, const Body& body) {
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    const int col = at.first + p * at.step;
    if (col < at.half) body(col, held[p]);
  }
  for (int col = at.first + kHeld * at.step; col < at.half; col += at.step) body(col, read(col));
}

template <typename T, typename W, int kCount, int kLanes>
__global__ void __launch_bounds__(kThreads)
    NormRopeKernel(Heads s, Rows<T> x, const W* w, float eps, Turns turns, Rows<T> raw, Rows<T> y, Rows<float> rstd) {
  const Place<kCount, kLanes> at(s, turns.positions);
  const auto read = [&](int col) { return LoadPair<kCount>(x(at.row, at.base), s.half, col); };
  Values<kCount> held[kHeld];
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    if (at.first + p * at.step < at.half) held[p] = read(at.first + p * at.step);
  }
  float squares = 0;
  ForEachPair(at, held, read, [&](int, const Values<kCount>& v) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares += v.first[i] * v.first[i] + v.second[i] * v.second[i];
  });
  const float factor = 1.0f / sqrtf(ReduceLanes<kLanes>(squares, Plus()) / static_cast<float>(2 * s.half) + eps);
  if (at.leads && rstd.data != nullptr) *rstd(at.row, at.base / (2 * s.half)) = factor;
  ForEachPair(at, held, read, [&](int col, const Values<kCount>& v) {
    if (raw.data != nullptr) StorePair(raw(at.row, at.base), s.half, col, v);
    const Values<kCount> weight = LoadPair<kCount>(w, s.half, col);
    Values<kCount> normed;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      normed.first[i] = v.first[i] * factor * weight.first[i];
      normed.second[i] = v.second[i] * factor * weight.second[i];
    }
    StorePair(y(at.row, at.base), s.half, col, Turned(normed, turns, at.position, col, 1.0f));
  });
}

// dx = rstd * (g - xhat * mean(g * xhat)), g = w * (dy turned back).
template <typename T, typename W, int kCount, int kLanes>
__global__ void __launch_bounds__(kThreads)
    NormRopeBackwardKernel(Heads s, Rows<T> dy, Rows<T> x, const W* w, Rows<float> rstd, Turns turns, Rows<T> dx) {
  struct Operands {
    Values<kCount> g, xhat;
  };
  const Place<kCount, kLanes> at(s, turns.positions);
  const float factor = at.half > 0 ? *rstd(at.row, at.base / (2 * s.half)) : 0.0f;
  const auto read = [&](int col) {
    Operands o;
    o.g = LoadPair<kCount>(dy(at.row, at.base), s.half, col);
    o.xhat = LoadPair<kCount>(x(at.row, at.base), s.half, col);
    o.g = Turned(o.g, turns, at.position, col, -1.0f);
    const Values<kCount> weight = LoadPair<kCount>(w, s.half, col);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      o.g.first[i] *= weight.first[i];
      o.g.second[i] *= weight.second[i];
      o.xhat.first[i] *= factor;
      o.xhat.second[i] *= factor;
    }
    return o;
  };
  Operands held[kHeld];
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    if (at.first + p * at.step < at.half) held[p] = read(at.first + p * at.step);
  }
  float product = 0;
  ForEachPair(at, held, read, [&](int, const Operands& o) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) product += o.g.first[i] * o.xhat.first[i] + o.g.second[i] * o.xhat.second[i];
  });
  const float mean = ReduceLanes<kLanes>(product, Plus()) / static_cast<float>(2 * s.half);
  ForEachPair(at, held, read, [&](int col, const Operands& o) {
    Values<kCount> result;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      result.first[i] = factor * (o.g.first[i] - o.xhat.first[i] * mean);
      result.second[i] = factor * (o.g.second[i] - o.xhat.second[i] * mean);
    }
    StorePair(dx(at.row, at.base), s.half, col, result);
  });
}

// Calls launch.operator()<kLanes>(blocks) for the fewest lanes that hold a head in registers, else 32.
template <typename LaunchLanes>
void WithLanes(const Heads& s, int count, const LaunchLanes& launch) {
  const int64_t pairs = CeilDiv(s.half, count);
  if (pairs <= 8) return launch.template operator()<8>(CeilDiv(s.count, kThreads / 8));
  if (pairs <= 16) return launch.template operator()<16>(CeilDiv(s.count, kThreads / 16));
  launch.template operator()<32>(CeilDiv(s.count, kThreads / 32));
}

// Calls body.operator()<T, W, kCount>(). Both halves of a head start on a vector where the row does and half a head is
// whole vectors.
template <typename Body>
void WithElements(const Tensor& w, const Rotation& rotation, std::initializer_list<Tensor> rows, const Body& body) {
  const auto weighted = [&]<typename T, typename W>() {
    constexpr int kVector = VectorOf<T>();
    const bool vectors = Vectorizable(kVector, rows) && Vectorizable(kVector, {rotation.cos, rotation.sin, w});
    if (vectors) {
      body.template operator()<T, W, kVector>();
    } else {
      body.template operator()<T, W, 1>();
    }
  };
  if (rows.begin()->dtype == DType::kF32) {
    weighted.template operator()<float, float>();
  } else if (w.dtype == DType::kBF16) {
    weighted.template operator()<Bf16, Bf16>();
  } else {
    weighted.template operator()<Bf16, float>();
  }
}

Heads HeadsOf(const Tensor& x, int64_t heads, const Rotation& rotation) {
  return {x.rows * heads, heads, rotation.cos.cols, rotation.cos.rows};
}

Turns TurnsOf(const Rotation& rotation) {
  return {Rows<float>(rotation.cos), Rows<float>(rotation.sin), rotation.positions};
}

}  // namespace

void HeadRmsNormRope(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps,
                     const Rotation& rotation, const Tensor& raw, const Tensor& y, const Tensor& rstd) {
  const Heads shape = HeadsOf(x, heads, rotation);
  WithElements(w, rotation, {x, raw, y}, [&]<typename T, typename W, int kCount>() {
    WithLanes(shape, kCount, [&]<int kLanes>(int64_t blocks) {
      Launch(exec, "HeadRmsNormRope", NormRopeKernel<T, W, kCount, kLanes>, blocks, kThreads, 0, shape, Rows<T>(x),
             w.as<W>(), static_cast<float>(eps), TurnsOf(rotation), Rows<T>(raw), Rows<T>(y), Rows<float>(rstd));
    });
  });
}

void HeadRmsNormRopeBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                             const Tensor& rstd, const Rotation& rotation, const Tensor& dx) {
  const Heads shape = HeadsOf(x, heads, rotation);
  WithElements(w, rotation, {dy, x, dx}, [&]<typename T, typename W, int kCount>() {
    WithLanes(shape, kCount, [&]<int kLanes>(int64_t blocks) {
      Launch(exec, "HeadRmsNormRopeBackward", NormRopeBackwardKernel<T, W, kCount, kLanes>, blocks, kThreads, 0, shape,
             Rows<T>(dy), Rows<T>(x), w.as<W>(), Rows<float>(rstd), TurnsOf(rotation), Rows<T>(dx));
    });
  });
}

}  // namespace longhaul::kernels::cuda
