// How much of a device's memory is ours. The driver's count is of all programs together; what was there before our
// context is the others'.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace longhaul::kernels::cuda {

// Memory in use on the device, by the driver's management library (NVML), which needs no context; nullopt where it is
// not installed or does not say. With a constant of its own, so that two answers' difference is what counts.
std::optional<int64_t> BytesInUse(const std::string& pci_bus_id);

// A context of ours with its Exec and nothing loaded yet, where NVML does not say; and what is too little to be another
// program's.
inline constexpr int64_t kFreshContextBytes = int64_t{480} << 20;
inline constexpr int64_t kIgnoredBytes = int64_t{128} << 20;

// What other programs hold, when our first context has just been made: `used_bytes` is the runtime's count, `before`
// and `after` BytesInUse around the making of the context. Where those are not known, a context is taken to be
// kFreshContextBytes, and
// less than kIgnoredBytes beyond it is nobody's.
int64_t BytesOfOthers(int64_t used_bytes, std::optional<int64_t> before, std::optional<int64_t> after);

}  // namespace longhaul::kernels::cuda
