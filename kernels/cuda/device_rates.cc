#include "kernels/cuda/device_rates.h"

#include <cuda_runtime.h>
#include <cudnn.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/lazy_libraries.h"
#include "kernels/cuda/lt_gemm.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kGemmSize = 4096;
constexpr int64_t kGemmWorkspaceBytes = int64_t{32} << 20;
constexpr int64_t kCopyBytes = int64_t{64} << 20;
// Each of the two buffers; together twice the largest L2, four times a Hopper's, so that next to nothing stays there.
constexpr int64_t kMemoryBytes = int64_t{96} << 20;
constexpr uint64_t kDataSeed = 1;
// The clock of an idle device takes some tenths of a second to rise, and what a warm one keeps up is what counts.
constexpr double kWarmMs = 300;
constexpr double kMeasuredMs = 300;
constexpr int kRunsAtOnce = 8;

// Calls of `run` a second, once it has run for a while.
double RunsPerSecond(const CudaStream& stream, const std::function<void()>& run) {
  const auto for_ms = [&](double least_ms) {
    CudaEvent begun(CudaEvent::Kind::kTiming), done(CudaEvent::Kind::kTiming);
    begun.Record(stream);
    double ms = 0;
    int64_t runs = 0;
    while (ms < least_ms) {
      for (int i = 0; i < kRunsAtOnce; ++i) run();
      runs += kRunsAtOnce;
      done.Record(stream);
      done.Synchronize();
      ms = done.MillisecondsSince(begun);
    }
    return static_cast<double>(runs) / ms * 1e3;
  };
  for_ms(kWarmMs);
  return for_ms(kMeasuredMs);
}

// bf16 of random sign and mantissa, 0.5 to 2 in size: on zeros a product runs 12% faster.
std::vector<uint16_t> RandomBf16(int64_t count) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); i += 4) {
    uint64_t bits = CounterBits(kDataSeed, i);
    for (size_t j = i; j < i + 4; ++j, bits >>= 16) values[j] = static_cast<uint16_t>((bits & 0x80ffu) | 0x3f00u);
  }
  return values;
}

absl::StatusOr<double> GemmFlops(const Exec& exec) {
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<cuda::LtGemm> gemm, cuda::LtGemm::Create(kGemmWorkspaceBytes));
  constexpr int64_t kElements = kGemmSize * kGemmSize;
  const DeviceBuffer operand(kElements * 2), product(kElements * 2), workspace(kGemmWorkspaceBytes);
  exec.Upload(operand.as<void>(), RandomBf16(kElements).data(), operand.bytes());
  const cuda::GemmShape shape{.transpose_b = true,
                              .m = kGemmSize,
                              .n = kGemmSize,
                              .k = kGemmSize,
                              .a_stride = kGemmSize,
                              .b_stride = kGemmSize,
                              .c_stride = kGemmSize};
  const cuda::GemmOperands operands{.a = operand.as<void>(), .b = operand.as<void>(), .c = product.as<void>()};
  LH_RETURN_IF_ERROR(gemm->Plan(shape).status());
  const CudaStream& stream = exec.cuda().compute;
  return shape.flops() * RunsPerSecond(stream, [&] {
           gemm->Run(stream.get(), shape, 1, operands, {workspace.as<void>(), kGemmWorkspaceBytes});
         });
}

absl::StatusOr<double> CopyBytesPerSecond(const Exec& exec) {
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<Arena> pinned,
                      CreatePinnedArena(exec, kCopyBytes, {{"copy", 0, kCopyBytes}}, 1));
  const DeviceBuffer target(kCopyBytes);
  return static_cast<double>(kCopyBytes) *
         RunsPerSecond(exec.cuda().compute, [&] { exec.Upload(target.as<void>(), pinned->Get("copy"), kCopyBytes); });
}

double MemoryBytesPerSecond(const Exec& exec) {
  const DeviceBuffer from(kMemoryBytes), to(kMemoryBytes);
  const CudaStream& stream = exec.cuda().compute;
  return 2.0 * static_cast<double>(kMemoryBytes) * RunsPerSecond(stream, [&] {
           CheckCuda(cudaMemcpyAsync(to.as<void>(), from.as<void>(), static_cast<size_t>(kMemoryBytes),
                                     cudaMemcpyDeviceToDevice, stream.get()),
                     "MeasureCudaRates", "cudaMemcpyAsync");
         });
}

}  // namespace

absl::StatusOr<std::string> CudaLibraries() {
  LH_RETURN_IF_ERROR(cuda::LoadCudaLibraries());
  const size_t cudnn = cudnnGetVersion();
  return "cuBLASLt " + cuda::LtGemm::LibraryVersion() + ", cuDNN " + std::to_string(cudnn / 10000) + "." +
         std::to_string(cudnn / 100 % 100) + "." + std::to_string(cudnn % 100);
}

absl::StatusOr<int> CudnnVersion() {
  LH_RETURN_IF_ERROR(cuda::LoadCudaLibraries());
  return static_cast<int>(cudnnGetVersion());
}

absl::StatusOr<bool> HasFp8Products(const Exec& exec) {
  LH_CHECK(exec.backend() == Backend::kCuda);
  LH_RETURN_IF_ERROR(cuda::LoadCudaLibraries());
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<cuda::LtGemm> gemm, cuda::LtGemm::Create(kGemmWorkspaceBytes));
  const auto scale = gemm->BestFp8Scale();
  return scale.ok() && *scale == cuda::GemmScale::kRow;
}

absl::StatusOr<CudaRates> MeasureCudaRates(const Exec& exec) {
  LH_RETURN_IF_ERROR(cuda::LoadCudaLibraries());
  CudaRates rates;
  LH_ASSIGN_OR_RETURN(rates.gemm_flops, GemmFlops(exec));
  LH_ASSIGN_OR_RETURN(rates.copy_bytes_per_second, CopyBytesPerSecond(exec));
  rates.memory_bytes_per_second = MemoryBytesPerSecond(exec);
  return rates;
}

}  // namespace longhaul::kernels
