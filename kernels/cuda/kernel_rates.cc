#include "kernels/cuda/kernel_rates.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/bench_buffer.h"
#include "kernels/cuda/cuda_exec.h"
#include "kernels/cuda/lazy_libraries.h"
#include "kernels/cuda/plain_gemm.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kPlainWorkspaceBytes = int64_t{64} << 20;
constexpr int64_t kDeviceCopyBytes = int64_t{1} << 30;
constexpr double kWeightDeviation = 0.02;

}  // namespace

double SecondsOnDevice(const Exec& exec, const std::function<void()>& work) {
  LH_CHECK(exec.backend() == Backend::kCuda);
  return cuda::Measure(exec.cuda().compute.get(), work).median_ms * 1e-3;
}

absl::StatusOr<double> PlainGemmSeconds(const Exec& exec, const cuda::GemmShape& shape) {
  LH_RETURN_IF_ERROR(cuda::LoadCudaLibraries());
  const auto elements = [](int64_t rows, int64_t stride) { return rows * stride; };
  const auto a = cuda::BenchBuffer::RandomBf16(elements(shape.transpose_a ? shape.k : shape.m, shape.a_stride), 1);
  const auto b =
      cuda::BenchBuffer::RandomBf16(elements(shape.transpose_b ? shape.n : shape.k, shape.b_stride), kWeightDeviation);
  const auto c = cuda::BenchBuffer::Zeros(elements(shape.m, shape.c_stride) * 2);
  const auto workspace = cuda::BenchBuffer::Zeros(kPlainWorkspaceBytes);
  const cuda::PlainGemm gemm(shape);
  return SecondsOnDevice(exec, [&] {
    gemm.Run(exec.cuda().compute.get(), {a.at(), b.at(), c.at()}, {workspace.at(), kPlainWorkspaceBytes});
  });
}

double DeviceCopyBytesPerSecond(const Exec& exec) {
  const auto from = cuda::BenchBuffer::RandomBf16(kDeviceCopyBytes / 2, 1);
  const auto to = cuda::BenchBuffer::Zeros(kDeviceCopyBytes);
  const double seconds = SecondsOnDevice(exec, [&] {
    CheckCuda(cudaMemcpyAsync(to.at(), from.at(), static_cast<size_t>(kDeviceCopyBytes), cudaMemcpyDeviceToDevice,
                              exec.cuda().compute.get()),
              "DeviceCopy", "cudaMemcpyAsync");
  });
  return 2.0 * static_cast<double>(kDeviceCopyBytes) / seconds;
}

}  // namespace longhaul::kernels
