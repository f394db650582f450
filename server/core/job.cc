#include "server/core/job.h"

namespace longhaul::server {

const char* Name(JobState state) {
  switch (state) {
    case JobState::kValidating:
      return "VALIDATING";
    case JobState::kQueued:
      return "QUEUED";
    case JobState::kStarting:
      return "STARTING";
    case JobState::kRunning:
      return "RUNNING";
    case JobState::kPausing:
      return "PAUSING";
    case JobState::kPaused:
      return "PAUSED";
    case JobState::kRecovering:
      return "RECOVERING";
    case JobState::kFinalizing:
      return "FINALIZING";
    case JobState::kCancelling:
      return "CANCELLING";
    case JobState::kSucceeded:
      return "SUCCEEDED";
    case JobState::kFailed:
      return "FAILED";
    case JobState::kCancelled:
      return "CANCELLED";
  }
  return "UNKNOWN";
}

const char* Name(Reason reason) {
  switch (reason) {
    case Reason::kNone:
      return "NONE";
    case Reason::kWaitingForValidation:
      return "WAITING_FOR_VALIDATION";
    case Reason::kWaitingForVram:
      return "WAITING_FOR_VRAM";
    case Reason::kWaitingForHostRam:
      return "WAITING_FOR_HOST_RAM";
    case Reason::kWaitingForDisk:
      return "WAITING_FOR_DISK";
    case Reason::kWaitingForQuota:
      return "WAITING_FOR_QUOTA";
    case Reason::kBehindHigherPriority:
      return "BEHIND_HIGHER_PRIORITY";
    case Reason::kExceedsEveryDevice:
      return "EXCEEDS_EVERY_DEVICE";
    case Reason::kBackoff:
      return "BACKOFF";
    case Reason::kNoWorker:
      return "NO_WORKER";
    case Reason::kModelNotOnAnyWorker:
      return "MODEL_NOT_ON_ANY_WORKER";
    case Reason::kPausedByUser:
      return "PAUSED_BY_USER";
    case Reason::kWaitingForCpuThreads:
      return "WAITING_FOR_CPU_THREADS";
    case Reason::kWaitingForAttempts:
      return "WAITING_FOR_ATTEMPTS";
    case Reason::kInvalidDataset:
      return "INVALID_DATASET";
    case Reason::kInvalidModel:
      return "INVALID_MODEL";
    case Reason::kDeviceOom:
      return "DEVICE_OOM";
    case Reason::kHostOom:
      return "HOST_OOM";
    case Reason::kNonFiniteLoss:
      return "NON_FINITE_LOSS";
    case Reason::kWorkerLost:
      return "WORKER_LOST";
    case Reason::kRetryLimitExceeded:
      return "RETRY_LIMIT_EXCEEDED";
    case Reason::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case Reason::kDiskFull:
      return "DISK_FULL";
    case Reason::kInternal:
      return "INTERNAL";
    case Reason::kTrainerCrashed:
      return "TRAINER_CRASHED";
    case Reason::kResumeNotIdentical:
      return "RESUME_NOT_IDENTICAL";
    case Reason::kPlanMismatch:
      return "PLAN_MISMATCH";
    case Reason::kDeviceFault:
      return "DEVICE_FAULT";
    case Reason::kInvalidCheckpoint:
      return "INVALID_CHECKPOINT";
    case Reason::kInvalidField:
      return "INVALID_FIELD";
  }
  return "UNKNOWN";
}

const char* Name(AttemptOutcome outcome) {
  switch (outcome) {
    case AttemptOutcome::kNone:
      return "NONE";
    case AttemptOutcome::kSucceeded:
      return "SUCCEEDED";
    case AttemptOutcome::kFailed:
      return "FAILED";
    case AttemptOutcome::kStopped:
      return "STOPPED";
    case AttemptOutcome::kLost:
      return "LOST";
  }
  return "UNKNOWN";
}

const char* Name(PlanPoint point) {
  switch (point) {
    case PlanPoint::kNone:
      return "none";
    case PlanPoint::kMinimum:
      return "minimum";
    case PlanPoint::kBalanced:
      return "balanced";
    case PlanPoint::kWhole:
      return "whole";
  }
  return "unknown";
}

bool IsTerminal(JobState state) {
  return state == JobState::kSucceeded || state == JobState::kFailed || state == JobState::kCancelled;
}

bool IsActive(JobState state) {
  switch (state) {
    case JobState::kValidating:
    case JobState::kStarting:
    case JobState::kRunning:
    case JobState::kPausing:
    case JobState::kFinalizing:
    case JobState::kCancelling:
      return true;
    default:
      return false;
  }
}

}  // namespace longhaul::server
