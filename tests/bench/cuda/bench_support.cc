#include "tests/bench/cuda/bench_support.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 22;

std::vector<float> NormalBlock(int64_t elements, double deviation) {
  std::mt19937 generator(20240607);
  std::normal_distribution<float> normal(0, static_cast<float>(deviation));
  std::vector<float> values(static_cast<size_t>(std::min(elements, kBlockElements)));
  for (float& value : values) value = normal(generator);
  return values;
}

template <typename T>
std::vector<uint8_t> RoundedBlock(int64_t elements, double deviation) {
  const std::vector<float> values = NormalBlock(elements, deviation);
  std::vector<uint8_t> bytes(values.size() * sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    const T rounded(values[i]);
    std::memcpy(bytes.data() + i * sizeof(T), &rounded, sizeof(T));
  }
  return bytes;
}

}  // namespace

void Require(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "cuda_lib_bench: %s: %s\n", call, cudaGetErrorString(error));
  std::exit(1);
}

BenchBuffer::BenchBuffer(int64_t bytes) : bytes_(bytes) {
  Require(cudaMalloc(&data_, static_cast<size_t>(std::max<int64_t>(bytes, 256))), "cudaMalloc");
}

BenchBuffer::~BenchBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

BenchBuffer& BenchBuffer::operator=(BenchBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void BenchBuffer::FillWith(const std::vector<uint8_t>& block) {
  const auto block_bytes = static_cast<int64_t>(block.size());
  for (int64_t at = 0; at < bytes_; at += block_bytes) {
    const auto bytes = static_cast<size_t>(std::min(block_bytes, bytes_ - at));
    // The first from the host, the others from it.
    Require(at == 0 ? cudaMemcpy(data_, block.data(), bytes, cudaMemcpyHostToDevice)
                    : cudaMemcpy(this->at<void>(at), data_, bytes, cudaMemcpyDeviceToDevice),
            "cudaMemcpy");
  }
}

BenchBuffer BenchBuffer::RandomBf16(int64_t elements, double deviation) {
  BenchBuffer buffer(elements * 2);
  buffer.FillWith(RoundedBlock<__nv_bfloat16>(elements, deviation));
  return buffer;
}

BenchBuffer BenchBuffer::RandomE4M3(int64_t elements) {
  BenchBuffer buffer(elements);
  buffer.FillWith(RoundedBlock<__nv_fp8_e4m3>(elements, 16));
  return buffer;
}

BenchBuffer BenchBuffer::RandomF32(int64_t elements) {
  BenchBuffer buffer(elements * 4);
  buffer.FillWith(RoundedBlock<float>(elements, 1));
  return buffer;
}

BenchBuffer BenchBuffer::Zeros(int64_t bytes) {
  BenchBuffer buffer(bytes);
  Require(cudaMemset(buffer.data_, 0, static_cast<size_t>(bytes)), "cudaMemset");
  return buffer;
}

BenchTime Measure(cudaStream_t stream, const std::function<void()>& work) {
  constexpr double kTotalMs = 300;
  constexpr int kRounds = 15;
  cudaEvent_t begun = nullptr, ended = nullptr;
  Require(cudaEventCreate(&begun), "cudaEventCreate");
  Require(cudaEventCreate(&ended), "cudaEventCreate");
  const auto time_ms = [&](int calls) {
    Require(cudaEventRecord(begun, stream), "cudaEventRecord");
    for (int i = 0; i < calls; ++i) work();
    Require(cudaEventRecord(ended, stream), "cudaEventRecord");
    Require(cudaEventSynchronize(ended), "cudaEventSynchronize");
    float ms = 0;
    Require(cudaEventElapsedTime(&ms, begun, ended), "cudaEventElapsedTime");
    return static_cast<double>(ms) / calls;
  };
  time_ms(2);
  const double guess_ms = std::max(time_ms(2), 1e-3);
  const int calls = std::clamp(static_cast<int>(kTotalMs / kRounds / guess_ms), 1, 1000);
  const int rounds = std::clamp(static_cast<int>(kTotalMs / (guess_ms * calls)), 3, kRounds);
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) times.push_back(time_ms(calls));
  std::sort(times.begin(), times.end());
  cudaEventDestroy(begun);
  cudaEventDestroy(ended);
  return {.median_ms = times[times.size() / 2], .least_ms = times.front()};
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
