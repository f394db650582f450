// A view of a row-major matrix in somebody else's memory (the arena's). Two dimensions suffice: heads are column
// ranges.
#pragma once

#include <cstdint>

#include "base/check.h"

namespace longhaul::kernels {

enum class DType { kF32, kF64, kBF16, kF16, kI32, kU8 };

inline int64_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kU8:
      return 1;
  }
  return 0;
}

// The type of statistics over activations of `dtype`.
inline DType StatType(DType dtype) { return dtype == DType::kF64 ? DType::kF64 : DType::kF32; }

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next; >= cols

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t bytes() const { return rows * stride * DTypeBytes(dtype); }
  bool contiguous() const { return stride == cols; }

  // [begin, end) of the rows, of the columns.
  Tensor Rows(int64_t begin, int64_t end) const {
    LH_CHECK(0 <= begin && begin <= end && end <= rows);
    return {static_cast<char*>(data) + begin * stride * DTypeBytes(dtype), dtype, end - begin, cols, stride};
  }
  Tensor Cols(int64_t begin, int64_t end) const {
    LH_CHECK(0 <= begin && begin <= end && end <= cols);
    return {static_cast<char*>(data) + begin * DTypeBytes(dtype), dtype, rows, end - begin, stride};
  }
};

inline Tensor MakeTensor(void* data, DType dtype, int64_t rows, int64_t cols) {
  return {data, dtype, rows, cols, cols};
}

}  // namespace longhaul::kernels
