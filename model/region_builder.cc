#include "model/region_builder.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace longhaul {

void RegionBuilder::Add(const std::string& name, int64_t bytes, uint32_t live) {
  if (bytes > 0) regions_.push_back({name, 0, RoundUp(bytes, align_bytes_), live, space_});
}

std::vector<PlanRegion> RegionBuilder::Pack(int64_t* arena_bytes) const {
  std::vector<size_t> order(regions_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [this](size_t a, size_t b) { return regions_[a].bytes > regions_[b].bytes; });
  std::vector<PlanRegion> best = Place(order, arena_bytes);
  std::stable_sort(order.begin(), order.end(), [this](size_t a, size_t b) {
    return std::popcount(regions_[a].live) > std::popcount(regions_[b].live);
  });
  int64_t bytes = 0;
  std::vector<PlanRegion> other = Place(order, &bytes);
  if (bytes >= *arena_bytes) return best;
  *arena_bytes = bytes;
  return other;
}

std::vector<PlanRegion> RegionBuilder::Place(const std::vector<size_t>& order, int64_t* arena_bytes) const {
  std::vector<PlanRegion> regions = regions_;
  std::vector<size_t> placed;  // by offset
  *arena_bytes = 0;
  for (size_t index : order) {
    PlanRegion& region = regions[index];
    int64_t offset = 0;
    for (size_t other : placed) {
      const PlanRegion& o = regions[other];
      if ((o.live & region.live) == 0 || o.offset_bytes + o.bytes <= offset) continue;
      if (o.offset_bytes >= offset + region.bytes) break;
      offset = o.offset_bytes + o.bytes;
    }
    region.offset_bytes = offset;
    *arena_bytes = std::max(*arena_bytes, offset + region.bytes);
    const auto later = [&regions](size_t a, size_t b) { return regions[a].offset_bytes < regions[b].offset_bytes; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), index, later), index);
  }
  return regions;
}

}  // namespace longhaul
