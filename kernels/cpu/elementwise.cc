// Sums, copies, gathers, dropout: one pass each, rows split among the threads.
#include <cmath>
#include <cstring>
#include <string>

#include "base/check.h"
#include "base/counter_rng.h"
#include "kernels/cpu/cpu_exec.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/simd.h"

namespace longhaul::kernels::cpu {
namespace {

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
LONGHAUL_SIMD void ConvertRow(const From* x, To* y, double factor, int64_t n) {
  const auto scale = static_cast<decltype(Read(*x))>(factor);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) Write(scale * Read(x[i]), &y[i]);
}

using ConvertFunction = void (*)(const void*, void*, double factor, int64_t);

template <typename From, typename To>
void Convert(const void* x, void* y, double factor, int64_t n) {
  ConvertRow(static_cast<const From*>(x), static_cast<To*>(y), factor, n);
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

// Null: the bytes as they are.
ConvertFunction ConverterOrNull(DType from, DType to, double factor) {
  return from == to && factor == 1 ? nullptr : Converter(from, to);
}

void CopyRow(const Tensor& x, int64_t from, const Tensor& y, int64_t to, ConvertFunction convert, double factor = 1) {
  const char* const source = x.as<char>() + from * x.stride * DTypeBytes(x.dtype);
  char* const target = y.as<char>() + to * y.stride * DTypeBytes(y.dtype);
  if (convert == nullptr) {
    std::memcpy(target, source, static_cast<size_t>(x.cols * DTypeBytes(x.dtype)));
  } else {
    convert(source, target, factor, x.cols);
  }
}

}  // namespace

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

void CopyScaled(const Exec& exec, double factor, const Tensor& x, const Tensor& y) {
  const ConvertFunction convert = ConverterOrNull(x.dtype, y.dtype, factor);
  ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) CopyRow(x, i, y, i, convert, factor);
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
  for (int64_t i = 0; i < y.rows; ++i) LH_CHECK(ids[i] >= 0 && ids[i] < table.rows, std::to_string(ids[i]));
  const ConvertFunction convert = ConverterOrNull(table.dtype, y.dtype, 1);
  ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) CopyRow(table, ids[i], y, i, convert);
  });
}

void ScatterRows(const Exec& exec, const Tensor& x, const int32_t* ids, const Tensor& y) {
  for (int64_t i = 0; i < x.rows; ++i) LH_CHECK(ids[i] >= 0 && ids[i] < y.rows, std::to_string(ids[i]));
  ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) CopyRow(x, i, y, ids[i], nullptr);
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

void Uniform(const Exec& exec, uint64_t key, int64_t first_row, double width, double shift, const Tensor& y) {
  ParallelRows(exec, y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto position = static_cast<uint64_t>((first_row + i) * y.cols);
      for (int64_t j = 0; j < y.cols; ++j) {
        const double uniform = CounterUniform(key, position + static_cast<uint64_t>(j)) - 0.5;
        // No fused multiply-add: the product is rounded, as on every backend.
        const volatile double scaled = width * uniform;
        Row<float>(y, i)[j] = static_cast<float>(shift + scaled);
      }
    }
  });
}

void CountNonFinite(const Exec& exec, const Tensor& x, int64_t* count) {
  auto* const counts = static_cast<int64_t*>(exec.cpu().sums.Reserve(x.rows * static_cast<int64_t>(sizeof(int64_t))));
  WithFloatType(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    ParallelRows(exec, x.rows, x.cols, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        counts[i] = 0;
        for (int64_t j = 0; j < x.cols; ++j) counts[i] += std::isfinite(Row<T>(x, i)[j]) ? 0 : 1;
      }
    });
  });
  for (int64_t i = 0; i < x.rows; ++i) *count += counts[i];
}

}  // namespace longhaul::kernels::cpu
