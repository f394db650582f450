// What every part of a simulated run shares: time, chance, the scale of its times, and where findings go.
#pragma once

#include <deque>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/dispatcher.h"
#include "tests/simulation/draws.h"
#include "tests/simulation/timeline.h"

namespace longhaul::simulation {

struct Context {
  explicit Context(uint64_t seed) : draws(seed) {
    // A minute's lease, a half hour's or half a day's: a run is an hour or weeks.
    constexpr int64_t kScales[] = {1, 30, 720};
    const int64_t scale = kScales[draws.Below(3)];
    options.lease_ms = 60'000 * scale;
    options.worker_lost_ms = 90'000 * scale;
    options.sync_hold_ms = 10'000 * scale;
  }

  void Note(std::string line) {
    if (keep_notes < notes.size()) notes.pop_front();
    notes.push_back("+" + std::to_string((timeline.now() - 1'000'000'000) / kMillis) + " ms  " + std::move(line));
  }
  void Violation(std::string what) {
    Note("VIOLATION: " + what);
    violations.push_back(std::move(what));
  }
  int64_t lease_nanos() const { return options.lease_ms * kMillis; }
  int64_t hold_nanos() const { return options.sync_hold_ms * kMillis; }

  Timeline timeline;
  Draws draws;
  server::Dispatcher::Options options{};
  bool peace = false;  // nothing fails any more
  size_t keep_notes = 60;
  std::deque<std::string> notes;
  std::vector<std::string> violations;
  // Jobs whose deletion was taken, perhaps in the batch of what is told of them now: nothing of them need be there.
  std::set<std::string> deletions;
};

// A message on its way: now and then lost, seldom very late, in peace neither. `deliver` runs when it arrives.
inline void Send(Context* context, std::function<void()> deliver) {
  Draws& draws = context->draws;
  int64_t latency = draws.Between(1, 50) * kMillis;
  if (!context->peace) {
    const uint64_t fate = draws.Below(100);
    if (fate < 3) return;
    if (fate == 3) latency = draws.Between(0, 3 * context->options.worker_lost_ms) * kMillis;
  }
  context->timeline.In(latency, std::move(deliver));
}

}  // namespace longhaul::simulation
