#include "server/core/transitions.h"

#include <string>

#include "base/error.h"

namespace longhaul::server {
namespace {

constexpr char kFrom[kJobStates][kJobStates + 1] = {
    // To: V = VALIDATING, Q = QUEUED, S = STARTING, R = RUNNING, g = PAUSING, P = PAUSED, e = RECOVERING,
    //     F = FINALIZING, c = CANCELLING, + = SUCCEEDED, - = FAILED, x = CANCELLED.
    // VQSRgPeFc+-x
    ".Q........-x",  // VALIDATING
    "..S..P....-x",  // QUEUED
    "...Rg.e.c.-.",  // STARTING
    "....g.eFc.-.",  // RUNNING
    ".Q...PeFc.-.",  // PAUSING
    ".Q........-x",  // PAUSED
    ".Q...P....-x",  // RECOVERING
    "......e.c+-.",  // FINALIZING
    ".........+-x",  // CANCELLING
    "............",  // SUCCEEDED
    "............",  // FAILED
    "............",  // CANCELLED
};

int Index(JobState state) { return static_cast<int>(state) - 1; }

RequestRule Move(JobState to) { return {RequestRule::Kind::kMove, to}; }
RequestRule InForce() { return {RequestRule::Kind::kInForce, JobState::kQueued}; }
RequestRule SetCause() { return {RequestRule::Kind::kSetCause, JobState::kQueued}; }
RequestRule Refused() { return {RequestRule::Kind::kRefused, JobState::kQueued}; }

}  // namespace

bool TransitionLegal(JobState from, JobState to) {
  const int row = Index(from);
  const int column = Index(to);
  if (row < 0 || row >= kJobStates || column < 0 || column >= kJobStates) return false;
  return kFrom[row][column] != '.';
}

absl::Status CheckTransition(JobState from, JobState to) {
  if (TransitionLegal(from, to)) return absl::OkStatus();
  std::string legal;
  for (int i = 1; i <= kJobStates; ++i) {
    const JobState candidate = static_cast<JobState>(i);
    if (TransitionLegal(from, candidate)) legal += (legal.empty() ? "" : ", ") + std::string(Name(candidate));
  }
  return MakeError(absl::StatusCode::kFailedPrecondition, "ILLEGAL_TRANSITION",
                   "a job cannot go from " + std::string(Name(from)) + " to " + Name(to) + "; from " + Name(from) +
                       (legal.empty() ? " it goes nowhere" : " it goes to " + legal));
}

RequestRule CancelRule(JobState state) {
  switch (state) {
    case JobState::kValidating:
    case JobState::kQueued:
    case JobState::kPaused:
    case JobState::kRecovering:
      return Move(JobState::kCancelled);
    case JobState::kStarting:
    case JobState::kRunning:
    case JobState::kPausing:
    case JobState::kFinalizing:
      return Move(JobState::kCancelling);
    case JobState::kCancelling:
      return InForce();
    default:
      return Refused();
  }
}

RequestRule PauseRule(JobState state, PauseCause cause) {
  switch (state) {
    case JobState::kQueued:
      return Move(JobState::kPaused);
    // The attempt is lost already: it recovers into PAUSED, its checkpoint verified on the way back.
    case JobState::kRecovering:
      return Move(JobState::kPaused);
    case JobState::kStarting:
    case JobState::kRunning:
      return Move(JobState::kPausing);
    case JobState::kPausing:
      return cause == PauseCause::kUser ? InForce() : SetCause();
    case JobState::kPaused:
      return InForce();
    default:
      return Refused();  // VALIDATING, FINALIZING, CANCELLING, terminal
  }
}

RequestRule ResumeRule(JobState state, PauseCause cause) {
  switch (state) {
    case JobState::kPaused:
      return Move(JobState::kQueued);
    case JobState::kPausing:
      return cause == PauseCause::kUser ? SetCause() : InForce();
    // On its way to be paused, or to wait again by itself.
    case JobState::kRecovering:
      if (cause == PauseCause::kNone) return Refused();
      return cause == PauseCause::kUser ? SetCause() : InForce();
    default:
      return Refused();
  }
}

absl::Status RefusedRequest(const char* action, JobState state) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "ILLEGAL_TRANSITION",
                   std::string("cannot ") + action + " a job that is " + Name(state));
}

absl::Status DeletedSince(const std::string& request_id, const std::string& job_id) {
  return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND",
                   "request_id \"" + request_id + "\" made job " + job_id + ", which was deleted");
}

bool IsRetryable(Reason failure) {
  switch (failure) {
    case Reason::kWorkerLost:
    case Reason::kTrainerCrashed:
    case Reason::kDeviceFault:
    case Reason::kDiskFull:
    case Reason::kInternal:
    case Reason::kPlanMismatch:
    case Reason::kNone:
      return true;
    default:
      return false;
  }
}

bool UserCanFix(Reason failure) {
  switch (failure) {
    case Reason::kInvalidDataset:
    case Reason::kInvalidModel:
    case Reason::kNonFiniteLoss:
    case Reason::kDeadlineExceeded:
    case Reason::kExceedsEveryDevice:
    case Reason::kDiskFull:
    case Reason::kResumeNotIdentical:
    case Reason::kInvalidField:
      return true;
    default:
      return false;
  }
}

}  // namespace longhaul::server
