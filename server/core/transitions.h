// The twelve states as one table, and what users' requests and failures mean in each of them. Pure.
// Source: API.md section 2. Tests: tests/server/core/transitions_test.cc (every one of the 144 pairs).
#pragma once

#include "absl/status/status.h"
#include "server/core/job.h"

namespace longhaul::server {

bool TransitionLegal(JobState from, JobState to);
// FAILED_PRECONDITION ILLEGAL_TRANSITION names both states and the states that `from` may go to.
absl::Status CheckTransition(JobState from, JobState to);

// What a request does to a job in a state.
struct RequestRule {
  enum class Kind {
    kMove,      // goes to `to`
    kInForce,   // already so: OK, nothing changes
    kSetCause,  // stays PAUSING or RECOVERING, only the pause's cause changes
    kRefused,   // FAILED_PRECONDITION ILLEGAL_TRANSITION
  } kind = Kind::kRefused;
  JobState to = JobState::kQueued;  // kMove only
};
RequestRule CancelRule(JobState state);
RequestRule PauseRule(JobState state, PauseCause cause);
RequestRule ResumeRule(JobState state, PauseCause cause);
// The error of a kRefused: `action` is "cancel", "pause", "resume".
absl::Status RefusedRequest(const char* action, JobState state);
// NOT_FOUND JOB_NOT_FOUND, of a Create that is sent again.
absl::Status DeletedSince(const std::string& request_id, const std::string& job_id);

// Whether another attempt may end better: a lost worker, a crash, a faulty device (ECC), a full disk, and whatever
// nobody could name. INVALID_DATASET, INVALID_MODEL, NON_FINITE_LOSS and the two OOMs (our bugs, which the same plan
// repeats) never do.
bool IsRetryable(Reason failure);
bool UserCanFix(Reason failure);

}  // namespace longhaul::server
