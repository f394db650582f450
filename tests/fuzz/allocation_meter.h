// Counts what operator new hands out, in a test program that links allocation_meter.cc.
#pragma once

#include <cstdint>

namespace longhaul {

// Bytes live now, and the most since the last ResetAllocationPeak.
int64_t AllocatedBytes();
int64_t AllocatedBytesPeak();
void ResetAllocationPeak();

}  // namespace longhaul
