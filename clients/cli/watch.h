// Watching a job to its end, over restarts of the scheduler.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "clients/cli/client.h"

namespace longhaul::cli {

bool IsTerminal(v1::JobState state);

// Told of everything in order, on the calling thread. Events have each sequence once, without a gap.
class WatchSink {
 public:
  virtual ~WatchSink() = default;
  virtual void OnSnapshot(const v1::Snapshot&) {}
  virtual void OnEvent(const v1::JobEvent&) {}
  virtual void OnProgress(const v1::TrainingProgress&) {}
  virtual void OnDisconnected(const absl::Status&) {}  // once an outage
  virtual void OnReconnected() {}
  virtual void OnGap() {}  // events were compacted before the cursor; the watch goes on from now
};

struct WatchOptions {
  std::string id;
  std::optional<int64_t> after_sequence;
  std::optional<int64_t> timeout_ms;  // for all of it
  bool known_reachable = false;       // a call has just succeeded: the first connection may be retried too
  int64_t outage_ms = 3'600'000;      // how long a scheduler may be away before the watch gives up
};

// Returns the job in its terminal state. The first connection must succeed; later ones are retried with backoff from
// the last event seen. Errors: NOT_FOUND (also deleted meanwhile), DEADLINE_EXCEEDED WAIT_TIMEOUT, CANCELLED
// INTERRUPTED, UNAVAILABLE.
absl::StatusOr<v1::Job> WatchToEnd(Client& client, const WatchOptions& options, WatchSink& sink);

// The exit code that a terminal state stands for.
ExitCode ExitCodeForState(v1::JobState state);

}  // namespace longhaul::cli
