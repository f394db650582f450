// Rates of the products, attention and loss on this device, a line of JSON a figure. Run by hand, never a test.
//   cuda_lib_bench [gemm] [fp8] [lora] [attention] [loss]      all of them where none is named
#include <cublasLt.h>
#include <cudnn.h>

#include <cstdio>
#include <map>
#include <string>

#include "kernels/cuda_error.h"
#include "tests/bench/cuda/bench_support.h"

int main(int argc, char** argv) {
  using namespace longhaul::kernels::cuda;  // NOLINT: a program of one function
  const std::map<std::string, void (*)(cudaStream_t)> benches = {
      {"gemm", BenchGemm}, {"fp8", BenchFp8}, {"lora", BenchLora}, {"attention", BenchAttention}, {"loss", BenchLoss}};
  for (int i = 1; i < argc; ++i) {
    if (benches.count(argv[i]) != 0) continue;
    std::fprintf(stderr, "usage: %s [gemm] [fp8] [lora] [attention] [loss]\n", argv[0]);
    return 2;
  }
  cudaDeviceProp facts{};
  Require(cudaGetDeviceProperties(&facts, 0), "cudaGetDeviceProperties");
  JsonLine("device")
      .Text("name", facts.name)
      .Count("multiprocessors", facts.multiProcessorCount)
      .Count("memory_bytes", static_cast<int64_t>(facts.totalGlobalMem))
      .Count("cublaslt", static_cast<int64_t>(cublasLtGetVersion()))
      .Count("cudnn", static_cast<int64_t>(cudnnGetVersion()));
  cudaStream_t stream = nullptr;
  Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  for (const auto& [name, bench] : benches) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted = wanted || name == argv[i];
    if (!wanted) continue;
    try {
      bench(stream);
    } catch (const longhaul::kernels::CudaError& error) {
      std::fprintf(stderr, "cuda_lib_bench: %s\n", error.what());
      return 1;
    }
  }
  Require(cudaStreamDestroy(stream), "cudaStreamDestroy");
  return 0;
}
