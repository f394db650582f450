// Matrices for tests of the CUDA backend: values on the host in double, rounded to what the device holds, and a strided
// copy on the device whose gaps are NaN, so that an element that is read or written by mistake shows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace longhaul::kernels::cuda {

inline void CheckCuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

// Device memory, every byte 0xff: NaN in bf16, f32 and E4M3. What fills it is over when it returns: it runs on the
// legacy stream, for which a stream of a test does not wait.
class DeviceBytes {
 public:
  explicit DeviceBytes(int64_t bytes) : bytes_(bytes) {
    CheckCuda(cudaMalloc(&data_, static_cast<size_t>(bytes > 0 ? bytes : 256)), "cudaMalloc");
    Poison();
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(DeviceBytes&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  DeviceBytes& operator=(DeviceBytes&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  void Poison() {
    CheckCuda(cudaMemset(data_, 0xff, static_cast<size_t>(bytes_)), "cudaMemset");
    CheckCuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
  }
  void Upload(const void* from, int64_t bytes) {
    CheckCuda(cudaMemcpy(data_, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice), "cudaMemcpy");
    CheckCuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
  }
  std::vector<uint8_t> Download() const {
    std::vector<uint8_t> bytes(static_cast<size_t>(bytes_));
    CheckCuda(cudaMemcpy(bytes.data(), data_, bytes.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return bytes;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
};

template <typename T>
double ToDouble(T value) {
  return static_cast<double>(static_cast<float>(value));
}

// T: __nv_bfloat16, float or __nv_fp8_e4m3.
template <typename T>
class DeviceMatrix {
 public:
  DeviceMatrix(int64_t rows, int64_t cols, int64_t stride)
      : rows_(rows),
        cols_(cols),
        stride_(stride),
        values_(static_cast<size_t>(rows * cols), std::numeric_limits<double>::quiet_NaN()),
        device_(rows * stride * static_cast<int64_t>(sizeof(T))) {}

  static DeviceMatrix Random(int64_t rows, int64_t cols, int64_t stride, uint32_t seed, double deviation = 1) {
    DeviceMatrix matrix(rows, cols, stride);
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal(0, deviation);
    for (double& value : matrix.values_) value = ToDouble(T(static_cast<float>(normal(generator))));
    matrix.Upload();
    return matrix;
  }

  double& operator()(int64_t i, int64_t j) { return values_[static_cast<size_t>(i * cols_ + j)]; }
  double operator()(int64_t i, int64_t j) const { return values_[static_cast<size_t>(i * cols_ + j)]; }

  void Upload() {
    std::vector<T> out(static_cast<size_t>(rows_ * stride_));
    std::memset(static_cast<void*>(out.data()), 0xff, out.size() * sizeof(T));
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < cols_; ++j)
        out[static_cast<size_t>(i * stride_ + j)] = T(static_cast<float>((*this)(i, j)));
    }
    device_.Upload(out.data(), static_cast<int64_t>(out.size() * sizeof(T)));
  }
  // Every element on the device becomes NaN.
  void Poison() { device_.Poison(); }
  // Reads the device's values; true where the gaps still are as they were.
  bool Download() {
    const std::vector<uint8_t> bytes = device_.Download();
    const T* const in = reinterpret_cast<const T*>(bytes.data());
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < cols_; ++j) (*this)(i, j) = ToDouble(in[i * stride_ + j]);
    }
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t at = (i * stride_ + cols_) * static_cast<int64_t>(sizeof(T));
           at < (i + 1) * stride_ * static_cast<int64_t>(sizeof(T)); ++at) {
        if (bytes[static_cast<size_t>(at)] != 0xff) return false;
      }
    }
    return true;
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t stride() const { return stride_; }
  T* device() const { return device_.template as<T>(); }
  std::vector<uint8_t> bytes() const { return device_.Download(); }

 private:
  int64_t rows_, cols_, stride_;
  std::vector<double> values_;
  DeviceBytes device_;
};

using BF16Matrix = DeviceMatrix<__nv_bfloat16>;
using F32Matrix = DeviceMatrix<float>;

// |matrix - expected(i, j)| <= tolerance(i, j) everywhere. Reports the first miss.
using Element = std::function<double(int64_t, int64_t)>;
template <typename T>
void ExpectNear(const DeviceMatrix<T>& matrix, const Element& expected, const Element& tolerance,
                const std::string& what) {
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    for (int64_t j = 0; j < matrix.cols(); ++j) {
      const double want = expected(i, j);
      // A NaN fails.
      ASSERT_TRUE(std::abs(matrix(i, j) - want) <= tolerance(i, j))
          << what << " at " << i << ", " << j << ": " << matrix(i, j) << ", not " << want << " within "
          << tolerance(i, j);
    }
  }
}

class Stream {
 public:
  Stream() { CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void Synchronize() const { CheckCuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace longhaul::kernels::cuda
