#include "model/plan_parts.h"

#include <algorithm>
#include <initializer_list>

namespace longhaul {

void FillArenaParts(PlanSpace space, int64_t arena_bytes, MemoryPlan* plan) {
  plan->parts.clear();
  int64_t left = arena_bytes;
  const auto take = [&](const char* name, std::initializer_list<const char*> prefixes) {
    int64_t bytes = 0;
    for (const PlanRegion& region : plan->regions) {
      if (region.space != space) continue;
      for (const char* prefix : prefixes) {
        if (region.name.rfind(prefix, 0) == 0) bytes += region.bytes;
      }
    }
    const int64_t part = std::min(left, bytes);
    left -= part;
    if (part > 0) plan->parts.push_back({name, part});
  };
  take("weights", {"weights.", "weight.buffer", "rope"});
  take("adapters", {"adapter.master", "adapter.grad"});
  take("optimizer", {"adapter.m1", "adapter.m2"});
  take("checkpoints", {"stream"});
  take("activations", {"kept", "slot.", "kv_cache"});
  take("loss_tile", {"loss."});
  if (left > 0) plan->parts.push_back({"workspace", left});
}

}  // namespace longhaul
