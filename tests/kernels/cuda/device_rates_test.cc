#include "kernels/cuda/device_rates.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/exec.h"

namespace longhaul::kernels {
namespace {

// Far from exact: a rate in another unit, or of a cache instead of the memory, is off by more.
TEST(DeviceRatesTest, AreThoseOfTheDevice) {
  auto exec = Exec::CreateCuda(0);
  ASSERT_TRUE(exec.ok()) << exec.status();
  const auto rates = MeasureCudaRates(**exec);
  ASSERT_TRUE(rates.ok()) << rates.status();
  int clock_khz = 0, bus_bits = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, 0), cudaSuccess);
  ASSERT_EQ(cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, 0), cudaSuccess);
  const double memory = 2.0 * clock_khz * 1e3 * bus_bits / 8;  // two transfers a clock
  RecordProperty("memory_gb_per_s", static_cast<int>(rates->memory_bytes_per_second / 1e9));
  EXPECT_GT(rates->memory_bytes_per_second, 0.5 * memory);
  EXPECT_LT(rates->memory_bytes_per_second, memory);
  EXPECT_GT(rates->memory_bytes_per_second, 2 * rates->copy_bytes_per_second);
  EXPECT_GT(rates->copy_bytes_per_second, 1e9);
  EXPECT_GT(rates->gemm_flops, 1e12);
}

}  // namespace
}  // namespace longhaul::kernels
