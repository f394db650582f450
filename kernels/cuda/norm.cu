// RMS normalisation of rows, and of the heads within a row: y = x * w * rstd, rstd = 1 / sqrt(mean(x^2) + eps).
// A "segment" is a row, or one head of it. Up to 32 packs of a segment fit one group of lanes of a warp; longer
// segments take a block. Which lanes hold what depends on the segment's width alone, so bits do not depend on the other
// rows.
#include <type_traits>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace longhaul::kernels::cuda {
namespace {

// Packs that a thread keeps in registers between the two passes; what a wider segment has beyond is read again. The
// backward pass keeps them of two tensors. (Measured: kernels/README.md.)
constexpr int kHeld = 4;
constexpr int kHeldBackward = 2;
constexpr int kSegmentThreads = 256;  // of a block whose warps hold several segments
constexpr int kMaxThreads = 1024;

// The lanes that share a segment: kLanes of a warp, or the whole block where kLanes is 0.
template <int kLanes>
struct Team {
  int64_t segment;
  int lane, lanes;

  __device__ Team() {
    if constexpr (kLanes == 0) {
      segment = blockIdx.x;
      lane = static_cast<int>(threadIdx.x);
      lanes = static_cast<int>(blockDim.x);
    } else {
      segment = int64_t{blockIdx.x} * (kSegmentThreads / kLanes) + threadIdx.x / kLanes;
      lane = static_cast<int>(threadIdx.x) % kLanes;
      lanes = kLanes;
    }
  }
  __device__ float Sum(float value) const {
    if constexpr (kLanes == 0) {
      __shared__ float shared[kMaxWarps];
      return ReduceBlock(value, shared, 0.0f, Plus());
    } else {
      return ReduceLanes<kLanes>(value, Plus());
    }
  }
};

struct Segments {
  int64_t count;  // rows * heads
  int64_t heads;
  int64_t width;
};

// x += delta first, where kAdd.
template <typename T, typename W, int kCount, int kLanes, bool kAdd>
__global__ void __launch_bounds__(kLanes == 0 ? kMaxThreads : kSegmentThreads)
    NormKernel(Segments s, Rows<T> delta, Rows<T> x, const W* w, float eps, Rows<T> y, Rows<float> rstd) {
  const Team<kLanes> team;
  const bool active = team.segment < s.count;
  const int64_t row = active ? team.segment / s.heads : 0;
  const int64_t head = active ? team.segment % s.heads : 0;
  const int64_t width = active ? s.width : 0;
  const int64_t base = head * s.width;
  const int64_t first = int64_t{team.lane} * kCount;
  const int64_t step = int64_t{team.lanes} * kCount;

  Pack<T, kCount> held[kHeld];
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    if (first + p * step < width) held[p] = Load<kCount>(x(row, base + first + p * step));
  }
  if constexpr (kAdd) {
    Pack<T, kCount> added[kHeld];
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
      if (first + p * step < width) added[p] = Load<kCount>(delta(row, base + first + p * step));
    }
#pragma unroll
    for (int p = 0; p < kHeld; ++p) {
      const int64_t col = first + p * step;
      if (col >= width) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) held[p].Set(i, held[p][i] + added[p][i]);
      Store(x(row, base + col), held[p]);
    }
  }
  float squares = 0;
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    if (first + p * step >= width) continue;
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares += held[p][i] * held[p][i];
  }
  for (int64_t col = first + kHeld * step; col < width; col += step) {
    Pack<T, kCount> pack = Load<kCount>(x(row, base + col));
    if constexpr (kAdd) {
      const Pack<T, kCount> more = Load<kCount>(delta(row, base + col));
#pragma unroll
      for (int i = 0; i < kCount; ++i) pack.Set(i, pack[i] + more[i]);
      Store(x(row, base + col), pack);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares += pack[i] * pack[i];
  }
  const float factor = 1.0f / sqrtf(team.Sum(squares) / static_cast<float>(s.width) + eps);
  if (active && team.lane == 0 && rstd.data != nullptr) *rstd(row, head) = factor;

  const auto write = [&](int64_t col, const Pack<T, kCount>& pack) {
    const Pack<W, kCount> weight = Load<kCount>(w + col);
    float result[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) result[i] = pack[i] * factor * weight[i];
    Store(y(row, base + col), PackOf<T>(result));
  };
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    if (first + p * step < width) write(first + p * step, held[p]);
  }
  for (int64_t col = first + kHeld * step; col < width; col += step) write(col, Load<kCount>(x(row, base + col)));
}

// dx (+)= rstd * (dy*w - xhat * mean(dy*w*xhat)). ids: rows of x and dx that the segments' belong to; null: their own.
template <typename T, typename D, typename W, int kCount, int kLanes, bool kAccumulate>
__global__ void __launch_bounds__(kLanes == 0 ? kMaxThreads : kSegmentThreads)
    NormBackwardKernel(Segments s, const int32_t* ids, Rows<D> dy, Rows<T> x, const W* w, Rows<float> rstd,
                       Rows<T> dx) {
  const Team<kLanes> team;
  const bool active = team.segment < s.count;
  const int64_t row = active ? team.segment / s.heads : 0;
  const int64_t place = active && ids != nullptr ? ids[row] : row;
  const int64_t head = active ? team.segment % s.heads : 0;
  const int64_t width = active ? s.width : 0;
  const int64_t base = head * s.width;
  const int64_t first = int64_t{team.lane} * kCount;
  const int64_t step = int64_t{team.lanes} * kCount;
  const float factor = active ? *rstd(row, head) : 0.0f;

  Pack<D, kCount> held_dy[kHeldBackward];
  Pack<T, kCount> held_x[kHeldBackward];
#pragma unroll
  for (int p = 0; p < kHeldBackward; ++p) {
    if (first + p * step >= width) continue;
    held_dy[p] = Load<kCount>(dy(row, base + first + p * step));
    held_x[p] = Load<kCount>(x(place, base + first + p * step));
  }
  float product = 0;
  const auto add = [&](int64_t col, const Pack<D, kCount>& d, const Pack<T, kCount>& v) {
    const Pack<W, kCount> weight = Load<kCount>(w + col);
#pragma unroll
    for (int i = 0; i < kCount; ++i) product += d[i] * weight[i] * (v[i] * factor);
  };
#pragma unroll
  for (int p = 0; p < kHeldBackward; ++p) {
    if (first + p * step < width) add(first + p * step, held_dy[p], held_x[p]);
  }
  for (int64_t col = first + kHeldBackward * step; col < width; col += step) {
    add(col, Load<kCount>(dy(row, base + col)), Load<kCount>(x(place, base + col)));
  }
  const float mean = team.Sum(product) / static_cast<float>(s.width);

  const auto write = [&](int64_t col, const Pack<D, kCount>& d, const Pack<T, kCount>& v) {
    const Pack<W, kCount> weight = Load<kCount>(w + col);
    Pack<T, kCount> before;
    if constexpr (kAccumulate) before = Load<kCount>(dx(place, base + col));
    float result[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      result[i] = factor * (d[i] * weight[i] - v[i] * factor * mean);
      if constexpr (kAccumulate) result[i] += before[i];
    }
    Store(dx(place, base + col), PackOf<T>(result));
  };
#pragma unroll
  for (int p = 0; p < kHeldBackward; ++p) {
    if (first + p * step < width) write(first + p * step, held_dy[p], held_x[p]);
  }
  for (int64_t col = first + kHeldBackward * step; col < width; col += step) {
    write(col, Load<kCount>(dy(row, base + col)), Load<kCount>(x(place, base + col)));
  }
}

// Calls launch.operator()<kLanes>(blocks, threads) for the least team that holds a segment in registers.
template <typename LaunchTeam>
void WithTeam(const Segments& s, int count, int held, const LaunchTeam& launch) {
  const int64_t packs = CeilDiv(s.width, count);
  const auto grouped = [&]<int kLanes>() {
    launch.template operator()<kLanes>(CeilDiv(s.count, kSegmentThreads / kLanes), kSegmentThreads);
  };
  if (packs <= 8) return grouped.template operator()<8>();
  if (packs <= 16) return grouped.template operator()<16>();
  if (packs <= int64_t{kWarp} * held) return grouped.template operator()<kWarp>();
  const int64_t threads = std::min<int64_t>(kMaxThreads, CeilDiv(CeilDiv(packs, held), kWarp) * kWarp);
  launch.template operator()<0>(s.count, static_cast<int>(threads));
}

// Calls body(W{}) and body with the vector width: body.operator()<T, W, kCount>().
template <typename Body>
void WithTypes(DType x, DType w, bool vectors, const Body& body) {
  const auto weighted = [&]<typename T, typename W>() {
    if (vectors) {
      body.template operator()<T, W, VectorOf<T>()>();
    } else {
      body.template operator()<T, W, 1>();
    }
  };
  if (x == DType::kF32) {
    weighted.template operator()<float, float>();
  } else if (w == DType::kBF16) {
    weighted.template operator()<Bf16, Bf16>();
  } else {
    weighted.template operator()<Bf16, float>();
  }
}

// A head starts on a vector where the row does and its width is whole vectors.
bool HeadsVectorizable(const Tensor& w, std::initializer_list<Tensor> tensors) {
  const int count = tensors.begin()->dtype == DType::kBF16 ? VectorOf<Bf16>() : VectorOf<float>();
  return w.cols % count == 0 && Vectorizable(count, tensors) && Vectorizable(count, {w});
}

template <bool kAdd>
void Forward(const Exec& exec, const char* op, const Tensor& delta, const Tensor& x, const Tensor& w, int64_t heads,
             double eps, const Tensor& y, const Tensor& rstd) {
  const Segments segments{x.rows * heads, heads, w.cols};
  const bool vectors = HeadsVectorizable(w, {x, y}) && (!kAdd || HeadsVectorizable(w, {delta}));
  WithTypes(x.dtype, w.dtype, vectors, [&]<typename T, typename W, int kCount>() {
    WithTeam(segments, kCount, kHeld, [&]<int kLanes>(int64_t blocks, int threads) {
      Launch(exec, op, NormKernel<T, W, kCount, kLanes, kAdd>, blocks, threads, 0, segments, Rows<T>(delta), Rows<T>(x),
             w.as<W>(), static_cast<float>(eps), Rows<T>(y), Rows<float>(rstd));
    });
  });
}

// kStat: dy is f32, whatever x is.
template <bool kAccumulate, bool kStat = false>
void Backward(const Exec& exec, const char* op, const int32_t* ids, const Tensor& dy, const Tensor& x, const Tensor& w,
              int64_t heads, const Tensor& rstd, const Tensor& dx) {
  const Segments segments{dy.rows * heads, heads, w.cols};
  WithTypes(x.dtype, w.dtype, HeadsVectorizable(w, {x, dy, dx}), [&]<typename T, typename W, int kCount>() {
    using D = std::conditional_t<kStat, float, T>;
    WithTeam(segments, kCount, kHeldBackward, [&]<int kLanes>(int64_t blocks, int threads) {
      Launch(exec, op, NormBackwardKernel<T, D, W, kCount, kLanes, kAccumulate>, blocks, threads, 0, segments, ids,
             Rows<D>(dy), Rows<T>(x), w.as<W>(), Rows<float>(rstd), Rows<T>(dx));
    });
  });
}

}  // namespace

void RmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, double eps, const Tensor& y, const Tensor& rstd) {
  Forward<false>(exec, "RmsNorm", {}, x, w, 1, eps, y, rstd);
}

void AddRmsNorm(const Exec& exec, const Tensor& delta, const Tensor& w, double eps, const Tensor& x, const Tensor& y,
                const Tensor& rstd) {
  Forward<true>(exec, "AddRmsNorm", delta, x, w, 1, eps, y, rstd);
}

void RmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                     bool accumulate, const Tensor& dx) {
  (accumulate ? Backward<true> : Backward<false>)(exec, "RmsNormBackward", nullptr, dy, x, w, 1, rstd, dx);
}

void RmsNormBackwardRows(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd,
                         const int32_t* ids, const Tensor& dx) {
  Backward<false, true>(exec, "RmsNormBackwardRows", ids, dy, x, w, 1, rstd, dx);
}

void HeadRmsNorm(const Exec& exec, const Tensor& x, const Tensor& w, int64_t heads, double eps, const Tensor& y,
                 const Tensor& rstd) {
  Forward<false>(exec, "HeadRmsNorm", {}, x, w, heads, eps, y, rstd);
}

void HeadRmsNormBackward(const Exec& exec, const Tensor& dy, const Tensor& x, const Tensor& w, int64_t heads,
                         const Tensor& rstd, const Tensor& dx) {
  Backward<false>(exec, "HeadRmsNormBackward", nullptr, dy, x, w, heads, rstd, dx);
}

}  // namespace longhaul::kernels::cuda
