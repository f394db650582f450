// What measuring a kernel takes: operands that look random to the tensor cores, and time by events. For longhaul-bench
// and the benches of tests/bench; nothing that trains uses it. A call that fails throws CudaError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <utility>

namespace longhaul::kernels::cuda {

// Device memory of bf16 (or bytes) that look random: on zeros a GEMM runs 12% faster.
class BenchBuffer {
 public:
  // Normal with the deviation given, in bf16; the same 4M values over and over.
  static BenchBuffer RandomBf16(int64_t elements, double deviation);
  static BenchBuffer RandomE4M3(int64_t elements);
  static BenchBuffer RandomF32(int64_t elements);
  static BenchBuffer Zeros(int64_t bytes);
  ~BenchBuffer();
  BenchBuffer(BenchBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  BenchBuffer& operator=(BenchBuffer&& other) noexcept;

  template <typename T = void>
  T* at(int64_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + offset_bytes);
  }
  int64_t bytes() const { return bytes_; }

 private:
  explicit BenchBuffer(int64_t bytes);
  template <typename T>
  void FillRandom(int64_t elements, double deviation);
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

struct BenchTime {
  double median_ms = 0;
  double least_ms = 0;
};
// Of one call of `work`, which queues on `stream`. Warmed up, then rounds of a few calls between events, about 0.3 s in
// all.
BenchTime Measure(cudaStream_t stream, const std::function<void()>& work);

}  // namespace longhaul::kernels::cuda
