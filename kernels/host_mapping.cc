#include "kernels/host_mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/error.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

absl::StatusOr<HostMapping> HostMapping::Create(int64_t bytes) {
  LH_CHECK(bytes > 0, std::to_string(bytes));
  // One huge page more than asked for, so that the start can be moved up to a huge-page boundary.
  const int64_t map_bytes = RoundUp(bytes, kHugePageBytes) + kHugePageBytes;
  void* map = mmap(nullptr, static_cast<size_t>(map_bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) {
    return MakeError(absl::StatusCode::kResourceExhausted, "HOST_OOM",
                     "cannot map " + std::to_string(bytes) + " bytes of host memory: " + std::strerror(errno));
  }
  uint8_t* const start = static_cast<uint8_t*>(map);
  const auto address = reinterpret_cast<uintptr_t>(start);
  const int64_t head = static_cast<int64_t>((kHugePageBytes - address % kHugePageBytes) % kHugePageBytes);
  HostMapping mapping;
  mapping.data_ = start + head;
  mapping.bytes_ = RoundUp(bytes, sysconf(_SC_PAGESIZE));
  if (head > 0) munmap(start, static_cast<size_t>(head));
  if (const int64_t tail = map_bytes - head - mapping.bytes_; tail > 0) {
    munmap(mapping.data_ + mapping.bytes_, static_cast<size_t>(tail));
  }
  // Advice only: a kernel without transparent huge pages works with small ones.
  madvise(mapping.data_, static_cast<size_t>(mapping.bytes_), MADV_HUGEPAGE);
  return mapping;
}

HostMapping::~HostMapping() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

HostMapping::HostMapping(HostMapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

HostMapping& HostMapping::operator=(HostMapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

int64_t HostMapping::ResidentBytes(int64_t bytes) const {
  if (data_ == nullptr) return 0;
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  const int64_t pages = bytes_ / page_bytes;
  std::vector<unsigned char> resident(static_cast<size_t>(pages));
  LH_CHECK(mincore(data_, static_cast<size_t>(bytes_), resident.data()) == 0, std::strerror(errno));
  int64_t sum = 0;
  for (int64_t page = 0; page < pages; ++page) {
    if ((resident[static_cast<size_t>(page)] & 1) == 0) continue;
    sum += std::max<int64_t>(0, std::min(page_bytes, bytes - page * page_bytes));
  }
  return sum;
}

}  // namespace longhaul::kernels
