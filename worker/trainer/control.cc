#include "worker/trainer/control.h"

#include "base/limits.h"
#include "base/units.h"

namespace longhaul::trainer {
namespace {

// An agent that comes back extends the lease; so long may its trainer go on waiting after that.
constexpr int64_t kHoldPollMs = 200;

}  // namespace

LeaseState EvaluateLease(const std::optional<v1::LeaseFile>& lease, int64_t lease_epoch, int64_t now_boot_nanos) {
  if (!lease.has_value() || lease->lease_epoch() != lease_epoch) return LeaseState::kLost;
  const int64_t over_nanos = now_boot_nanos - lease->deadline_boot_nanos();
  if (over_nanos < 0) return LeaseState::kValid;
  return over_nanos < limits::kOrphanMs * kNanosPerMs ? LeaseState::kExpired : LeaseState::kOrphaned;
}

Control::Control(const attempt::AttemptDir& dir, int64_t lease_epoch, const Clock* clock, SignalInbox* signals)
    : dir_(dir), lease_epoch_(lease_epoch), clock_(clock), signals_(signals) {
  last_.set_lease_epoch(lease_epoch);
  last_.set_deadline_boot_nanos(clock->BootNanos());
}

LeaseState Control::Lease() {
  if (lease_epoch_ <= 0) return LeaseState::kValid;
  const auto lease = dir_.ReadLease();
  if (absl::IsNotFound(lease.status())) return LeaseState::kLost;
  // A disk that has a bad moment says nothing about the lease: the one that was read last expires by itself.
  if (lease.ok()) {
    const int64_t deadline_before = last_.deadline_boot_nanos();
    last_ = *lease;
    // Of a boot that is over: how far its deadline is from now says nothing.
    const std::string& boot = attempt::BootId();
    if (!lease->boot_id().empty() && !boot.empty() && lease->boot_id() != boot)
      last_.set_deadline_boot_nanos(deadline_before);
  }
  return EvaluateLease(last_, lease_epoch_, clock_->BootNanos());
}

Decision Control::AtStepBoundary() {
  signals_->Poll();
  if (signals_->cancel_asked()) return Decision::kCancel;
  const LeaseState lease = Lease();
  if (lease == LeaseState::kLost || lease == LeaseState::kOrphaned) return Decision::kLeaseLost;
  if (signals_->stop_asked()) return Decision::kStop;
  return lease == LeaseState::kExpired ? Decision::kHold : Decision::kContinue;
}

bool Control::CancelAsked() {
  signals_->Poll();
  return signals_->cancel_asked();
}

Decision Control::Hold() {
  while (true) {
    const Decision decision = AtStepBoundary();
    if (decision != Decision::kHold) return decision;
    signals_->Wait(kHoldPollMs);
  }
}

}  // namespace longhaul::trainer
