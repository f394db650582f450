// Proof that the enums of server/core and of the protos have the same numbers. Nothing here runs.
#include "server/rpc/enum_numbers.h"

#include "longhaul/v1/fine_tune_service.pb.h"
#include "longhaul/v1/job.pb.h"
#include "longhaul/v1/trainer.pb.h"
#include "longhaul/v1/worker_service.pb.h"
#include "server/core/job.h"
#include "server/dispatcher.h"

namespace longhaul::server {
namespace {

constexpr bool Same(auto domain, auto proto) { return static_cast<int>(domain) == static_cast<int>(proto); }

static_assert(Same(JobState::kValidating, v1::VALIDATING));
static_assert(Same(JobState::kQueued, v1::QUEUED));
static_assert(Same(JobState::kStarting, v1::STARTING));
static_assert(Same(JobState::kRunning, v1::RUNNING));
static_assert(Same(JobState::kPausing, v1::PAUSING));
static_assert(Same(JobState::kPaused, v1::PAUSED));
static_assert(Same(JobState::kRecovering, v1::RECOVERING));
static_assert(Same(JobState::kFinalizing, v1::FINALIZING));
static_assert(Same(JobState::kCancelling, v1::CANCELLING));
static_assert(Same(JobState::kSucceeded, v1::SUCCEEDED));
static_assert(Same(JobState::kFailed, v1::FAILED));
static_assert(Same(JobState::kCancelled, v1::CANCELLED));

static_assert(kJobStates == v1::JobState_MAX);

static_assert(Same(Reason::kNone, v1::REASON_UNSPECIFIED));
static_assert(Same(Reason::kWaitingForValidation, v1::WAITING_FOR_VALIDATION));
static_assert(Same(Reason::kWaitingForVram, v1::WAITING_FOR_VRAM));
static_assert(Same(Reason::kWaitingForHostRam, v1::WAITING_FOR_HOST_RAM));
static_assert(Same(Reason::kWaitingForDisk, v1::WAITING_FOR_DISK));
static_assert(Same(Reason::kWaitingForQuota, v1::WAITING_FOR_QUOTA));
static_assert(Same(Reason::kBehindHigherPriority, v1::BEHIND_HIGHER_PRIORITY));
static_assert(Same(Reason::kExceedsEveryDevice, v1::EXCEEDS_EVERY_DEVICE));
static_assert(Same(Reason::kBackoff, v1::BACKOFF));
static_assert(Same(Reason::kNoWorker, v1::NO_WORKER));
static_assert(Same(Reason::kModelNotOnAnyWorker, v1::MODEL_NOT_ON_ANY_WORKER));
static_assert(Same(Reason::kPausedByUser, v1::PAUSED_BY_USER));
static_assert(Same(Reason::kWaitingForCpuThreads, v1::WAITING_FOR_CPU_THREADS));
static_assert(Same(Reason::kWaitingForAttempts, v1::WAITING_FOR_ATTEMPTS));
static_assert(Same(Reason::kInvalidDataset, v1::INVALID_DATASET));
static_assert(Same(Reason::kInvalidModel, v1::INVALID_MODEL));
static_assert(Same(Reason::kDeviceOom, v1::DEVICE_OOM));
static_assert(Same(Reason::kHostOom, v1::HOST_OOM));
static_assert(Same(Reason::kNonFiniteLoss, v1::NON_FINITE_LOSS));
static_assert(Same(Reason::kWorkerLost, v1::WORKER_LOST));
static_assert(Same(Reason::kRetryLimitExceeded, v1::RETRY_LIMIT_EXCEEDED));
static_assert(Same(Reason::kDeadlineExceeded, v1::DEADLINE_EXCEEDED));
static_assert(Same(Reason::kDiskFull, v1::DISK_FULL));
static_assert(Same(Reason::kInternal, v1::INTERNAL));
static_assert(Same(Reason::kTrainerCrashed, v1::TRAINER_CRASHED));
static_assert(Same(Reason::kResumeNotIdentical, v1::RESUME_NOT_IDENTICAL));
static_assert(Same(Reason::kPlanMismatch, v1::PLAN_MISMATCH));
static_assert(Same(Reason::kDeviceFault, v1::DEVICE_FAULT));
static_assert(Same(Reason::kInvalidCheckpoint, v1::INVALID_CHECKPOINT));
static_assert(Same(Reason::kInvalidField, v1::INVALID_FIELD));

static_assert(Same(Reason::kInvalidField, v1::Reason_MAX));

static_assert(Same(PauseCause::kNone, v1::PAUSE_CAUSE_UNSPECIFIED));
static_assert(Same(PauseCause::kUser, v1::PAUSE_CAUSE_USER));
static_assert(Same(PauseCause::kPreempt, v1::PAUSE_CAUSE_PREEMPT));
static_assert(Same(PauseCause::kDrain, v1::PAUSE_CAUSE_DRAIN));

static_assert(Same(AttemptKind::kNone, v1::ATTEMPT_KIND_UNSPECIFIED));
static_assert(Same(AttemptKind::kValidate, v1::ATTEMPT_KIND_VALIDATE));
static_assert(Same(AttemptKind::kTrain, v1::ATTEMPT_KIND_TRAIN));

static_assert(Same(AttemptOutcome::kNone, v1::ATTEMPT_OUTCOME_UNSPECIFIED));
static_assert(Same(AttemptOutcome::kSucceeded, v1::ATTEMPT_OUTCOME_SUCCEEDED));
static_assert(Same(AttemptOutcome::kFailed, v1::ATTEMPT_OUTCOME_FAILED));
static_assert(Same(AttemptOutcome::kStopped, v1::ATTEMPT_OUTCOME_STOPPED));
static_assert(Same(AttemptOutcome::kLost, v1::ATTEMPT_OUTCOME_LOST));

static_assert(Same(PriorityClass::kLow, v1::PRIORITY_CLASS_LOW));
static_assert(Same(PriorityClass::kNormal, v1::PRIORITY_CLASS_NORMAL));
static_assert(Same(PriorityClass::kHigh, v1::PRIORITY_CLASS_HIGH));

static_assert(Same(DeviceShare::kWhole, v1::DEVICE_SHARE_WHOLE));
static_assert(Same(DeviceShare::kFit, v1::DEVICE_SHARE_FIT));
static_assert(Same(DeviceShare::kBytes, v1::DEVICE_SHARE_BYTES));

static_assert(Same(EventType::kState, v1::JOB_EVENT_TYPE_STATE));
static_assert(Same(EventType::kAttempt, v1::JOB_EVENT_TYPE_ATTEMPT));
static_assert(Same(EventType::kCheckpoint, v1::JOB_EVENT_TYPE_CHECKPOINT));
static_assert(Same(EventType::kWarning, v1::JOB_EVENT_TYPE_WARNING));

static_assert(Same(AttemptPhase::kStarting, v1::ATTEMPT_PHASE_STARTING));
static_assert(Same(AttemptPhase::kRunning, v1::ATTEMPT_PHASE_RUNNING));
static_assert(Same(AttemptPhase::kFinalizing, v1::ATTEMPT_PHASE_FINALIZING));
static_assert(Same(AttemptPhase::kHeld, v1::ATTEMPT_PHASE_HELD));
static_assert(Same(AttemptPhase::kEnded, v1::ATTEMPT_PHASE_ENDED));

static_assert(Same(ExitReason::kNone, v1::TRAINER_EXIT_REASON_UNSPECIFIED));
static_assert(Same(ExitReason::kSucceeded, v1::TRAINER_EXIT_SUCCEEDED));
static_assert(Same(ExitReason::kFailed, v1::TRAINER_EXIT_FAILED));
static_assert(Same(ExitReason::kCheckpointed, v1::TRAINER_EXIT_CHECKPOINTED));
static_assert(Same(ExitReason::kCancelled, v1::TRAINER_EXIT_CANCELLED));
static_assert(Same(ExitReason::kLeaseLost, v1::TRAINER_EXIT_LEASE_LOST));
static_assert(Same(ExitReason::kCrashed, v1::TRAINER_EXIT_CRASHED));

static_assert(Same(StopMode::kCheckpoint, v1::STOP_MODE_CHECKPOINT));
static_assert(Same(StopMode::kCancel, v1::STOP_MODE_CANCEL));
static_assert(Same(StopMode::kFenced, v1::STOP_MODE_FENCED));
}  // namespace
}  // namespace longhaul::server
