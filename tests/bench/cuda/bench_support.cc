#include "tests/bench/cuda/bench_support.h"

#include <cstdio>
#include <cstdlib>

namespace longhaul::kernels::cuda {

void Require(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "cuda_lib_bench: %s: %s\n", call, cudaGetErrorString(error));
  std::exit(1);
}

JsonLine::JsonLine(const std::string& bench) : text_("{\"bench\": \"" + bench + "\"") {}

JsonLine::~JsonLine() {
  std::printf("%s}\n", text_.c_str());
  std::fflush(stdout);
}

JsonLine& JsonLine::Text(const std::string& name, const std::string& value) {
  text_ += ", \"" + name + "\": \"";
  for (const char c : value) {
    if (c == '"' || c == '\\') text_ += '\\';
    text_ += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  text_ += '"';
  return *this;
}

JsonLine& JsonLine::Number(const std::string& name, double value) {
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%.6g", value);
  text_ += ", \"" + name + "\": " + digits;
  return *this;
}

JsonLine& JsonLine::Count(const std::string& name, int64_t value) {
  text_ += ", \"" + name + "\": " + std::to_string(value);
  return *this;
}

JsonLine& JsonLine::Rate(const BenchTime& time, double flops) {
  return Number("ms", time.median_ms)
      .Number("tflops", flops / time.median_ms / 1e9)
      .Number("tflops_best", flops / time.least_ms / 1e9);
}

std::vector<BenchLinear> BenchLinears() {
  return {
      {"llama-3.1-8b", "qkv", 6144, 4096, 3},       {"llama-3.1-8b", "o", 4096, 4096, 1},
      {"llama-3.1-8b", "gate_up", 28672, 4096, 2},  {"llama-3.1-8b", "down", 4096, 14336, 1},
      {"qwen3-8b", "gate_up", 24576, 4096, 2},      {"qwen3-8b", "down", 4096, 12288, 1},
      {"llama-3.3-70b", "qkv", 10240, 8192, 3},     {"llama-3.3-70b", "o", 8192, 8192, 1},
      {"llama-3.3-70b", "gate_up", 57344, 8192, 2}, {"llama-3.3-70b", "down", 8192, 28672, 1},
  };
}

}  // namespace longhaul::kernels::cuda
