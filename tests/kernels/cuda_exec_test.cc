#include "kernels/cuda/cuda_exec.h"

#include <cuda_runtime_api.h>

#include <array>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "base/units.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_memory.h"
#include "tests/kernels/test_support.h"

namespace longhaul::kernels {
namespace {

TEST(CudaExecTest, FactsNameTheDevice) {
  const auto devices = CudaDevices();
  ASSERT_TRUE(devices.ok()) << devices.status().message();
  ASSERT_FALSE(devices->empty());
  const CudaDeviceFacts& facts = devices->front();
  EXPECT_FALSE(facts.name.empty());
  EXPECT_EQ(facts.uuid.rfind("GPU-", 0), 0u);
  EXPECT_EQ(facts.uuid.size(), 40u);
  EXPECT_GE(facts.compute_capability, 80);
  EXPECT_GT(facts.multiprocessors, 0);
  EXPECT_GT(facts.memory_bytes, 1024 * kMiB);
  EXPECT_GT(facts.l2_bytes, kMiB);
  EXPECT_GT(facts.shared_bytes_per_block, 48 * 1024);
  EXPECT_GE(facts.driver_version, facts.runtime_version);
  EXPECT_EQ(MakeExec(1)->cuda().facts.uuid, facts.uuid);
}

TEST(CudaExecTest, ADeviceThatDoesNotExistIsSaid) {
  for (const int device : {-1, 4096}) {
    const auto exec = Exec::CreateCuda(device);
    EXPECT_EQ(exec.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(ErrorReason(exec.status()), "NO_CUDA_DEVICE");
  }
}

TEST(CudaExecTest, WhatIsHeldBeforeIsOthers) {
  EXPECT_EQ(cuda::BytesOfOthers(40 * kGiB, 39 * kGiB, 39 * kGiB + 500 * kMiB), 40 * kGiB - 500 * kMiB);
  EXPECT_EQ(cuda::BytesOfOthers(460 * kMiB, 500 * kMiB, 980 * kMiB), 0) << "the library counts what the driver keeps";
  EXPECT_EQ(cuda::BytesOfOthers(500 * kMiB, std::nullopt, std::nullopt), 0) << "a context of ours";
  EXPECT_EQ(cuda::BytesOfOthers(40 * kGiB, std::nullopt, std::nullopt), 40 * kGiB - cuda::kFreshContextBytes);

  const auto used = [] {
    size_t free_bytes = 0, total_bytes = 0;
    EXPECT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    return static_cast<int64_t>(total_bytes - free_bytes);
  };
  const auto first = MakeExec(1);
  RecordProperty("used_by_one_exec", std::to_string(used()));
  RecordProperty("of_others", std::to_string(first->cuda().others_bytes));
  const auto held = CreateDeviceArena(*first, kGiB, {{"x", 0, kGiB}});
  ASSERT_TRUE(held.ok());
  const auto second = MakeExec(1);
  EXPECT_GE(second->cuda().others_bytes, kGiB);
  const bool asked = cuda::BytesInUse(second->cuda().facts.pci_bus_id).has_value();
  RecordProperty("nvml", asked ? 1 : 0);
  EXPECT_LT(used() - second->cuda().others_bytes, asked ? 64 * kMiB : cuda::kFreshContextBytes + kMiB)
      << "the second has taken next to nothing yet";
}

TEST(CudaExecTest, UploadOpAndDownloadAreInOrder) {
  const auto exec = MakeExec(1);
  auto arena = CreateDeviceArena(*exec, 4096, {{"x", 0, 4096}});
  ASSERT_TRUE(arena.ok());
  const Tensor x = (*arena)->Matrix("x", DType::kF32, 1, 1024);
  std::vector<float> values(1024, 3.0f), result(1024);
  exec->Upload(x.data, values.data(), 4096);
  Scale(*exec, 2, x);
  exec->Download(result.data(), x.data, 4096);
  exec->Synchronize();
  for (const float value : result) ASSERT_EQ(value, 6.0f);
}

TEST(CudaExecTest, EventsOrderStreams) {
  const auto exec = MakeExec(1);
  const CudaExec& cuda = exec->cuda();
  auto device = CreateDeviceArena(*exec, 64 * kMiB, {{"x", 0, 64 * kMiB}});
  auto pinned = CreatePinnedArena(*exec, 64 * kMiB, {{"x", 0, 64 * kMiB}}, 2);
  ASSERT_TRUE(device.ok() && pinned.ok());
  const Tensor x = (*device)->Matrix("x", DType::kF32, 1, 16 * kMiB);
  float* const host = static_cast<float*>((*pinned)->Get("x"));
  CudaEvent x_scaled, x_copied;
  EXPECT_TRUE(x_scaled.Reached()) << "nothing was recorded";
  for (int round = 1; round <= 3; ++round) {
    for (int64_t i = 0; i < 16 * kMiB; ++i) host[i] = static_cast<float>(round);
    exec->Upload(x.data, host, 64 * kMiB);
    for (int i = 0; i < 10; ++i) Scale(*exec, 2, x);
    x_scaled.Record(cuda.compute);
    x_scaled.Block(cuda.copy_out);
    CheckCuda(cudaMemcpyAsync(host, x.data, 64 * kMiB, cudaMemcpyDeviceToHost, cuda.copy_out.get()), "test", "copy");
    x_copied.Record(cuda.copy_out);
    x_copied.Block(cuda.compute);
    Scale(*exec, 0, x);  // not before it was copied
    x_copied.Synchronize();
    EXPECT_TRUE(x_copied.Reached());
    for (int64_t i = 0; i < 16 * kMiB; i += 4097) ASSERT_EQ(host[i], static_cast<float>(round * 1024));
    exec->Synchronize();
  }
}

TEST(CudaExecTest, TimingEventsMeasure) {
  const auto exec = MakeExec(1);
  CudaEvent begun(CudaEvent::Kind::kTiming), done(CudaEvent::Kind::kTiming);
  const Buffer x(DType::kF32, 1000, 1000);
  begun.Record(exec->cuda().compute);
  for (int i = 0; i < 10; ++i) Zero(*exec, x.view());
  done.Record(exec->cuda().compute);
  done.Synchronize();
  EXPECT_GT(done.MillisecondsSince(begun), 0);
}

TEST(CudaArenaTest, DeviceMemoryIsCarvedByName) {
  const auto exec = MakeExec(1);
  size_t free_before = 0, free_during = 0, free_after = 0, total = 0;
  cudaMemGetInfo(&free_before, &total);
  {
    auto arena = CreateDeviceArena(*exec, 256 * kMiB, {{"x", 0, kMiB}, {"y", kMiB, 255 * kMiB}});
    ASSERT_TRUE(arena.ok());
    EXPECT_EQ(static_cast<char*>((*arena)->Get("y")) - static_cast<char*>((*arena)->Get("x")), kMiB);
    EXPECT_EQ((*arena)->bytes(), 256 * kMiB);
    EXPECT_EQ((*arena)->high_water_bytes(), 256 * kMiB);
    cudaMemGetInfo(&free_during, &total);
    EXPECT_GE(free_before - free_during, static_cast<size_t>(256 * kMiB));
  }
  cudaMemGetInfo(&free_after, &total);
  EXPECT_GE(free_after + static_cast<size_t>(2 * kMiB), free_before);
}

TEST(CudaArenaTest, MoreThanTheDeviceHasIsRefusedAndForgotten) {
  const auto exec = MakeExec(1);
  const int64_t bytes = exec->cuda().facts.memory_bytes * 2;
  const auto arena = CreateDeviceArena(*exec, bytes, {});
  EXPECT_EQ(arena.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(arena.status()), "DEVICE_OOM");
  EXPECT_NE(std::string(arena.status().message()).find(std::to_string(bytes)), std::string::npos);
  Buffer x(DType::kF32, 2, 2);
  Zero(*exec, x.view());  // the failure is not this op's
  EXPECT_EQ(x(1, 1), 0);
}

// Here by another arena of ours: the driver does not say whose memory is missing.
TEST(CudaArenaTest, MemoryThatOthersHoldIsSaidToBeTheirs) {
  const auto exec = MakeExec(1);
  size_t free_bytes = 0, total_bytes = 0;
  CheckCuda(cudaMemGetInfo(&free_bytes, &total_bytes), "test", "cudaMemGetInfo");
  const auto hold = CreateDeviceArena(*exec, static_cast<int64_t>(free_bytes) - 512 * kMiB, {});
  ASSERT_TRUE(hold.ok()) << hold.status().message();
  const auto arena = CreateDeviceArena(*exec, 4096 * kMiB, {});
  EXPECT_EQ(arena.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(arena.status()), "DEVICE_MEMORY_TAKEN");
  const std::string message(arena.status().message());
  EXPECT_NE(message.find("cannot allocate " + std::to_string(4096 * kMiB)), std::string::npos) << message;
  EXPECT_NE(message.find("that nvidia-smi names"), std::string::npos) << message;
}

TEST(CudaArenaTest, PinnedMemoryIsHostMemoryThatTheDeviceReads) {
  const auto exec = MakeExec(1);
  // Odd, and more than a driver's call would be given at once.
  const int64_t bytes = (int64_t{1} << 30) + 12'345;
  auto arena = CreatePinnedArena(*exec, bytes, {{"x", 0, bytes}}, 4);
  ASSERT_TRUE(arena.ok()) << arena.status().message();
  char* const x = static_cast<char*>((*arena)->Get("x"));
  for (const int64_t at : {int64_t{0}, bytes / 2, bytes - 1}) {
    cudaPointerAttributes attributes{};
    CheckCuda(cudaPointerGetAttributes(&attributes, x + at), "test", "cudaPointerGetAttributes");
    EXPECT_EQ(attributes.type, cudaMemoryTypeHost) << at;
    x[at] = 7;
  }
  EXPECT_EQ((*arena)->high_water_bytes(), bytes);
  auto device = CreateDeviceArena(*exec, 64, {{"y", 0, 64}});
  ASSERT_TRUE(device.ok());
  char back = 0;
  exec->Upload((*device)->Get("y"), x + bytes - 1, 1);
  exec->Download(&back, (*device)->Get("y"), 1);
  exec->Synchronize();
  EXPECT_EQ(back, 7);
  // One copy may lie anywhere in it: a copy from one registration into the next is refused.
  char* const across = x + (int64_t{1} << 30) - 32;
  for (int i = 0; i < 64; ++i) across[i] = static_cast<char>(i);
  exec->Upload((*device)->Get("y"), across, 64);
  std::array<char, 64> copied{};
  exec->Download(copied.data(), (*device)->Get("y"), 64);
  exec->Synchronize();
  for (int i = 0; i < 64; ++i) EXPECT_EQ(copied[static_cast<size_t>(i)], i);
}

// Exits with 3 where the failure is a CudaError.
[[noreturn]] void GatherPastTheTable() {
  const auto exec = MakeExec(1);
  const Buffer table(DType::kF32, 4, 8), y(DType::kF32, 1, 8);
  const TestVector<int32_t> ids = {4};
  try {
    GatherRows(*exec, table.view(), ids.data(), y.view());
    exec->Synchronize();
  } catch (const CudaError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::_Exit(error.code() != 0 ? 3 : 4);
  }
  std::_Exit(5);
}

// In its own process: the context is not usable afterwards.
TEST(CudaErrorDeathTest, AnIndexOutOfRangeEndsTheKernel) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(GatherPastTheTable(), testing::ExitedWithCode(3),
              "Synchronize: cudaStreamSynchronize failed with CUDA error");
}

}  // namespace
}  // namespace longhaul::kernels
