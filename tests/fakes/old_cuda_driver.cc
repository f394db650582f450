// libcuda.so.1 of an NVIDIA driver that is too old for us, as far as CUDA's runtime asks it before it gives up: its
// version. All other functions are there and say no.
#include <cstdint>
#include <cstring>

namespace {

constexpr int kSuccess = 0;
constexpr int kUnknown = 999;
constexpr int kVersion = 12000;  // CUDA 12.0

int SayNo() { return kUnknown; }

}  // namespace

extern "C" {

int cuDriverGetVersion(int* version) {
  *version = kVersion;
  return kSuccess;
}

int cuGetProcAddress(const char* name, void** function, int, uint64_t) {
  *function = reinterpret_cast<void*>(&SayNo);
  if (std::strcmp(name, "cuDriverGetVersion") == 0) *function = reinterpret_cast<void*>(&cuDriverGetVersion);
  if (std::strcmp(name, "cuGetProcAddress") == 0) *function = reinterpret_cast<void*>(&cuGetProcAddress);
  return kSuccess;
}

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* found) {
  if (found != nullptr) *found = 0;
  return cuGetProcAddress(name, function, version, flags);
}

}  // extern "C"
