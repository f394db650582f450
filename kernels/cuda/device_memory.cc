#include "kernels/cuda/device_memory.h"

#include <dlfcn.h>

#include <algorithm>

namespace longhaul::kernels::cuda {
namespace {

// The few of NVML's declarations that are used: its header comes with no package of ours, its functions have had these
// types since it exists.
struct NvmlMemory {
  unsigned long long total, free, used;  // NOLINT: NVML's types
};
using NvmlDevice = void*;
constexpr int kNvmlSuccess = 0;

class Nvml {
 public:
  Nvml() {
    void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    const auto init = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
    find_ = reinterpret_cast<decltype(find_)>(dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
    memory_ = reinterpret_cast<decltype(memory_)>(dlsym(library, "nvmlDeviceGetMemoryInfo"));
    works_ = init != nullptr && find_ != nullptr && memory_ != nullptr && init() == kNvmlSuccess;
  }
  std::optional<int64_t> Used(const std::string& pci_bus_id) const {
    NvmlDevice device = nullptr;
    NvmlMemory memory{};
    if (!works_ || find_(pci_bus_id.c_str(), &device) != kNvmlSuccess || memory_(device, &memory) != kNvmlSuccess) {
      return std::nullopt;
    }
    return static_cast<int64_t>(memory.used);
  }

 private:
  int (*find_)(const char*, NvmlDevice*) = nullptr;
  int (*memory_)(NvmlDevice, NvmlMemory*) = nullptr;
  bool works_ = false;
};

}  // namespace

std::optional<int64_t> BytesInUse(const std::string& pci_bus_id) {
  static const Nvml& nvml = *new Nvml;  // for good, as the driver's own libraries
  return nvml.Used(pci_bus_id);
}

int64_t BytesOfOthers(int64_t used_bytes, std::optional<int64_t> before, std::optional<int64_t> after) {
  if (before.has_value() && after.has_value()) return std::max<int64_t>(0, used_bytes - (*after - *before));
  const int64_t others = used_bytes - kFreshContextBytes;
  return others < kIgnoredBytes ? 0 : others;
}

}  // namespace longhaul::kernels::cuda
