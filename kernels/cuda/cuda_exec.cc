#include "kernels/cuda/cuda_exec.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_memory.h"

namespace longhaul::kernels {
namespace {

// bf16 in hardware.
constexpr int kMinComputeCapability = 80;

std::string UuidText(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    char byte[3];
    std::snprintf(byte, sizeof byte, "%02x", static_cast<unsigned>(static_cast<unsigned char>(uuid.bytes[i])));
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += byte;
  }
  return text;
}

absl::StatusOr<CudaDeviceFacts> ReadFacts(int device) {
  const std::string what = "CUDA device " + std::to_string(device);
  cudaDeviceProp properties{};
  if (const cudaError_t e = cudaGetDeviceProperties(&properties, device); e != cudaSuccess) {
    return DeviceStatus(e, what);
  }
  CudaDeviceFacts facts;
  facts.device = device;
  facts.name = properties.name;
  facts.uuid = UuidText(properties.uuid);
  facts.compute_capability = properties.major * 10 + properties.minor;
  facts.multiprocessors = properties.multiProcessorCount;
  facts.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  facts.l2_bytes = properties.l2CacheSize;
  facts.shared_bytes_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  char bus_id[32] = "";
  cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, device);
  facts.pci_bus_id = bus_id;
  cudaDriverGetVersion(&facts.driver_version);
  cudaRuntimeGetVersion(&facts.runtime_version);
  return facts;
}

absl::StatusOr<int> CountDevices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) return 0;
  if (error != cudaSuccess) return DeviceStatus(error, "the CUDA driver");
  return count;
}

}  // namespace

void CheckCuda(cudaError_t status, const char* op, const char* call) {
  if (status == cudaSuccess) [[likely]]
    return;
  throw CudaError(op, call, static_cast<int>(status), cudaGetErrorString(status));
}

absl::Status CheckComputesBf16(const CudaDeviceFacts& facts) {
  if (facts.compute_capability >= kMinComputeCapability) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, "CUDA_DEVICE_TOO_OLD",
                   "CUDA device " + std::to_string(facts.device) + " (" + facts.name + ") has compute capability " +
                       std::to_string(facts.compute_capability / 10) + "." +
                       std::to_string(facts.compute_capability % 10) + "; bf16 needs 8.0 or newer");
}

absl::Status DeviceStatus(cudaError_t error, const std::string& what) {
  const std::string cause = what + ": " + cudaGetErrorString(error);
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary: {
      int driver = 0, runtime = 0;
      cudaDriverGetVersion(&driver);
      cudaRuntimeGetVersion(&runtime);
      const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
      if (driver == 0) {
        return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA_DEVICE",
                         what + ": there is no NVIDIA driver on this machine; install one, or run on the CPU");
      }
      return MakeError(absl::StatusCode::kUnavailable, "CUDA_DRIVER_TOO_OLD",
                       what + ": the driver supports CUDA " + version(driver) + ", this build needs " +
                           version(runtime) + "; update the driver");
    }
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
      return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA_DEVICE", cause);
    case cudaErrorMemoryAllocation:
      // Not even a context fits.
      return MakeError(absl::StatusCode::kUnavailable, "DEVICE_MEMORY_TAKEN", cause + kWhoHoldsMemory);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      return MakeError(absl::StatusCode::kFailedPrecondition, "NO_CUDA_KERNELS",
                       cause +
                           "; this build has no code for it: build with its architecture in "
                           "LONGHAUL_CUDA_ARCHITECTURES");
    default:
      return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA_DEVICE", cause);
  }
}

CudaStream::CudaStream(Priority priority) {
  int lowest = 0, highest = 0;
  CheckCuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "CudaStream", "cudaDeviceGetStreamPriorityRange");
  CheckCuda(
      cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority == Priority::kHigh ? highest : lowest),
      "CudaStream", "cudaStreamCreateWithPriority");
}

CudaStream::~CudaStream() { cudaStreamDestroy(stream_); }

void CudaStream::Synchronize() const {
  CheckCuda(cudaStreamSynchronize(stream_), "Synchronize", "cudaStreamSynchronize");
}

CudaEvent::CudaEvent(Kind kind) {
  const unsigned flags = kind == Kind::kTiming ? cudaEventDefault : cudaEventDisableTiming;
  CheckCuda(cudaEventCreateWithFlags(&event_, flags), "CudaEvent", "cudaEventCreateWithFlags");
}

CudaEvent::~CudaEvent() { cudaEventDestroy(event_); }

void CudaEvent::Record(const CudaStream& stream) {
  CheckCuda(cudaEventRecord(event_, stream.get()), "CudaEvent", "cudaEventRecord");
}

void CudaEvent::Block(const CudaStream& stream) const {
  CheckCuda(cudaStreamWaitEvent(stream.get(), event_, 0), "CudaEvent", "cudaStreamWaitEvent");
}

bool CudaEvent::Reached() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) return false;
  CheckCuda(status, "CudaEvent", "cudaEventQuery");
  return true;
}

void CudaEvent::Synchronize() const { CheckCuda(cudaEventSynchronize(event_), "CudaEvent", "cudaEventSynchronize"); }

double CudaEvent::MillisecondsSince(const CudaEvent& start) const {
  float milliseconds = 0;
  CheckCuda(cudaEventElapsedTime(&milliseconds, start.event_, event_), "CudaEvent", "cudaEventElapsedTime");
  return static_cast<double>(milliseconds);
}

DeviceBuffer::DeviceBuffer(int64_t bytes) : bytes_(bytes) {
  CheckCuda(cudaMalloc(&data_, static_cast<size_t>(bytes)), "DeviceBuffer", "cudaMalloc");
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

CudaExec::CudaExec(const CudaDeviceFacts& device_facts)
    : facts(device_facts),
      compute(CudaStream::Priority::kNormal),
      copy_in(CudaStream::Priority::kHigh),
      copy_out(CudaStream::Priority::kHigh),
      partial_sums(limits::kCudaPartialSumsBytes) {}

bool BuiltWithCuda() { return true; }

absl::StatusOr<std::vector<CudaDeviceFacts>> CudaDevices() {
  LH_ASSIGN_OR_RETURN(const int count, CountDevices());
  std::vector<CudaDeviceFacts> devices;
  for (int device = 0; device < count; ++device) {
    LH_ASSIGN_OR_RETURN(CudaDeviceFacts facts, ReadFacts(device));
    devices.push_back(std::move(facts));
  }
  return devices;
}

absl::StatusOr<std::unique_ptr<Exec>> Exec::CreateCuda(int device) {
  LH_ASSIGN_OR_RETURN(const int count, CountDevices());
  const std::string what = "CUDA device " + std::to_string(device);
  if (device < 0 || device >= count) {
    return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA_DEVICE",
                     what + " does not exist; the driver shows " + std::to_string(count));
  }
  LH_ASSIGN_OR_RETURN(const CudaDeviceFacts facts, ReadFacts(device));
  LH_RETURN_IF_ERROR(CheckComputesBf16(facts));
  const std::optional<int64_t> before = cuda::BytesInUse(facts.pci_bus_id);
  if (const cudaError_t e = cudaSetDevice(device); e != cudaSuccess) return DeviceStatus(e, what);
  if (const cudaError_t e = cuda::ProbeKernels(); e != cudaSuccess) return DeviceStatus(e, what);
  try {
    std::unique_ptr<Exec> exec(new Exec());
    exec->backend_ = Backend::kCuda;
    exec->ops_ = &cuda::Ops();
    exec->cuda_ = {new CudaExec(facts), [](CudaExec* cuda) { delete cuda; }};
    size_t free_bytes = 0, total_bytes = 0;
    CheckCuda(cudaMemGetInfo(&free_bytes, &total_bytes), "Exec", "cudaMemGetInfo");
    exec->cuda_->others_bytes =
        cuda::BytesOfOthers(static_cast<int64_t>(total_bytes - free_bytes), before, cuda::BytesInUse(facts.pci_bus_id));
    return exec;
  } catch (const CudaError& error) {
    return DeviceStatus(static_cast<cudaError_t>(error.code()), what);
  }
}

}  // namespace longhaul::kernels
