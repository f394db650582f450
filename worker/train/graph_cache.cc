#include "worker/train/graph_cache.h"

#include <utility>

namespace longhaul::train {

GraphCache::GraphCache(const Limits& limits, Capture capture) : limits_(limits), capture_(std::move(capture)) {}

bool GraphCache::DropStale() {
  auto oldest = entries_.end();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.graph == nullptr) continue;
    if (oldest == entries_.end() || entry->second.last_use < oldest->second.last_use) oldest = entry;
  }
  if (oldest == entries_.end() || uses_ - oldest->second.last_use < limits_.stale_uses) return false;
  nodes_ -= oldest->second.graph->nodes();
  --graphs_;
  ++counts_.dropped;
  entries_.erase(oldest);
  return true;
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
  while (!is_new) {
    const int64_t room = graphs_ < limits_.graphs ? limits_.nodes - nodes_ : 0;
    if (room > entry.too_few_nodes) {
      bool complete = true;
      entry.graph = capture_([&] { complete = body(); }, room);
      if (!complete) {
        entry.graph = nullptr;
        return false;
      }
      if (entry.graph != nullptr) {
        ++graphs_;
        nodes_ += entry.graph->nodes();
        ++counts_.captured;
        entry.graph->Launch();
        return true;
      }
      entry.too_few_nodes = room;
    }
    if (!DropStale()) break;
  }
  ++counts_.run;
  const bool complete = body();
  // What was not queued was not loaded either: the next run is the first one.
  if (is_new && !complete) entries_.erase(found);
  return complete;
}

}  // namespace longhaul::train
