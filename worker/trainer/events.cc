#include "worker/trainer/events.h"

#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/attempt/exit_codes.h"
#include "worker/attempt/utf8.h"

namespace longhaul::trainer {
namespace {

struct Failure {
  v1::Reason reason;
  bool user_can_fix;
  bool device_at_fault = false;
};

Failure FailureOf(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  if (reason == "INVALID_DATASET") return {v1::INVALID_DATASET, true};
  if (reason == "INVALID_MODEL" || reason == "MODEL_UNSUPPORTED") return {v1::INVALID_MODEL, true};
  if (reason == "NON_FINITE_LOSS") return {v1::NON_FINITE_LOSS, true};
  if (reason == "RESUME_NOT_IDENTICAL") return {v1::RESUME_NOT_IDENTICAL, true};
  if (reason == "INVALID_FIELD") return {v1::INVALID_FIELD, true};
  if (reason == "INVALID_CHECKPOINT") return {v1::INVALID_CHECKPOINT, false};
  if (reason == "PLAN_MISMATCH") return {v1::PLAN_MISMATCH, false};
  if (reason == "HOST_OOM") return {v1::HOST_OOM, false};
  if (reason == "DEVICE_OOM") return {v1::DEVICE_OOM, false};
  // Another attempt may meet another device, or this one once somebody has looked after it.
  for (const char* fault :
       {"DEVICE_MEMORY_TAKEN", "NO_CUDA", "NO_CUDA_KERNELS", "CUDA_DRIVER_TOO_OLD", "CUDA_DEVICE_TOO_OLD",
        "CUDA_LIBRARY_MISSING", "CUBLASLT_UNAVAILABLE", "CUDNN_UNAVAILABLE"}) {
    if (reason == fault) return {v1::DEVICE_FAULT, false};
  }
  // A context that cannot be made for any other reason is NO_CUDA_DEVICE, a device that is broken among them.
  if (reason == "DEVICE_FAULT" || reason == "NO_CUDA_DEVICE") return {v1::DEVICE_FAULT, false, true};
  if (reason == "DISK_FULL") return {v1::DISK_FULL, false};
  return {v1::INTERNAL, false};
}

constexpr const char* kWhoseFault =
    "; an op before this one may be at fault: with CUDA_LAUNCH_BLOCKING=1 in longhaul-worker's environment that op is "
    "named";

}  // namespace

absl::StatusOr<Events> Events::Open(const std::string& path, const Clock* clock) {
  LH_ASSIGN_OR_RETURN(attempt::EventLogWriter writer, attempt::EventLogWriter::Open(path));
  return Events(std::move(writer), clock);
}

void Events::Keep(const absl::Status& status) {
  if (status_.ok() && !status.ok()) status_ = status;
}

void Events::Add(v1::TrainerEvent event) {
  event.set_wall_micros(clock_->WallMicros());
  Keep(writer_.Append(event));
}

void Events::AddDurable(v1::TrainerEvent event) {
  Add(std::move(event));
  Keep(writer_.Sync());
}

void Events::Warn(const std::string& message) {
  v1::TrainerEvent event;
  event.mutable_warning()->set_message(attempt::CutUtf8(message, limits::kMaxTrainerMessageBytes));
  Add(std::move(event));
}

v1::TrainerExit ExitOfError(const absl::Status& status) {
  v1::TrainerExit exit;
  exit.set_reason(v1::TRAINER_EXIT_FAILED);
  const Failure failure = FailureOf(status);
  exit.set_failure(failure.reason);
  exit.set_user_can_fix(failure.user_can_fix);
  exit.set_device_at_fault(failure.device_at_fault);
  exit.set_message(attempt::CutUtf8(std::string_view(status.message().data(), status.message().size()),
                                    limits::kMaxTrainerMessageBytes));
  return exit;
}

absl::Status CudaFailure(const kernels::CudaError& error, const std::string& when) {
  if (error.shortage() != kernels::CudaShortage::kNone) {
    const bool host = error.shortage() == kernels::CudaShortage::kHost;
    return MakeError(absl::StatusCode::kResourceExhausted, host ? "HOST_OOM" : "DEVICE_OOM",
                     when + ", " + error.what());
  }
  return MakeError(absl::StatusCode::kUnavailable, "DEVICE_FAULT",
                   when + ", " + error.what() + (kernels::CudaLaunchesBlock() ? "" : kWhoseFault));
}

v1::TrainerExit ExitOf(v1::TrainerExitReason reason, const std::string& message) {
  v1::TrainerExit exit;
  exit.set_reason(reason);
  exit.set_message(message);
  return exit;
}

int ExitCodeOf(const v1::TrainerExit& exit) {
  switch (exit.reason()) {
    case v1::TRAINER_EXIT_SUCCEEDED:
      return attempt::kExitSucceeded;
    case v1::TRAINER_EXIT_CHECKPOINTED:
      return attempt::kExitCheckpointed;
    case v1::TRAINER_EXIT_CANCELLED:
      return attempt::kExitCancelled;
    case v1::TRAINER_EXIT_LEASE_LOST:
      return attempt::kExitLeaseLost;
    default:
      return exit.failure() == v1::HOST_OOM ? attempt::kExitHostOom : attempt::kExitFailed;
  }
}

}  // namespace longhaul::trainer
