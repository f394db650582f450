// Sums, copies, gathers, dropout: one pass each.
#include <cmath>

#include "base/counter_rng.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/reduce.cuh"

namespace longhaul::kernels::cuda {
namespace {

// An index out of range is a bug of the engine: the kernel ends, and with it the trainer.
__device__ int64_t CheckedRow(int32_t id, int64_t rows) {
  if (id < 0 || id >= rows) __trap();
  return id;
}

// y += x.
template <typename T>
struct AddBody {
  Rows<T> x, y;
  template <int kCount>
  struct Operands {
    Pack<T, kCount> x, y;
  };
  template <int kCount>
  __device__ void Load(int64_t row, int64_t col, Operands<kCount>* o) const {
    o->x = cuda::Load<kCount>(x(row, col));
    o->y = cuda::Load<kCount>(y(row, col));
  }
  template <int kCount>
  __device__ void Store(int64_t row, int64_t col, Operands<kCount>& o) const {
    float sum[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] = o.y[i] + o.x[i];
    cuda::Store(y(row, col), PackOf<T>(sum));
  }
};

// y = factor * x, for y's row `row` from x's row from[row] (null: the same row) into y's row to[row] (null: the same).
template <typename From, typename To>
struct CopyBody {
  Rows<From> x;
  Rows<To> y;
  float factor = 1;
  const int32_t* from = nullptr;
  int64_t from_rows = 0;
  const int32_t* to = nullptr;
  int64_t to_rows = 0;
  template <int kCount>
  struct Operands {
    Pack<From, kCount> x;
  };
  template <int kCount>
  __device__ void Load(int64_t row, int64_t col, Operands<kCount>* o) const {
    o->x = cuda::Load<kCount>(x(from == nullptr ? row : CheckedRow(from[row], from_rows), col));
  }
  template <int kCount>
  __device__ void Store(int64_t row, int64_t col, const Operands<kCount>& o) const {
    float result[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) result[i] = factor * o.x[i];
    cuda::Store(y(to == nullptr ? row : CheckedRow(to[row], to_rows), col), PackOf<To>(result));
  }
};

// y = x * keep / (1 - p). Kept are those whose 53 random bits reach `threshold`, p * 2^53 rounded up: what
// CounterUniform(key, position) >= p says, without a double.
template <typename T>
struct DropoutBody {
  Rows<T> x, y;
  uint64_t stream, threshold;
  int64_t first_row, cols;
  float factor;
  template <int kCount>
  struct Operands {
    Pack<T, kCount> x;
  };
  template <int kCount>
  __device__ void Load(int64_t row, int64_t col, Operands<kCount>* o) const {
    o->x = cuda::Load<kCount>(x(row, col));
  }
  template <int kCount>
  __device__ void Store(int64_t row, int64_t col, Operands<kCount>& o) const {
    const uint64_t position = static_cast<uint64_t>((first_row + row) * cols + col);
    float kept[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool keep = (StreamBits(stream, position + static_cast<uint64_t>(i)) >> 11) >= threshold;
      kept[i] = keep ? o.x[i] * factor : 0.0f;
    }
    cuda::Store(y(row, col), PackOf<T>(kept));
  }
};

struct UniformBody {
  Rows<float> y;
  uint64_t stream;
  int64_t first_row, cols;
  double width, shift;
  template <int kCount>
  struct Operands {};
  template <int kCount>
  __device__ void Load(int64_t, int64_t, Operands<kCount>*) const {}
  template <int kCount>
  __device__ void Store(int64_t row, int64_t col, const Operands<kCount>&) const {
    const uint64_t position = static_cast<uint64_t>((first_row + row) * cols + col);
    float values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const double uniform =
          static_cast<double>(StreamBits(stream, position + static_cast<uint64_t>(i)) >> 11) * 0x1.0p-53 - 0.5;
      values[i] = static_cast<float>(__dadd_rn(shift, __dmul_rn(width, uniform)));
    }
    cuda::Store(y(row, col), PackOf<float>(values));
  }
};

// Integers may be added in any order.
template <typename T>
struct CountNonFiniteBody {
  Rows<T> x;
  unsigned long long* count;
  template <int kCount>
  struct Operands {
    Pack<T, kCount> x;
  };
  template <int kCount>
  __device__ void Load(int64_t row, int64_t col, Operands<kCount>* o) const {
    o->x = cuda::Load<kCount>(x(row, col));
  }
  template <int kCount>
  __device__ void Store(int64_t, int64_t, const Operands<kCount>& o) const {
    unsigned bad = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) bad += isfinite(o.x[i]) ? 0 : 1;
    if (bad != 0) atomicAdd(count, static_cast<unsigned long long>(bad));
  }
};

// Calls body(From{}, To{}).
template <typename Body>
void WithTypes(DType from, DType to, const Body& body) {
  WithActivation(from, [&](auto source) { WithActivation(to, [&](auto target) { body(source, target); }); });
}

__global__ void ProbeKernel() {}

}  // namespace

cudaError_t ProbeKernels() {
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, ProbeKernel);
}

void Add(const Exec& exec, const Tensor& x, const Tensor& y) {
  WithActivation(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    Map<VectorOf<T>()>(exec, "Add", y.rows, y.cols, {x, y}, AddBody<T>{Rows<T>(x), Rows<T>(y)});
  });
}

void Scale(const Exec& exec, double factor, const Tensor& x) { cuda::CopyScaled(exec, factor, x, x); }

void CopyScaled(const Exec& exec, double factor, const Tensor& x, const Tensor& y) {
  WithTypes(x.dtype, y.dtype, [&](auto source, auto target) {
    using From = decltype(source);
    using To = decltype(target);
    constexpr int kCount = VectorOf<From>() < VectorOf<To>() ? VectorOf<To>() : VectorOf<From>();
    CopyBody<From, To> body{Rows<From>(x), Rows<To>(y)};
    body.factor = static_cast<float>(factor);
    Map<kCount>(exec, "Copy", y.rows, y.cols, {x, y}, body);
  });
}

void Zero(const Exec& exec, const Tensor& x) {
  const auto width = static_cast<size_t>(x.cols * DTypeBytes(x.dtype));
  const auto pitch = static_cast<size_t>(x.stride * DTypeBytes(x.dtype));
  const cudaStream_t stream = exec.cuda().compute.get();
  if (x.rows == 0 || x.cols == 0) return;
  if (x.contiguous() || x.rows == 1) {
    CheckCuda(cudaMemsetAsync(x.data, 0, width * static_cast<size_t>(x.rows), stream), "Zero", "cudaMemsetAsync");
  } else {
    CheckCuda(cudaMemset2DAsync(x.data, pitch, 0, width, static_cast<size_t>(x.rows), stream), "Zero",
              "cudaMemset2DAsync");
  }
}

void GatherRows(const Exec& exec, const Tensor& table, const int32_t* ids, const Tensor& y) {
  WithTypes(table.dtype, y.dtype, [&](auto source, auto target) {
    using From = decltype(source);
    using To = decltype(target);
    constexpr int kCount = VectorOf<From>() < VectorOf<To>() ? VectorOf<To>() : VectorOf<From>();
    CopyBody<From, To> body{Rows<From>(table), Rows<To>(y)};
    body.from = ids;
    body.from_rows = table.rows;
    Map<kCount>(exec, "GatherRows", y.rows, y.cols, {table, y}, body);
  });
}

void ScatterRows(const Exec& exec, const Tensor& x, const int32_t* ids, const Tensor& y) {
  WithActivation(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    CopyBody<T, T> body{Rows<T>(x), Rows<T>(y)};
    body.to = ids;
    body.to_rows = y.rows;
    Map<VectorOf<T>()>(exec, "ScatterRows", x.rows, x.cols, {x, y}, body);
  });
}

void Dropout(const Exec& exec, const Tensor& x, uint64_t key, int64_t first_row, double p, const Tensor& y) {
  WithActivation(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const DropoutBody<T> body{Rows<T>(x),
                              Rows<T>(y),
                              CounterStream(key),
                              static_cast<uint64_t>(std::ceil(p * 0x1p53)),
                              first_row,
                              y.cols,
                              static_cast<float>(1.0 / (1.0 - p))};
    Map<VectorOf<T>()>(exec, "Dropout", y.rows, y.cols, {x, y}, body);
  });
}

void Uniform(const Exec& exec, uint64_t key, int64_t first_row, double width, double shift, const Tensor& y) {
  const UniformBody body{Rows<float>(y), CounterStream(key), first_row, y.cols, width, shift};
  Map<VectorOf<float>()>(exec, "Uniform", y.rows, y.cols, {y}, body);
}

void CountNonFinite(const Exec& exec, const Tensor& x, int64_t* count) {
  static_assert(sizeof(unsigned long long) == sizeof(int64_t));
  WithActivation(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const CountNonFiniteBody<T> body{Rows<T>(x), reinterpret_cast<unsigned long long*>(count)};
    Map<VectorOf<T>()>(exec, "CountNonFinite", x.rows, x.cols, {x}, body);
  });
}

}  // namespace longhaul::kernels::cuda
