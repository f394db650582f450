// What the CUDA backend keeps: the device, its streams, scratch for partial sums. RAII for every CUDA object; a CUDA
// call that fails throws CudaError. Not thread-safe: ops of one Exec are called from the thread that created it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda_error.h"
#include "kernels/exec.h"

namespace longhaul::kernels {

// Throws CudaError unless status is cudaSuccess. `op` is what was being done, `call` the CUDA function.
void CheckCuda(cudaError_t status, const char* op, const char* call);

// A stream that does not wait for the legacy default stream.
class CudaStream {
 public:
  enum class Priority { kNormal, kHigh };
  explicit CudaStream(Priority priority);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  cudaStream_t get() const { return stream_; }
  void Synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream. Its variable is named by the fact that it records: x_copied.
class CudaEvent {
 public:
  enum class Kind { kOrdering, kTiming };  // timing costs a little at each record
  explicit CudaEvent(Kind kind = Kind::kOrdering);
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  void Record(const CudaStream& stream);
  // Later work of `stream` waits for the last Record; none yet: no wait.
  void Block(const CudaStream& stream) const;
  // Whether the last Record was reached; the host's wait for it.
  bool Reached() const;
  void Synchronize() const;
  // Milliseconds from `start` to here. REQUIRES: both kTiming and reached.
  double MillisecondsSince(const CudaEvent& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

// Device memory outside the arena: a few small buffers that belong to the Exec, made once.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

struct CudaExec {
  explicit CudaExec(const CudaDeviceFacts& device_facts);

  CudaDeviceFacts facts;
  int64_t others_bytes = 0;   // of device memory, when the Exec was made
  CudaStream compute;         // every op
  CudaStream copy_in;         // host to device, beside the ops
  CudaStream copy_out;        // device to host, beside the ops
  DeviceBuffer partial_sums;  // limits::kCudaPartialSumsBytes; used by one op at a time, in the order of `compute`
};

// FAILED_PRECONDITION, reason CUDA_DEVICE_TOO_OLD, unless the device has bf16.
absl::Status CheckComputesBf16(const CudaDeviceFacts& facts);

// What is said where memory is missing that the device has.
inline constexpr const char* kWhoHoldsMemory =
    "; other programs hold the rest: end those that nvidia-smi names, or restart longhaul-worker to offer what is left";

// A cudaError_t before any context exists, as a Status (Exec::CreateCuda lists the reasons).
absl::Status DeviceStatus(cudaError_t error, const std::string& what);

}  // namespace longhaul::kernels
