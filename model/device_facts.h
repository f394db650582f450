// What the plan needs to know of a device: the C++ value of proto/longhaul/v1/plan.proto's DeviceFacts.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace longhaul {

enum class DeviceKind { kCpu, kCuda };

struct DeviceFacts {
  std::string device_class;  // "cpu-avx2-2t"; all devices with equal facts
  DeviceKind kind = DeviceKind::kCpu;
  int64_t device_bytes = 0;  // VRAM; 0 on a CPU device
  int64_t host_bytes = 0;    // RAM that jobs may use
  int64_t disk_bytes = 0;
  int cpu_threads = 1;
  std::string isa = "avx2";  // "avx2", "avx512", "avx512_bf16"
  bool has_bf16 = false;
  int64_t context_bytes = 0;           // device memory outside the arenas
  double gemm_flops = 0;               // measured, per second; 0 = not measured
  double copy_bytes_per_second = 0;    // from pinned host memory to the device
  double memory_bytes_per_second = 0;  // of device memory: read and written by a copy within it; 0 = not measured
  std::string compute_capability;
  int64_t runtime_host_bytes = 0;  // host memory outside the arenas but for the tokenizer; 0 = kDefaultRuntimeHostBytes
  // Of a GPU, as its libraries say.
  int cudnn_version = 0;  // 91400 for 9.14.0; 0 = not known: nothing newer is counted on
  bool has_fp8 = false;   // products of E4M3 operands with a scale a row
};

// Code, libraries, heap and stacks of a trainer that has loaded its model, without the tokenizer.
inline constexpr int64_t kDefaultRuntimeHostBytes = int64_t{48} << 20;
// A tokenizer, and what reading it leaves in the heap, a token of the vocabulary. Trainers of 49,152 to 151,936 tokens
// took 50 to 124 MiB beside their arenas; with the part above this says 78 to 141.
inline constexpr int64_t kTokenizerBytesPerToken = 640;

// The host memory outside the arenas of a trainer whose model has `vocab` tokens.
int64_t RuntimeHostBytes(const DeviceFacts& facts, int64_t vocab);

// True where frozen weights are kept in the GEMM library's blocked layout, one copy a direction (kernels/exec.h).
bool DevicePacksWeights(const DeviceFacts& facts);
absl::Status ValidateDeviceFacts(const DeviceFacts& facts);

}  // namespace longhaul
