// Matrices for kernel tests: of every float type, strided, poisoned, compared against naive formulas in double. They
// lie in memory that the Exec under test reads (place.h).
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/exec.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "tests/kernels/place.h"

namespace longhaul::kernels {

// Unit roundoff of one operation: bf16 is computed with in f32.
inline double Epsilon(DType dtype) { return dtype == DType::kF64 ? 0x1p-53 : 0x1p-24; }
// What storing `value` as bf16 adds to that: half a unit of its 8 bits, 2^-8 of a value next above a power of two. 0
// for the types that are computed in.
inline double Stored(DType dtype, double value) { return dtype == DType::kBF16 ? 0x1p-8 * 1.001 * std::abs(value) : 0; }

// For std::vector: index arrays and matrices that an Exec reads.
template <typename T>
struct TestAllocator {
  using value_type = T;
  TestAllocator() = default;
  template <typename Other>
  TestAllocator(const TestAllocator<Other>&) {}
  T* allocate(size_t n) { return static_cast<T*>(AllocateForTests(n * sizeof(T))); }
  void deallocate(T* data, size_t) { FreeForTests(data); }
  bool operator==(const TestAllocator&) const { return true; }
};
template <typename T>
using TestVector = std::vector<T, TestAllocator<T>>;

// One value in the Exec's memory.
template <typename T>
class Shared {
 public:
  explicit Shared(T value = {}) : value_(1, value) {}
  T* get() { return value_.data(); }
  // After everything that was queued.
  T& value() {
    WaitForOps();
    return value_[0];
  }

 private:
  TestVector<T> value_;
};

// A matrix that owns its memory. Every element and the gap between rows starts as NaN: an output that is not written,
// and an input that is read past its columns, show.
class Buffer {
 public:
  Buffer(DType dtype, int64_t rows, int64_t cols, int64_t gap = 0)
      : dtype_(dtype),
        rows_(rows),
        cols_(cols),
        stride_(cols + gap),
        bytes_(static_cast<size_t>(rows * stride_ * DTypeBytes(dtype))) {
    for (int64_t i = 0; i < rows * stride_; ++i) SetFlat(i, std::numeric_limits<double>::quiet_NaN());
  }
  Buffer(const Buffer& other)
      : dtype_(other.dtype_), rows_(other.rows_), cols_(other.cols_), stride_(other.stride_), bytes_(other.bytes()) {}
  Buffer& operator=(const Buffer& other) {
    Settle();
    dtype_ = other.dtype_;
    rows_ = other.rows_;
    cols_ = other.cols_;
    stride_ = other.stride_;
    bytes_ = other.bytes();
    return *this;
  }

  // Normally distributed, rounded to the type.
  static Buffer Random(DType dtype, int64_t rows, int64_t cols, uint32_t seed, int64_t gap = 0, double deviation = 1) {
    Buffer buffer(dtype, rows, cols, gap);
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal(0, deviation);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) buffer.Set(i, j, normal(generator));
    }
    return buffer;
  }

  double operator()(int64_t i, int64_t j) const { return GetFlat(i * stride_ + j); }
  void Set(int64_t i, int64_t j, double value) { SetFlat(i * stride_ + j, value); }
  void Fill(double value) {
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < cols_; ++j) Set(i, j, value);
    }
  }

  // For one op: the next look at the elements waits for it.
  Tensor view() const {
    in_flight_ = true;
    return {const_cast<uint8_t*>(bytes_.data()), dtype_, rows_, cols_, stride_};
  }
  const TestVector<uint8_t>& bytes() const {
    Settle();
    return bytes_;
  }
  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  // Whether nothing was written between the rows.
  bool GapIntact() const {
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = cols_; j < stride_; ++j) {
        if (!std::isnan(GetFlat(i * stride_ + j))) return false;
      }
    }
    return true;
  }
  bool AllFinite() const {
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < cols_; ++j) {
        if (!std::isfinite((*this)(i, j))) return false;
      }
    }
    return true;
  }

 private:
  void Settle() const {
    if (in_flight_) WaitForOps();
    in_flight_ = false;
  }
  double GetFlat(int64_t i) const {
    Settle();
    if (dtype_ == DType::kF64) return reinterpret_cast<const double*>(bytes_.data())[i];
    if (dtype_ == DType::kF32) return static_cast<double>(reinterpret_cast<const float*>(bytes_.data())[i]);
    const uint32_t bits = reinterpret_cast<const uint16_t*>(bytes_.data())[i];
    return static_cast<double>(std::bit_cast<float>(bits << 16));
  }
  // bf16 takes values that it can hold: it cuts.
  void SetFlat(int64_t i, double value) {
    Settle();
    if (dtype_ == DType::kF64) {
      reinterpret_cast<double*>(bytes_.data())[i] = value;
    } else if (dtype_ == DType::kF32) {
      reinterpret_cast<float*>(bytes_.data())[i] = static_cast<float>(value);
    } else {
      reinterpret_cast<uint16_t*>(bytes_.data())[i] =
          static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(value)) >> 16);
    }
  }

  DType dtype_;
  int64_t rows_, cols_, stride_;
  TestVector<uint8_t> bytes_;
  mutable bool in_flight_ = false;
};

// |actual - expected(i, j)| <= tolerance(i, j) everywhere, and the gap untouched. Reports the first miss.
using Element = std::function<double(int64_t, int64_t)>;
inline void ExpectNear(const Buffer& actual, const Element& expected, const Element& tolerance,
                       const std::string& what) {
  EXPECT_TRUE(actual.GapIntact()) << what;
  for (int64_t i = 0; i < actual.rows(); ++i) {
    for (int64_t j = 0; j < actual.cols(); ++j) {
      const double want = expected(i, j);
      ASSERT_LE(std::abs(actual(i, j) - want), tolerance(i, j))
          << what << " at " << i << ", " << j << ": " << actual(i, j) << ", not " << want;
    }
  }
}
inline void ExpectNear(const Buffer& actual, const Element& expected, double tolerance, const std::string& what) {
  ExpectNear(
      actual, expected, [tolerance](int64_t, int64_t) { return tolerance; }, what);
}

// Sum of weight * value: a scalar whose gradient in value is weight.
inline double WeightedSum(const Buffer& weight, const Buffer& value) {
  double sum = 0;
  for (int64_t i = 0; i < value.rows(); ++i) {
    for (int64_t j = 0; j < value.cols(); ++j) sum += weight(i, j) * value(i, j);
  }
  return sum;
}

// Central differences of `f` over x against `gradient`, in f64. The step 2^-16 has a truncation error of order 2^-32
// and a rounding error of order 2^-53 / 2^-16: 1e-8 times the size of the values covers both.
inline void ExpectGradient(Buffer& x, const Buffer& gradient, const std::function<double()>& f,
                           const std::string& what) {
  constexpr double kStep = 0x1p-16;
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.cols(); ++j) {
      const double held = x(i, j);
      x.Set(i, j, held + kStep);
      const double above = f();
      x.Set(i, j, held - kStep);
      const double below = f();
      x.Set(i, j, held);
      const double numeric = (above - below) / (2 * kStep);
      ASSERT_NEAR(gradient(i, j), numeric, 1e-8 * (10 + std::abs(numeric))) << what << " at " << i << ", " << j;
    }
  }
}

// Runs `op`, which returns all its outputs, twice over and (on the CPU) on 1 and 2 threads: every byte must be the
// same.
inline void ExpectSameBits(const std::function<std::vector<Buffer>(const Exec&)>& op) {
  const auto one = MakeExec(1);
  const std::vector<Buffer> first = op(*one);
  const std::vector<Buffer> again = op(*one);
  const auto two = MakeExec(2);
  const std::vector<Buffer> parallel = op(*two);
  ASSERT_EQ(first.size(), parallel.size());
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(first[i].bytes() == again[i].bytes()) << "output " << i << " differs between two runs";
    EXPECT_TRUE(first[i].bytes() == parallel[i].bytes()) << "output " << i << " differs between 1 and 2 threads";
  }
}

// One body, every type of the backend under test: INSTANTIATE_TEST_SUITE_P(Types, X, testing::ValuesIn(TestedTypes()),
// TypeName).
class FloatTest : public testing::TestWithParam<DType> {};

inline std::string TypeName(const testing::TestParamInfo<DType>& info) {
  return info.param == DType::kF64 ? "f64" : info.param == DType::kF32 ? "f32" : "bf16";
}

}  // namespace longhaul::kernels
