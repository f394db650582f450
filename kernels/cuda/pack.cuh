// Vectors of elements in registers, read and written 16 bytes at a time; rows of strided matrices; f32 arithmetic on
// either activation type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "base/check.h"
#include "kernels/tensor.h"

namespace longhaul::kernels::cuda {

using Bf16 = __nv_bfloat16;

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(Bf16 x) { return __bfloat162float(x); }
template <typename T>
__device__ T FromFloat(float x);
template <>
__device__ inline float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ inline Bf16 FromFloat<Bf16>(float x) {
  return __float2bfloat16_rn(x);
}

constexpr int kVectorBytes = 16;

// kCount consecutive elements. Aligned to 16 bytes, or to its size where that is less.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < kVectorBytes ? sizeof(T) * kCount : kVectorBytes) Pack {
  T values[kCount];
  __device__ float operator[](int i) const { return ToFloat(values[i]); }
  __device__ void Set(int i, float x) { values[i] = FromFloat<T>(x); }
};

// Each value rounded once; bf16 in pairs, which is one instruction.
template <typename T, int kCount>
__device__ Pack<T, kCount> PackOf(const float (&values)[kCount]) {
  Pack<T, kCount> pack;
  if constexpr (sizeof(T) == sizeof(Bf16) && kCount % 2 == 0) {
    auto* const pairs = reinterpret_cast<__nv_bfloat162*>(pack.values);
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) pairs[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.Set(i, values[i]);
  }
  return pack;
}

template <int kCount, typename T>
__device__ Pack<T, kCount> Load(const T* at) {
  return *reinterpret_cast<const Pack<T, kCount>*>(at);
}
template <int kCount, typename T>
__device__ void Store(T* at, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(at) = pack;
}
// The same for what is larger than the cache: its lines are the first to leave. Whole vectors, or one element.
template <int kCount, typename T>
__device__ void StoreOnce(T* at, const Pack<T, kCount>& pack) {
  constexpr int kBytes = static_cast<int>(sizeof(pack));
  if constexpr (kBytes % kVectorBytes == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / kVectorBytes; ++i) {
      __stcs(reinterpret_cast<uint4*>(at) + i, reinterpret_cast<const uint4*>(&pack)[i]);
    }
  } else {
    static_assert(kCount == 1);
    __stcs(at, pack.values[0]);
  }
}

// A matrix as kernels see it.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  Rows() = default;
  explicit Rows(const Tensor& tensor) : data(tensor.as<T>()), stride(tensor.stride) {}
  __device__ T* operator()(int64_t row, int64_t col) const { return data + row * stride + col; }
};

// Elements of a full vector of T.
template <typename T>
constexpr int VectorOf() {
  return kVectorBytes / static_cast<int>(sizeof(T));
}

// Whether `count` elements at a time can be read from and written to all of these.
inline bool Vectorizable(int count, std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors) {
    if (t.data == nullptr) continue;
    const int64_t pack_bytes = count * DTypeBytes(t.dtype);
    const int64_t align = pack_bytes < kVectorBytes ? pack_bytes : kVectorBytes;
    if (t.cols % count != 0 || reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(align) != 0) return false;
    if (t.rows > 1 && t.stride * DTypeBytes(t.dtype) % align != 0) return false;
  }
  return true;
}

// Calls body(T{}) with T the element type of an activation.
template <typename Body>
void WithActivation(DType dtype, const Body& body) {
  LH_CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  if (dtype == DType::kBF16) {
    body(Bf16{});
  } else {
    body(float{});
  }
}

}  // namespace longhaul::kernels::cuda
