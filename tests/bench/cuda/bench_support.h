// What the benches of the CUDA libraries share beside kernels/cuda/bench_buffer.h: a line of JSON a figure.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/bench_buffer.h"

namespace longhaul::kernels::cuda {

// Ends the program with the call's name where it failed.
void Require(cudaError_t error, const char* call);

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

}  // namespace longhaul::kernels::cuda
