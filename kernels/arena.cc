#include "kernels/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/error.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;
constexpr int64_t kRegionAlignBytes = 64;

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

absl::StatusOr<std::unique_ptr<Arena>> Arena::CreateHost(int64_t bytes, std::vector<ArenaRegion> regions) {
  LH_CHECK(bytes >= 0, std::to_string(bytes));
  std::unique_ptr<Arena> arena(new Arena());
  arena->bytes_ = bytes;
  for (ArenaRegion& region : regions) {
    LH_CHECK(region.offset_bytes >= 0 && region.offset_bytes % kRegionAlignBytes == 0, region.name);
    LH_CHECK(region.bytes >= 0 && region.bytes <= bytes - region.offset_bytes, region.name);
    const std::string name = region.name;
    LH_CHECK(arena->regions_.emplace(name, std::move(region)).second, "two regions are named " + name);
  }
  if (bytes == 0) return arena;

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
  const int64_t kept = RoundUp(bytes, sysconf(_SC_PAGESIZE));
  arena->base_ = start + head;
  arena->map_bytes_ = kept;
  if (head > 0) munmap(start, static_cast<size_t>(head));
  if (const int64_t tail = map_bytes - head - kept; tail > 0) munmap(arena->base_ + kept, static_cast<size_t>(tail));
  // Advice only: a kernel without transparent huge pages works with small ones.
  madvise(arena->base_, static_cast<size_t>(kept), MADV_HUGEPAGE);
  return arena;
}

Arena::~Arena() {
  if (base_ != nullptr) munmap(base_, static_cast<size_t>(map_bytes_));
}

void* Arena::Get(const std::string& region) const {
  const auto found = regions_.find(region);
  LH_CHECK(found != regions_.end(), "the plan names no region " + region);
  return base_ + found->second.offset_bytes;
}

int64_t Arena::RegionBytes(const std::string& region) const {
  const auto found = regions_.find(region);
  LH_CHECK(found != regions_.end(), "the plan names no region " + region);
  return found->second.bytes;
}

Tensor Arena::Matrix(const std::string& region, DType dtype, int64_t rows, int64_t cols, int64_t offset_bytes) const {
  LH_CHECK(rows >= 0 && cols >= 0 && offset_bytes >= 0 && offset_bytes % DTypeBytes(dtype) == 0, region);
  const int64_t needed = rows * cols * DTypeBytes(dtype);
  LH_CHECK(needed <= RegionBytes(region) - offset_bytes, region + ": " + std::to_string(needed) + " bytes at " +
                                                             std::to_string(offset_bytes) + " of " +
                                                             std::to_string(RegionBytes(region)));
  return MakeTensor(static_cast<uint8_t*>(Get(region)) + offset_bytes, dtype, rows, cols);
}

bool Arena::Has(const std::string& region) const { return regions_.count(region) != 0; }

int64_t Arena::high_water_bytes() const {
  if (base_ == nullptr) return 0;
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  const int64_t pages = map_bytes_ / page_bytes;
  std::vector<unsigned char> resident(static_cast<size_t>(pages));
  LH_CHECK(mincore(base_, static_cast<size_t>(map_bytes_), resident.data()) == 0, std::strerror(errno));
  int64_t bytes = 0;
  for (int64_t page = 0; page < pages; ++page) {
    if ((resident[static_cast<size_t>(page)] & 1) == 0) continue;
    bytes += std::min(page_bytes, bytes_ - page * page_bytes);
  }
  return bytes;
}

}  // namespace longhaul::kernels
