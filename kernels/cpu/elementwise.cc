// SwiGLU, sums, copies, gathers, dropout: one pass each, rows split among the threads.
#include <cstring>

#include "base/random.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd.h"

namespace longhaul::kernels::cpu {
namespace {

template <typename T>
LONGHAUL_SIMD void SwiGluRow(const T* gate, const T* up, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] * Sigmoid(gate[i]) * up[i];
}

// silu'(g) = s + g s (1 - s), s = sigmoid(g). Everything of an element is read before anything of it is written.
template <typename T>
LONGHAUL_SIMD void SwiGluBackwardRow(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T g = gate[i], u = up[i], d = dy[i];
    const T s = Sigmoid(g);
    const T silu = g * s;
    dgate[i] = d * u * (s + silu * (T{1} - s));
    dup[i] = d * silu;
  }
}

template <typename T>
LONGHAUL_SIMD void AddRow(const T* x, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

template <typename T>
LONGHAUL_SIMD void ScaleBy(T* x, T factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

struct Bf16 {
  uint16_t bits;
};

LONGHAUL_SIMD_INLINE double Read(const double& x) { return x; }
LONGHAUL_SIMD_INLINE float Read(const float& x) { return x; }
LONGHAUL_SIMD_INLINE float Read(const Bf16& x) { return FromBf16(x.bits); }
template <typename From>
LONGHAUL_SIMD_INLINE void Write(From x, double* y) {
  *y = x;
}
template <typename From>
LONGHAUL_SIMD_INLINE void Write(From x, float* y) {
  *y = static_cast<float>(x);
}
// f64 goes through f32: double rounding, half a bf16 ulp and 2^-25 of one at most.
template <typename From>
LONGHAUL_SIMD_INLINE void Write(From x, Bf16* y) {
  y->bits = ToBf16(static_cast<float>(x));
}

template <typename From, typename To>
LONGHAUL_SIMD void ConvertRow(const From* x, To* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) Write(Read(x[i]), &y[i]);
}

using ConvertFunction = void (*)(const void*, void*, int64_t);

template <typename From, typename To>
void Convert(const void* x, void* y, int64_t n) {
  ConvertRow(static_cast<const From*>(x), static_cast<To*>(y), n);
}

template <typename From>
ConvertFunction ConverterTo(DType to) {
  switch (to) {
    case DType::kF32:
      return Convert<From, float>;
    case DType::kF64:
      return Convert<From, double>;
    case DType::kBF16:
      return Convert<From, Bf16>;
    default:
      LH_CHECK(false, "copies convert between f32, f64 and bf16");
  }
  return nullptr;
}

ConvertFunction Converter(DType from, DType to) {
  switch (from) {
    case DType::kF32:
      return ConverterTo<float>(to);
    case DType::kF64:
      return ConverterTo<double>(to);
    case DType::kBF16:
      return ConverterTo<Bf16>(to);
    default:
      LH_CHECK(false, "copies convert between f32, f64 and bf16");
  }
  return nullptr;
}

void CopyRow(const Tensor& x, int64_t from, const Tensor& y, int64_t to, ConvertFunction convert) {
  const char* const source = x.as<char>() + from * x.stride * DTypeBytes(x.dtype);
  char* const target = y.as<char>() + to * y.stride * DTypeBytes(y.dtype);
  if (convert == nullptr) {
    std::memcpy(target, source, static_cast<size_t>(x.cols * DTypeBytes(x.dtype)));
  } else {
    convert(source, target, x.cols);
  }
}

}  // namespace

void SwiGlu(const Exec& exec, const Tensor& gate, const Tensor& up, const Tensor& y) {
  WithFloatType(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) SwiGluRow(Row<T>(gate, i), Row<T>(up, i), Row<T>(y, i), y.cols);
    });
  });
}

void SwiGluBackward(const Exec& exec, const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                    const Tensor& dup, const Tensor& y) {
  WithFloatType(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, dy.rows, dy.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        // The forward's own loop, so that the product has the forward's bits.
        if (y.data != nullptr) SwiGluRow(Row<T>(gate, i), Row<T>(up, i), Row<T>(y, i), dy.cols);
        SwiGluBackwardRow(Row<T>(dy, i), Row<T>(gate, i), Row<T>(up, i), Row<T>(dgate, i), Row<T>(dup, i), dy.cols);
      }
    });
  });
}

void Add(const Exec& exec, const Tensor& x, const Tensor& y) {
  WithFloatType(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) AddRow(Row<T>(x, i), Row<T>(y, i), y.cols);
    });
  });
}

void Scale(const Exec& exec, double factor, const Tensor& x) {
  WithFloatType(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ScaleBy(Row<T>(x, i), static_cast<T>(factor), x.cols);
    });
  });
}

void Copy(const Exec& exec, const Tensor& x, const Tensor& y) {
  const ConvertFunction convert = x.dtype == y.dtype ? nullptr : Converter(x.dtype, y.dtype);
  ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) CopyRow(x, i, y, i, convert);
  });
}

void Zero(const Exec& exec, const Tensor& x) {
  const int64_t element_bytes = DTypeBytes(x.dtype);
  ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memset(x.as<char>() + i * x.stride * element_bytes, 0, static_cast<size_t>(x.cols * element_bytes));
    }
  });
}

void GatherRows(const Exec& exec, const Tensor& table, const int32_t* ids, const Tensor& y) {
  const ConvertFunction convert = table.dtype == y.dtype ? nullptr : Converter(table.dtype, y.dtype);
  ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) CopyRow(table, ids[i], y, i, convert);
  });
}

void Dropout(const Exec& exec, const Tensor& x, uint64_t key, int64_t first_row, double p, const Tensor& y) {
  WithFloatType(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T factor = static_cast<T>(1.0 / (1.0 - p));
    ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* const from = Row<T>(x, i);
        T* const to = Row<T>(y, i);
        const auto position = static_cast<uint64_t>((first_row + i) * y.cols);
        for (int64_t j = 0; j < y.cols; ++j) {
          to[j] = CounterUniform(key, position + static_cast<uint64_t>(j)) >= p ? from[j] * factor : T{0};
        }
      }
    });
  });
}

}  // namespace longhaul::kernels::cpu
