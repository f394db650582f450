// What a trainer tells, written as it happens. A write that fails ends the trainer at the next step boundary: an
// attempt whose events are lost cannot be followed.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "kernels/cuda_error.h"
#include "longhaul/v1/trainer.pb.h"
#include "worker/attempt/event_log.h"

namespace longhaul::trainer {

// Not thread-safe.
class Events {
 public:
  static absl::StatusOr<Events> Open(const std::string& path, const Clock* clock);

  // Stamps the time. The first failure is kept in status(); later events are still tried.
  void Add(v1::TrainerEvent event);
  // And durable: checkpoints, the artifact, the exit.
  void AddDurable(v1::TrainerEvent event);
  void Warn(const std::string& message);
  const absl::Status& status() const { return status_; }

 private:
  Events(attempt::EventLogWriter writer, const Clock* clock) : writer_(std::move(writer)), clock_(clock) {}
  void Keep(const absl::Status& status);
  attempt::EventLogWriter writer_;
  const Clock* clock_;
  absl::Status status_;
};

// FAILED with what the status says: INVALID_DATASET, INVALID_MODEL, INVALID_FIELD, INVALID_CHECKPOINT, HOST_OOM,
// NON_FINITE_LOSS, DISK_FULL and others, else INTERNAL.
v1::TrainerExit ExitOfError(const absl::Status& status);
v1::TrainerExit ExitOf(v1::TrainerExitReason reason, const std::string& message);
// A CUDA call that failed: DEVICE_OOM, HOST_OOM or DEVICE_FAULT, with the op that was at work, and when ("in step 7").
absl::Status CudaFailure(const kernels::CudaError& error, const std::string& when);
// The process's exit code (worker/attempt/exit_codes.h).
int ExitCodeOf(const v1::TrainerExit& exit);

}  // namespace longhaul::trainer
