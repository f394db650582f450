// Parts of a micro-batch that are replayed as one piece of work: those whose sizes came before. Not thread-safe.
// Tests: tests/worker/train/graph_cache_test.cc.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "absl/functional/function_ref.h"
#include "kernels/cuda/cuda_engine.h"

namespace longhaul::train {

class GraphCache {
 public:
  // All that decides what a part queues.
  struct Key {
    int part = 0;
    int64_t rows = 0;
    int64_t form = 0;  // CudaEngine::batch_form
    auto operator<=>(const Key&) const = default;
  };
  using Body = absl::FunctionRef<bool()>;
  // CudaEngine::Capture.
  using Capture = std::function<kernels::CudaCapture(const std::function<void()>& body, int64_t most_nodes)>;
  struct Limits {
    int64_t graphs = 0;
    int64_t nodes = 0;       // of all graphs together
    int64_t stale_uses = 0;  // a graph may be dropped for another when so many parts came since it was used
  };
  struct Counts {
    int64_t run = 0;  // as they are
    int64_t captured = 0;
    int64_t replayed = 0;  // of what was captured before
    int64_t dropped = 0;   // captured ones, for others
  };

  GraphCache(const Limits& limits, Capture capture);

  // Does what `body` queues. The first time it is run as it is, to its end: kernels are loaded and chosen then, which
  // no capture survives, and many sizes of real data come once. The second time it is captured, where there is room or
  // would be without stale graphs: as many of those go as that takes, and their sizes are new ones again. Else it is
  // run as it is: graphs that take each other's place all the time would cost more than they save. How large it is, its
  // first capture tells; what is too large is not captured again before there is room for it. False where body said so.
  bool Run(const Key& key, Body body);

  // For what is captured from now on.
  void LimitNodes(int64_t most) { limits_.nodes = most; }
  void LimitStaleUses(int64_t uses) { limits_.stale_uses = uses; }
  int64_t nodes() const { return nodes_; }
  const Counts& counts() const { return counts_; }

 private:
  struct Entry {
    std::unique_ptr<kernels::CudaGraph> graph;  // null: seen, not captured
    int64_t last_use = 0;
    int64_t nodes = 0;  // 0: never captured
  };
  enum class Counting { kAll, kWithoutStale };
  bool IsStale(const Entry& entry) const;
  // Nodes that one more graph may have beside those that are counted.
  int64_t Room(Counting counting) const;
  // REQUIRES: there is a graph.
  void DropOldest();

  Limits limits_;
  const Capture capture_;
  std::map<Key, Entry> entries_;  // those without a graph are bounded by the sizes that a plan has
  Counts counts_;
  int64_t nodes_ = 0;  // of all graphs
  int64_t uses_ = 0;
};

}  // namespace longhaul::train
