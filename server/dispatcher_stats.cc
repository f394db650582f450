#include "server/dispatcher_stats.h"

namespace longhaul::server {

void Histogram::Add(double value) {
  size_t bucket = 0;
  while (bucket < kBounds.size() && value > kBounds[bucket]) ++bucket;
  ++counts[bucket];
  ++count;
  sum += value;
}

}  // namespace longhaul::server
