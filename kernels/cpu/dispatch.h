// One template body for both float types.
#pragma once

#include "base/check.h"
#include "kernels/tensor.h"

namespace longhaul::kernels::cpu {

// Calls body(T{}) with T float or double.
template <typename Body>
decltype(auto) WithFloatType(DType dtype, const Body& body) {
  LH_CHECK(dtype == DType::kF32 || dtype == DType::kF64);
  return dtype == DType::kF64 ? body(double{}) : body(float{});
}

template <typename T>
T* Row(const Tensor& x, int64_t row) {
  return x.as<T>() + row * x.stride;
}

}  // namespace longhaul::kernels::cpu
