// Linked where CUDA is off.
#include "base/check.h"
#include "base/error.h"
#include "kernels/cuda/cuda_engine.h"
#include "kernels/cuda/device_activity.h"
#include "kernels/cuda/device_rates.h"
#include "kernels/cuda/kernel_rates.h"

namespace longhaul::kernels {
namespace {

absl::Status NoCuda() {
  return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA",
                   "this build of Longhaul has no CUDA support; run on the CPU, or build where the CUDA toolkit is "
                   "installed");
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaEngine>> CudaEngine::Create(const Exec&, const CudaEngineMemory&,
                                                               const CudaEngineShapes&, std::vector<CudaLinear>,
                                                               const void*) {
  return NoCuda();
}

void FillFp8Cache(const Exec&, const Tensor&, void*) {
  LH_CHECK(false, "there is no CUDA Exec in a build without CUDA");
}

int64_t CudaUsedBytes(const Exec&) {
  LH_CHECK(false, "there is no CUDA Exec in a build without CUDA");
  return 0;
}

double SecondsOnDevice(const Exec&, const std::function<void()>&) {
  LH_CHECK(false, "there is no CUDA Exec in a build without CUDA");
  return 0;
}

absl::StatusOr<double> PlainGemmSeconds(const Exec&, const cuda::GemmShape&) { return NoCuda(); }

double DeviceCopyBytesPerSecond(const Exec&) {
  LH_CHECK(false, "there is no CUDA Exec in a build without CUDA");
  return 0;
}

int64_t CudaOwnBytes(const Exec& exec) { return CudaUsedBytes(exec); }

absl::StatusOr<std::unique_ptr<DeviceActivity>> DeviceActivity::Begin() { return NoCuda(); }

absl::StatusOr<std::string> CudaLibraries() { return NoCuda(); }

absl::StatusOr<int> CudnnVersion() { return NoCuda(); }

absl::StatusOr<bool> HasFp8Products(const Exec&) { return NoCuda(); }

absl::StatusOr<CudaRates> MeasureCudaRates(const Exec&) { return NoCuda(); }

}  // namespace longhaul::kernels
