// What a plan's bytes are for, in words for people: the same parts for every kind of device.
#pragma once

#include <cstdint>

#include "model/memory_plan.h"

namespace longhaul {

// Sets plan->parts to those of the arena of `space`: what persists counts in full, what overlays is shared out in the
// order of the list; together they are `arena_bytes`. REQUIRES: plan->regions are laid out.
void FillArenaParts(PlanSpace space, int64_t arena_bytes, MemoryPlan* plan);

// The tokenised dataset in RAM: i32 id, mask byte, and what short examples add each.
inline int64_t DatasetHostBytes(const TrainShape& train) { return train.dataset_tokens * 8; }

}  // namespace longhaul
