#include "kernels/arena.h"

#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/host_mapping.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kRegionAlignBytes = 64;

}  // namespace

std::unique_ptr<Arena> Arena::Carve(Memory memory, int64_t bytes, std::vector<ArenaRegion> regions) {
  LH_CHECK(bytes >= 0, std::to_string(bytes));
  std::unique_ptr<Arena> arena(new Arena());
  arena->memory_ = std::move(memory);
  arena->bytes_ = bytes;
  for (ArenaRegion& region : regions) {
    LH_CHECK(region.offset_bytes >= 0 && region.offset_bytes % kRegionAlignBytes == 0, region.name);
    LH_CHECK(region.bytes >= 0 && region.bytes <= bytes - region.offset_bytes, region.name);
    const std::string name = region.name;
    LH_CHECK(arena->regions_.emplace(name, std::move(region)).second, "two regions are named " + name);
  }
  return arena;
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::CreateHost(int64_t bytes, std::vector<ArenaRegion> regions) {
  LH_CHECK(bytes >= 0, std::to_string(bytes));
  if (bytes == 0) return Carve({}, 0, std::move(regions));
  LH_ASSIGN_OR_RETURN(HostMapping mapping, HostMapping::Create(bytes));
  const auto held = std::make_shared<HostMapping>(std::move(mapping));
  return Carve({held->data(), [held, bytes] { return held->ResidentBytes(bytes); }, {}}, bytes, std::move(regions));
}

Arena::~Arena() {
  if (memory_.release) memory_.release();
}

void* Arena::Get(const std::string& region) const {
  const auto found = regions_.find(region);
  LH_CHECK(found != regions_.end(), "the plan names no region " + region);
  return memory_.base + found->second.offset_bytes;
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

int64_t Arena::high_water_bytes() const { return memory_.high_water_bytes ? memory_.high_water_bytes() : 0; }

}  // namespace longhaul::kernels
