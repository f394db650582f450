// Between the engine and the world: turns what the engine tells into events and log lines, and the lease and signals
// into what the engine asks.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "longhaul/v1/trainer.pb.h"
#include "model/memory_plan.h"
#include "worker/train/trainer.h"
#include "worker/trainer/control.h"
#include "worker/trainer/run_attempt.h"

namespace longhaul::trainer {

// The exit of an attempt that a signal asked to stop before its engine was made; none where none came.
std::optional<v1::TrainerExit> StoppedBefore(SignalInbox* signals);

// Of the updates and evaluations to come when update `step` (1 or more) has been made and its own evaluation, where one
// is due, has not: evaluations are made every `eval_every` updates (0 = none on the way) and after the last one.
double EtaSeconds(int64_t step, int64_t total_steps, int64_t eval_every, double step_seconds, double eval_seconds);

// Not thread-safe: the training thread's.
class RunWatch final : public train::TrainerObserver, public train::TrainerControl {
 public:
  // `context` outlives it.
  RunWatch(const AttemptContext& context, const MemoryPlan& plan);

  void OnStarted(const train::TrainStarted& started) override;
  void OnProgress(const train::TrainProgress& progress) override;
  void OnEvaluated(int64_t step, const train::EvalResult& result) override;
  absl::Status OnCheckpoint(const train::CheckpointInfo& info) override;
  void OnWarning(const std::string& message) override;
  void OnHold(bool held) override;

  train::Control Poll() override;
  void WaitWhileHeld() override;

  // Asked to stop before the engine was made.
  std::optional<v1::TrainerExit> StoppedBefore();
  // The last update that was told of.
  int64_t step() const { return last_.step(); }
  // Why the engine was cancelled: a signal, or a lost lease.
  v1::TrainerExit CancelledExit() const;
  // The first failure of an event's write or of a failpoint; the run is cancelled because of it.
  const absl::Status& status() const { return status_; }

 private:
  void Keep(const absl::Status& status);
  void Tell(v1::TrainingProgress point);
  double SecondsSinceLastTold() const;
  double Eta(int64_t step, int64_t total_steps) const;

  const AttemptContext& context_;
  const int64_t host_bytes_planned_;
  const int64_t device_bytes_planned_;
  const std::vector<std::string> plan_warnings_;
  Control control_;
  absl::Status status_;
  bool lease_lost_ = false;
  int64_t lease_looked_nanos_ = 0;
  Decision decision_ = Decision::kContinue;
  v1::TrainingProgress last_;
  std::optional<std::pair<int64_t, double>> untold_eval_;  // step and loss of an evaluation that no point has told yet
  int64_t steps_here_ = 0;
  double seconds_here_ = 0;
  int64_t told_nanos_ = 0;   // when the engine last told of anything: an evaluation begins there
  double eval_seconds_ = 0;  // the last evaluation's; 0 = there was none yet
};

}  // namespace longhaul::trainer
