#include "tests/fuzz/allocation_meter.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace longhaul {
namespace {

std::atomic<int64_t> live_bytes{0};
std::atomic<int64_t> peak_bytes{0};

void* Allocate(size_t size) {
  void* p = std::malloc(size == 0 ? 1 : size);
  if (p == nullptr) throw std::bad_alloc();
  const auto usable = static_cast<int64_t>(malloc_usable_size(p));
  const int64_t live = live_bytes.fetch_add(usable) + usable;
  int64_t peak = peak_bytes.load();
  while (live > peak && !peak_bytes.compare_exchange_weak(peak, live)) {
  }
  return p;
}

void Release(void* p) {
  if (p == nullptr) return;
  live_bytes -= static_cast<int64_t>(malloc_usable_size(p));
  std::free(p);
}

}  // namespace

int64_t AllocatedBytes() { return live_bytes.load(); }
int64_t AllocatedBytesPeak() { return peak_bytes.load(); }
void ResetAllocationPeak() { peak_bytes.store(live_bytes.load()); }

}  // namespace longhaul

void* operator new(size_t size) { return longhaul::Allocate(size); }
void* operator new[](size_t size) { return longhaul::Allocate(size); }
// std::stable_sort asks without exceptions; under AddressSanitizer its own would answer.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  try {
    return longhaul::Allocate(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* p, const std::nothrow_t&) noexcept { longhaul::Release(p); }
void operator delete(void* p) noexcept { longhaul::Release(p); }
void operator delete[](void* p) noexcept { longhaul::Release(p); }
void operator delete(void* p, size_t) noexcept { longhaul::Release(p); }
void operator delete[](void* p, size_t) noexcept { longhaul::Release(p); }
