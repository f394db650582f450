#include <gtest/gtest.h>

#include <new>

#include "tests/kernels/place.h"

namespace longhaul::kernels {

const std::vector<DType>& TestedTypes() {
  static const std::vector<DType> types = {DType::kF32, DType::kF64};
  return types;
}

std::unique_ptr<Exec> MakeExec(int threads, GemmType type) {
  auto created = Exec::CreateCpu(threads, type, /*pin=*/false);
  EXPECT_TRUE(created.ok()) << created.status().message();
  return std::move(created).value();
}

void* AllocateForTests(size_t bytes) { return ::operator new(bytes); }
void FreeForTests(void* data) { ::operator delete(data); }
void WaitForOps() {}

// Norms and losses sum in double whatever the type: a rounding a term here, and one in the test's own sum.
double SumError(DType, int64_t n) { return static_cast<double>(2 * n) * 0x1p-53; }

}  // namespace longhaul::kernels
