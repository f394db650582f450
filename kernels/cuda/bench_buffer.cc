#include "kernels/cuda/bench_buffer.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels::cuda {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 22;
constexpr unsigned kDataSeed = 20240607;
constexpr double kTotalMs = 300;
constexpr int kRounds = 15;
constexpr const char* kOp = "Measure";

template <typename T>
std::vector<uint8_t> RoundedBlock(int64_t elements, double deviation) {
  std::mt19937 generator(kDataSeed);
  std::normal_distribution<float> normal(0, static_cast<float>(deviation));
  std::vector<uint8_t> bytes(static_cast<size_t>(std::min(elements, kBlockElements)) * sizeof(T));
  for (size_t at = 0; at < bytes.size(); at += sizeof(T)) {
    const T rounded(normal(generator));
    std::memcpy(bytes.data() + at, &rounded, sizeof(T));
  }
  return bytes;
}

}  // namespace

BenchBuffer::BenchBuffer(int64_t bytes) : bytes_(bytes) {
  CheckCuda(cudaMalloc(&data_, static_cast<size_t>(std::max<int64_t>(bytes, 256))), kOp, "cudaMalloc");
}

BenchBuffer::~BenchBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

BenchBuffer& BenchBuffer::operator=(BenchBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

template <typename T>
void BenchBuffer::FillRandom(int64_t elements, double deviation) {
  const std::vector<uint8_t> block = RoundedBlock<T>(elements, deviation);
  const auto block_bytes = static_cast<int64_t>(block.size());
  for (int64_t to = 0; to < bytes_; to += block_bytes) {
    const auto bytes = static_cast<size_t>(std::min(block_bytes, bytes_ - to));
    // The first from the host, the others from it.
    CheckCuda(to == 0 ? cudaMemcpy(data_, block.data(), bytes, cudaMemcpyHostToDevice)
                      : cudaMemcpy(at<void>(to), data_, bytes, cudaMemcpyDeviceToDevice),
              kOp, "cudaMemcpy");
  }
}

BenchBuffer BenchBuffer::RandomBf16(int64_t elements, double deviation) {
  BenchBuffer buffer(elements * 2);
  buffer.FillRandom<__nv_bfloat16>(elements, deviation);
  return buffer;
}

BenchBuffer BenchBuffer::RandomE4M3(int64_t elements) {
  BenchBuffer buffer(elements);
  buffer.FillRandom<__nv_fp8_e4m3>(elements, 16);
  return buffer;
}

BenchBuffer BenchBuffer::RandomF32(int64_t elements) {
  BenchBuffer buffer(elements * 4);
  buffer.FillRandom<float>(elements, 1);
  return buffer;
}

BenchBuffer BenchBuffer::Zeros(int64_t bytes) {
  BenchBuffer buffer(bytes);
  CheckCuda(cudaMemset(buffer.data_, 0, static_cast<size_t>(bytes)), kOp, "cudaMemset");
  return buffer;
}

BenchTime Measure(cudaStream_t stream, const std::function<void()>& work) {
  cudaEvent_t begun = nullptr, ended = nullptr;
  CheckCuda(cudaEventCreate(&begun), kOp, "cudaEventCreate");
  CheckCuda(cudaEventCreate(&ended), kOp, "cudaEventCreate");
  const auto time_ms = [&](int calls) {
    CheckCuda(cudaEventRecord(begun, stream), kOp, "cudaEventRecord");
    for (int i = 0; i < calls; ++i) work();
    CheckCuda(cudaEventRecord(ended, stream), kOp, "cudaEventRecord");
    CheckCuda(cudaEventSynchronize(ended), kOp, "cudaEventSynchronize");
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, begun, ended), kOp, "cudaEventElapsedTime");
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

}  // namespace longhaul::kernels::cuda
