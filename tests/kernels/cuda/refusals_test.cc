// What is said where no GPU can serve: no driver, an old one, no bf16, no memory, no code for the device. None is
// needed.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdio>
#include <string>

#include "base/error.h"
#include "kernels/cuda/cuda_exec.h"

namespace longhaul::kernels {
namespace {

std::string Told(const absl::Status& status) { return ErrorReason(status) + ": " + std::string(status.message()); }

TEST(CudaRefusals, WithoutADriverWhatToDoIsSaid) {
  if (void* const driver = dlopen("libcuda.so.1", RTLD_LAZY); driver != nullptr) {
    dlclose(driver);
    GTEST_SKIP() << "this machine has a driver";
  }
  for (const absl::Status& status : {CudaDevices().status(), Exec::CreateCuda(0).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(
        Told(status),
        "NO_CUDA_DEVICE: the CUDA driver: there is no NVIDIA driver on this machine; install one, or run on the CPU");
  }
}

[[noreturn]] void TellOfTheDriver() {
  std::fprintf(stderr, "%s\n%s\n", Told(CudaDevices().status()).c_str(), Told(Exec::CreateCuda(0).status()).c_str());
  std::_Exit(0);
}

// In a process of its own, in which the loader finds tests/fakes/old_cuda_driver.cc first.
TEST(CudaRefusalsDeathTest, AnOldDriverIsNamedWithWhatIsNeeded) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const char* const path = getenv("LD_LIBRARY_PATH");
  const std::string before = path != nullptr ? path : "";
  ASSERT_EQ(setenv("LD_LIBRARY_PATH", (std::string(OLD_CUDA_DRIVER_FOLDER ":") + before).c_str(), 1), 0);
  const std::string line =
      "CUDA_DRIVER_TOO_OLD: the CUDA driver: the driver supports CUDA 12.0, this build needs 1[0-9.]+; update the "
      "driver\n";
  EXPECT_EXIT(TellOfTheDriver(), testing::ExitedWithCode(0), line + line);
  ASSERT_EQ(setenv("LD_LIBRARY_PATH", before.c_str(), 1), 0);
}

TEST(CudaRefusals, ADeviceWithoutBf16IsRefusedByItsName) {
  CudaDeviceFacts t4;
  t4.device = 1;
  t4.name = "Tesla T4";
  t4.compute_capability = 75;
  const absl::Status status = CheckComputesBf16(t4);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Told(status),
            "CUDA_DEVICE_TOO_OLD: CUDA device 1 (Tesla T4) has compute capability 7.5; bf16 needs 8.0 or newer");
  for (const int capability : {80, 86, 89, 90, 100, 120}) {
    t4.compute_capability = capability;
    EXPECT_TRUE(CheckComputesBf16(t4).ok()) << capability;
  }
}

TEST(CudaRefusals, EveryCauseHasItsReasonAndSaysWhatToDo) {
  const struct {
    cudaError_t error;
    const char* reason;
    const char* part;
  } cases[] = {
      {cudaErrorMemoryAllocation, "DEVICE_MEMORY_TAKEN", "end those that nvidia-smi names"},
      {cudaErrorNoKernelImageForDevice, "NO_CUDA_KERNELS",
       "build with its architecture in LONGHAUL_CUDA_ARCHITECTURES"},
      {cudaErrorUnsupportedPtxVersion, "NO_CUDA_KERNELS", "LONGHAUL_CUDA_ARCHITECTURES"},
      {cudaErrorDevicesUnavailable, "NO_CUDA_DEVICE", "CUDA device 3: "},
      {cudaErrorECCUncorrectable, "NO_CUDA_DEVICE", "uncorrectable ECC error"},
  };
  for (const auto& c : cases) {
    const absl::Status status = DeviceStatus(c.error, "CUDA device 3");
    EXPECT_EQ(ErrorReason(status), c.reason) << status.message();
    EXPECT_NE(std::string(status.message()).find(c.part), std::string::npos) << status.message();
  }
}

}  // namespace
}  // namespace longhaul::kernels
