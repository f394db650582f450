// Device memory and pinned host memory as arenas.
#include <cuda_runtime.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/host_mapping.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kTouchBytes = 4096;

// A mapping that is registered with the driver, whole: a copy may not cross from one registration into another.
class PinnedMapping {
 public:
  explicit PinnedMapping(HostMapping mapping) : mapping_(std::move(mapping)) {}
  ~PinnedMapping() {
    if (is_registered_) cudaHostUnregister(mapping_.data());
  }
  PinnedMapping(const PinnedMapping&) = delete;
  PinnedMapping& operator=(const PinnedMapping&) = delete;

  uint8_t* data() const { return mapping_.data(); }

  // Pages appear when they are written; the kernel zeroes them in the thread that does.
  void Touch(int threads) {
    std::vector<std::jthread> workers;
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([this, t, threads] {
        const int64_t begin = mapping_.bytes() / threads * t;
        const int64_t end = t + 1 == threads ? mapping_.bytes() : mapping_.bytes() / threads * (t + 1);
        volatile uint8_t* const data = mapping_.data();
        for (int64_t at = begin; at < end; at += kTouchBytes) data[at] = 0;
      });
    }
  }

  // Portable: every context of the process sees it.
  cudaError_t Register() {
    const cudaError_t error =
        cudaHostRegister(mapping_.data(), static_cast<size_t>(mapping_.bytes()), cudaHostRegisterPortable);
    is_registered_ = error == cudaSuccess;
    if (!is_registered_) cudaGetLastError();  // not an error of the next launch
    return error;
  }

 private:
  HostMapping mapping_;
  bool is_registered_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Arena>> CreateDeviceArena(const Exec& exec, int64_t bytes,
                                                         std::vector<ArenaRegion> regions) {
  LH_CHECK(exec.backend() == Backend::kCuda && bytes >= 0);
  if (bytes == 0) return Arena::Carve({}, 0, std::move(regions));
  void* data = nullptr;
  if (const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes)); error != cudaSuccess) {
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    const std::string what = exec.cuda().facts.name + ": cannot allocate " + std::to_string(bytes) +
                             " bytes: " + cudaGetErrorString(error) + "; " + std::to_string(free_bytes) + " of " +
                             std::to_string(total_bytes) + " are free";
    if (bytes > static_cast<int64_t>(total_bytes) - limits::kMostCudaContextBytes) {
      return MakeError(absl::StatusCode::kResourceExhausted, "DEVICE_OOM", what);
    }
    return MakeError(absl::StatusCode::kUnavailable, "DEVICE_MEMORY_TAKEN", what + kWhoHoldsMemory);
  }
  return Arena::Carve({static_cast<uint8_t*>(data), [bytes] { return bytes; }, [data] { cudaFree(data); }}, bytes,
                      std::move(regions));
}

absl::StatusOr<std::unique_ptr<Arena>> CreatePinnedArena(const Exec& exec, int64_t bytes,
                                                         std::vector<ArenaRegion> regions, int threads) {
  LH_CHECK(exec.backend() == Backend::kCuda && bytes >= 0 && threads >= 1);
  if (bytes == 0) return Arena::Carve({}, 0, std::move(regions));
  LH_ASSIGN_OR_RETURN(HostMapping mapping, HostMapping::Create(bytes));
  const auto pinned = std::make_shared<PinnedMapping>(std::move(mapping));
  pinned->Touch(threads);
  if (const cudaError_t error = pinned->Register(); error != cudaSuccess) {
    return MakeError(absl::StatusCode::kResourceExhausted, "HOST_OOM",
                     "cannot pin " + std::to_string(bytes) + " bytes of host memory: " + cudaGetErrorString(error) +
                         "; lower the host share of the job, or raise the memlock limit");
  }
  return Arena::Carve({pinned->data(), [pinned, bytes] { return bytes; }, {}}, bytes, std::move(regions));
}

}  // namespace longhaul::kernels
