// What a trainer does next, by its lease and the signals it got. The trainer watches its lease itself: an agent that
// has died cannot.
//
// At a step boundary: an epoch that is not ours ends the attempt; a lease that has run out holds it (with a checkpoint)
// until the lease is extended, for an hour at most. Between layers only a cancel counts.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "base/clock.h"
#include "longhaul/v1/trainer.pb.h"
#include "worker/attempt/attempt_dir.h"
#include "worker/trainer/signals.h"

namespace longhaul::trainer {

enum class LeaseState { kValid, kExpired, kOrphaned, kLost };

// `lease` absent: the file is gone. Orphaned: expired for limits::kOrphanMs.
LeaseState EvaluateLease(const std::optional<v1::LeaseFile>& lease, int64_t lease_epoch, int64_t now_boot_nanos);

enum class Decision {
  kContinue,
  kStop,       // asked to: checkpoint, then the end
  kCancel,     // the end, nothing kept
  kHold,       // checkpoint, then Hold()
  kLeaseLost,  // the end; nothing that is written counts any more
};

// Not thread-safe: the training thread's.
class Control {
 public:
  // Epoch 0: there is no lease to watch, somebody runs the trainer by hand.
  Control(const attempt::AttemptDir& dir, int64_t lease_epoch, const Clock* clock, SignalInbox* signals);

  Decision AtStepBoundary();
  bool CancelAsked();
  // Waits until the lease lives again (kContinue), is lost, or a signal ends it. REQUIRES: AtStepBoundary said kHold.
  Decision Hold();

 private:
  LeaseState Lease();
  attempt::AttemptDir dir_;
  int64_t lease_epoch_;
  const Clock* clock_;
  SignalInbox* signals_;
  v1::LeaseFile last_;  // as it could last be read; at first one that has just run out
};

}  // namespace longhaul::trainer
