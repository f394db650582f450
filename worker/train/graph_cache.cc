#include "worker/train/graph_cache.h"

#include <algorithm>
#include <utility>

namespace longhaul::train {

GraphCache::GraphCache(const Limits& limits, Capture capture) : limits_(limits), capture_(std::move(capture)) {}

bool GraphCache::IsStale(const Entry& entry) const { return uses_ - entry.last_use >= limits_.stale_uses; }

int64_t GraphCache::Room(Counting counting) const {
  int64_t graphs = 0, nodes = 0;
  for (const auto& [key, entry] : entries_) {
    if (entry.graph == nullptr || (counting == Counting::kWithoutStale && IsStale(entry))) continue;
    ++graphs;
    nodes += entry.nodes;
  }
  return graphs < limits_.graphs ? std::max<int64_t>(0, limits_.nodes - nodes) : 0;
}

void GraphCache::DropOldest() {
  auto oldest = entries_.end();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.graph == nullptr) continue;
    if (oldest == entries_.end() || entry->second.last_use < oldest->second.last_use) oldest = entry;
  }
  nodes_ -= oldest->second.nodes;
  ++counts_.dropped;
  entries_.erase(oldest);
}

bool GraphCache::Run(const Key& key, Body body) {
  const auto [found, is_new] = entries_.try_emplace(key);
  Entry& entry = found->second;
  entry.last_use = ++uses_;
  if (entry.graph != nullptr) {
    ++counts_.replayed;
    entry.graph->Launch();
    return true;
  }
  // Once where its nodes are known, and at most once more where it tells them.
  while (!is_new && Room(Counting::kWithoutStale) >= std::max<int64_t>(1, entry.nodes)) {
    while (Room(Counting::kAll) < entry.nodes) DropOldest();
    bool complete = true;
    kernels::CudaCapture captured = capture_([&] { complete = body(); }, Room(Counting::kAll));
    if (!complete) return false;
    entry.nodes = captured.nodes;
    if (captured.graph == nullptr) continue;
    entry.graph = std::move(captured.graph);
    nodes_ += entry.nodes;
    ++counts_.captured;
    entry.graph->Launch();
    return true;
  }
  ++counts_.run;
  const bool complete = body();
  // What was not queued was not loaded either: the next run is the first one.
  if (is_new && !complete) entries_.erase(found);
  return complete;
}

}  // namespace longhaul::train
