#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/cuda/cuda_exec.h"
#include "tests/kernels/place.h"

namespace longhaul::kernels {

const std::vector<DType>& TestedTypes() {
  static const std::vector<DType> types = {DType::kF32, DType::kBF16};
  return types;
}

std::unique_ptr<Exec> MakeExec(int, GemmType) {
  auto created = Exec::CreateCuda(0);
  // Nothing of this program can run without a device.
  if (!created.ok()) {
    ADD_FAILURE() << created.status().message();
    std::exit(1);
  }
  return std::move(created).value();
}

// Managed memory: the same address on both sides.
void* AllocateForTests(size_t bytes) {
  void* data = nullptr;
  CheckCuda(cudaMallocManaged(&data, std::max<size_t>(bytes, 1)), "AllocateForTests", "cudaMallocManaged");
  return data;
}
void FreeForTests(void* data) { cudaFree(data); }
void WaitForOps() { CheckCuda(cudaDeviceSynchronize(), "WaitForOps", "cudaDeviceSynchronize"); }

// In f32: a thread adds at most 64 terms, or a 512th of a long row, one by one; 10 levels of lanes and warps follow,
// and every term was rounded.
double SumError(DType, int64_t n) { return (static_cast<double>(std::max<int64_t>(64, n / 512)) + 16) * 0x1p-24; }

}  // namespace longhaul::kernels
