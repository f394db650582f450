// Norm and rotation of the heads of q or k in one pass, and back: y = rope(x * w * rstd), rounded once.
// A thread holds packs of a head's first half and the packs of the second half that they are turned with, so that a
// pair never leaves it; lanes of a warp share a head and its sums. It does so for several heads of a row: cosines,
// sines and weights are f32, twice as large as what they are multiplied with, and read once for all of them. Which lane
// holds what depends on head_dim alone.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace longhaul::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeadsPerThread = 4;

struct Heads {
  int64_t rows, heads;
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
template <typename T, int kCount>
struct Pair {
  Pack<T, kCount> first, second;
  __device__ Values<kCount> values() const {
    Values<kCount> v;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      v.first[i] = first[i];
      v.second[i] = second[i];
    }
    return v;
  }
};

template <int kCount, typename T>
__device__ Pair<T, kCount> LoadPair(const T* head, int64_t half, int64_t col) {
  return {Load<kCount>(head + col), Load<kCount>(head + half + col)};
}

template <int kCount, typename T>
__device__ void StorePair(T* head, int64_t half, int64_t col, const Values<kCount>& values) {
  Store(head + col, PackOf<T>(values.first));
  Store(head + half + col, PackOf<T>(values.second));
}

// What all heads of a row are multiplied with at one column.
template <int kCount>
struct Factors {
  Pack<float, kCount> cos, sin;
  Values<kCount> weight;

  template <typename W>
  __device__ Factors(const Turns& turns, int32_t position, const W* w, int64_t half, int64_t col)
      : cos(Load<kCount>(turns.cos(position, col))),
        sin(Load<kCount>(turns.sin(position, col))),
        weight(LoadPair<kCount>(w, half, col).values()) {}

  __device__ Values<kCount> Weighted(const Values<kCount>& x, float factor) const {
    Values<kCount> y;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      y.first[i] = x.first[i] * factor * weight.first[i];
      y.second[i] = x.second[i] * factor * weight.second[i];
    }
    return y;
  }
  // sign: -1 turns back.
  __device__ Values<kCount> Turned(const Values<kCount>& x, float sign) const {
    Values<kCount> y;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float turn = sign * sin[i];
      y.first[i] = x.first[i] * cos[i] - x.second[i] * turn;
      y.second[i] = x.second[i] * cos[i] + x.first[i] * turn;
    }
    return y;
  }
};

// The heads of this thread's lanes: kHeadsPerThread of a row, those behind its last one idle. A thread holds one pair
// of packs of a head, and reads what a wider one (kWide) has beyond again. Idle lanes take part in sums.
template <int kCount, int kLanes, bool kWide>
struct Place {
  int64_t row, first_head, half;
  int32_t position;
  int heads, col;

  __device__ Place(const Heads& s, const int32_t* positions) {
    const int64_t groups = (s.heads + kHeadsPerThread - 1) / kHeadsPerThread;
    const int64_t group = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
    const bool active = group < s.rows * groups;
    row = active ? group / groups : 0;
    first_head = active ? group % groups * kHeadsPerThread : 0;
    heads = active ? static_cast<int>(min(int64_t{kHeadsPerThread}, s.heads - first_head)) : 0;
    half = s.half;
    col = static_cast<int>(threadIdx.x) % kLanes * kCount;
    position = positions[row];
    // An index out of range is a bug of the engine: the kernel ends, and with it the trainer.
    if (position < 0 || position >= s.positions) __trap();
  }
  __device__ bool Holds(int h) const { return h < heads && col < half; }
  template <typename T>
  __device__ T* Head(const Rows<T>& x, int h) const {
    return x(row, (first_head + h) * 2 * half);
  }
  template <typename T>
  __device__ Pair<T, kCount> Read(const Rows<T>& x, int h, int64_t at) const {
    return LoadPair<kCount>(Head(x, h), half, at);
  }
  // body(column) for what is not held.
  template <typename Body>
  __device__ void ForEachFurther(int h, const Body& body) const {
    if constexpr (kWide) {
      if (h >= heads) return;
      for (int64_t further = col + kLanes * kCount; further < half; further += kLanes * kCount) body(further);
    }
  }
};

template <typename T, typename W, int kCount, int kLanes, bool kWide>
__global__ void __launch_bounds__(kThreads)
    NormRopeKernel(Heads s, Rows<T> x, const W* w, float eps, Turns turns, Rows<T> raw, Rows<T> y, Rows<float> rstd) {
  const Place<kCount, kLanes, kWide> at(s, turns.positions);
  const Factors<kCount> held_factors(turns, at.position, w, s.half, at.col < s.half ? at.col : 0);
  Pair<T, kCount> next;
  if (at.Holds(0)) next = at.Read(x, 0, at.col);
#pragma unroll 1
  for (int h = 0; h < kHeadsPerThread; ++h) {
    const Pair<T, kCount> held = next;
    if (at.Holds(h + 1)) next = at.Read(x, h + 1, at.col);
    float squares = 0;
    const auto add = [&](const Values<kCount>& v) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) squares += v.first[i] * v.first[i] + v.second[i] * v.second[i];
    };
    if (at.Holds(h)) add(held.values());
    at.ForEachFurther(h, [&](int64_t col) { add(at.Read(x, h, col).values()); });
    const float mean = ReduceLanes<kLanes>(squares, Plus()) / static_cast<float>(2 * s.half);
    const float factor = 1.0f / sqrtf(mean + eps);
    const auto write = [&](int64_t col, const Factors<kCount>& factors, const Pair<T, kCount>& pair) {
      if (raw.data != nullptr) {
        Store(at.Head(raw, h) + col, pair.first);
        Store(at.Head(raw, h) + s.half + col, pair.second);
      }
      const Values<kCount> normed = factors.Weighted(pair.values(), factor);
      StorePair(at.Head(y, h), s.half, col, factors.Turned(normed, 1.0f));
    };
    if (!at.Holds(h)) continue;
    if (at.col == 0 && rstd.data != nullptr) *rstd(at.row, at.first_head + h) = factor;
    write(at.col, held_factors, held);
    at.ForEachFurther(h, [&](int64_t col) { write(col, {turns, at.position, w, s.half, col}, at.Read(x, h, col)); });
  }
}

// dx = rstd * (g - xhat * mean(g * xhat)), g = w * (dy turned back), xhat = x * rstd.
template <typename T, typename W, int kCount, int kLanes, bool kWide>
__global__ void __launch_bounds__(kThreads)
    NormRopeBackwardKernel(Heads s, Rows<T> dy, Rows<T> x, const W* w, Rows<float> rstd, Turns turns, Rows<T> dx) {
  const Place<kCount, kLanes, kWide> at(s, turns.positions);
  const Factors<kCount> held_factors(turns, at.position, w, s.half, at.col < s.half ? at.col : 0);
  Pair<T, kCount> next_dy, next_x;
  if (at.Holds(0)) {
    next_dy = at.Read(dy, 0, at.col);
    next_x = at.Read(x, 0, at.col);
  }
#pragma unroll 1
  for (int h = 0; h < kHeadsPerThread; ++h) {
    const Pair<T, kCount> held_dy = next_dy, held_x = next_x;
    if (at.Holds(h + 1)) {
      next_dy = at.Read(dy, h + 1, at.col);
      next_x = at.Read(x, h + 1, at.col);
    }
    const float factor = h < at.heads ? *rstd(at.row, at.first_head + h) : 0.0f;
    float product = 0;
    const auto add = [&](const Factors<kCount>& factors, const Pair<T, kCount>& d, const Pair<T, kCount>& pair) {
      const Values<kCount> g = factors.Weighted(factors.Turned(d.values(), -1.0f), 1.0f), v = pair.values();
#pragma unroll
      for (int i = 0; i < kCount; ++i) product += g.first[i] * v.first[i] + g.second[i] * v.second[i];
    };
    if (at.Holds(h)) add(held_factors, held_dy, held_x);
    at.ForEachFurther(h, [&](int64_t col) {
      add({turns, at.position, w, s.half, col}, at.Read(dy, h, col), at.Read(x, h, col));
    });
    const float mean = ReduceLanes<kLanes>(product, Plus()) * factor / static_cast<float>(2 * s.half);
    const auto write = [&](int64_t col, const Factors<kCount>& factors, const Pair<T, kCount>& d,
                           const Pair<T, kCount>& pair) {
      const Values<kCount> g = factors.Weighted(factors.Turned(d.values(), -1.0f), 1.0f), v = pair.values();
      Values<kCount> result;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        result.first[i] = factor * (g.first[i] - v.first[i] * factor * mean);
        result.second[i] = factor * (g.second[i] - v.second[i] * factor * mean);
      }
      StorePair(at.Head(dx, h), s.half, col, result);
    };
    if (!at.Holds(h)) continue;
    write(at.col, held_factors, held_dy, held_x);
    at.ForEachFurther(h, [&](int64_t col) {
      write(col, {turns, at.position, w, s.half, col}, at.Read(dy, h, col), at.Read(x, h, col));
    });
  }
}

// Calls launch.operator()<kLanes, kWide>(blocks) for the fewest lanes that hold a head, else 32.
template <typename LaunchLanes>
void WithLanes(const Heads& s, int count, const LaunchLanes& launch) {
  const int64_t pairs = CeilDiv(s.half, count), groups = s.rows * CeilDiv(s.heads, kHeadsPerThread);
  if (pairs <= 8) return launch.template operator()<8, false>(CeilDiv(groups, kThreads / 8));
  if (pairs <= 16) return launch.template operator()<16, false>(CeilDiv(groups, kThreads / 16));
  if (pairs <= kWarp) return launch.template operator()<kWarp, false>(CeilDiv(groups, kThreads / kWarp));
  launch.template operator()<kWarp, true>(CeilDiv(groups, kThreads / kWarp));
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
  return {x.rows, heads, rotation.cos.cols, rotation.cos.rows};
}

Turns TurnsOf(const Rotation& rotation) {
  return {Rows<float>(rotation.cos), Rows<float>(rotation.sin), rotation.positions};
}

}  // namespace

void HeadRmsNormRope(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps,
                     const Rotation& rotation, const Tensor& raw, const Tensor& y, const Tensor& rstd) {
  const Heads shape = HeadsOf(x, heads, rotation);
  WithElements(w, rotation, {x, raw, y}, [&]<typename T, typename W, int kCount>() {
    WithLanes(shape, kCount, [&]<int kLanes, bool kWide>(int64_t blocks) {
      Launch(exec, "HeadRmsNormRope", NormRopeKernel<T, W, kCount, kLanes, kWide>, blocks, kThreads, 0, shape,
             Rows<T>(x), w.as<W>(), static_cast<float>(eps), TurnsOf(rotation), Rows<T>(raw), Rows<T>(y),
             Rows<float>(rstd));
    });
  });
}

void HeadRmsNormRopeBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                             const Tensor& rstd, const Rotation& rotation, const Tensor& dx) {
  const Heads shape = HeadsOf(x, heads, rotation);
  WithElements(w, rotation, {dy, x, dx}, [&]<typename T, typename W, int kCount>() {
    WithLanes(shape, kCount, [&]<int kLanes, bool kWide>(int64_t blocks) {
      Launch(exec, "HeadRmsNormRopeBackward", NormRopeBackwardKernel<T, W, kCount, kLanes, kWide>, blocks, kThreads, 0,
             shape, Rows<T>(dy), Rows<T>(x), w.as<W>(), Rows<float>(rstd), TurnsOf(rotation), Rows<T>(dx));
    });
  });
}

}  // namespace longhaul::kernels::cuda
