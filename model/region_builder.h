// Packs named regions into one block of memory: regions that are never live together may overlay.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/memory_plan.h"

namespace longhaul {

inline int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Collects regions and packs them, one after the other, each at the lowest offset where it overlays nothing that lives
// with it. No order is best for every model, so two are tried: the largest first, and the longest-lived first.
class RegionBuilder {
 public:
  // Offsets and sizes become multiples of `align_bytes`.
  RegionBuilder(PlanSpace space, int64_t align_bytes) : space_(space), align_bytes_(align_bytes) {}

  // Nothing where bytes is 0. `live`: PlanPhase bits.
  void Add(const std::string& name, int64_t bytes, uint32_t live);
  std::vector<PlanRegion> Pack(int64_t* arena_bytes) const;

 private:
  std::vector<PlanRegion> Place(const std::vector<size_t>& order, int64_t* arena_bytes) const;

  PlanSpace space_;
  int64_t align_bytes_;
  std::vector<PlanRegion> regions_;
};

}  // namespace longhaul
