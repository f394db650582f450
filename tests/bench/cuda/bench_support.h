// What the benches of the CUDA libraries share: random operands on the device, timing by events, a line of JSON a
// figure.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace longhaul::kernels::cuda {

// Ends the program with the call's name where it failed.
void Require(cudaError_t error, const char* call);

// Device memory of bf16 (or bytes) that look random to the tensor cores: on zeros a GEMM runs 12% faster.
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
  void FillWith(const std::vector<uint8_t>& block);
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

struct BenchTime {
  double median_ms = 0;
  double least_ms = 0;
};
// `work` queues its work on `stream`. Warmed up, then rounds of a few calls between events, about 0.3 s in all.
BenchTime Measure(cudaStream_t stream, const std::function<void()>& work);

// {"bench": "gemm", ...}: fields in the order given, one line on standard output.
class JsonLine {
 public:
  explicit JsonLine(const std::string& bench);
  ~JsonLine();  // prints
  JsonLine(const JsonLine&) = delete;
  JsonLine& operator=(const JsonLine&) = delete;
  JsonLine& Text(const std::string& name, const std::string& value);
  JsonLine& Number(const std::string& name, double value);
  JsonLine& Count(const std::string& name, int64_t value);
  // "ms" and "tflops" of the median, "tflops_best".
  JsonLine& Rate(const BenchTime& time, double flops);

 private:
  std::string text_;
};

// The linears of a decoder layer, stacked as the engine stacks them.
struct BenchLinear {
  const char* model;
  const char* part;  // "qkv", "o", "gate_up", "down"
  int64_t out, in;
  int stacked;  // linears that share the input: their ranks add up
};
std::vector<BenchLinear> BenchLinears();

void BenchGemm(cudaStream_t stream);
void BenchFp8(cudaStream_t stream);
void BenchLora(cudaStream_t stream);
void BenchAttention(cudaStream_t stream);
void BenchLoss(cudaStream_t stream);  // on a stream of its own
void BenchLoss(cudaStream_t stream);

}  // namespace longhaul::kernels::cuda
