#include "worker/trainer/run_watch.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/failpoints.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/process.h"
#include "worker/attempt/stderr_log.h"
#include "worker/attempt/utf8.h"

namespace longhaul::trainer {
namespace {

// The engine asks between layers; the lease file is looked at this often. Leases last many seconds.
constexpr int64_t kLeaseLookNanos = 50'000'000;

std::string ProgressLine(const v1::TrainingProgress& p) {
  char text[160];
  std::snprintf(text, sizeof(text), "step %lld/%lld  loss %.4f  lr %.3g  grad %.3g  %.0f tok/s  eta %s",
                static_cast<long long>(p.step()), static_cast<long long>(p.total_steps()), p.loss(), p.learning_rate(),
                p.grad_norm(), p.tokens_per_second(), FormatDuration(p.eta_seconds()).c_str());
  return text;
}

}  // namespace

double EtaSeconds(int64_t step, int64_t total_steps, int64_t eval_every, double step_seconds, double eval_seconds) {
  const int64_t on_the_way = eval_every > 0 ? (total_steps - 1) / eval_every - (step - 1) / eval_every : 0;
  return step_seconds * static_cast<double>(total_steps - step) + eval_seconds * static_cast<double>(on_the_way + 1);
}

RunWatch::RunWatch(const AttemptContext& context, const MemoryPlan& plan)
    : context_(context),
      host_bytes_planned_(plan.host_bytes_total),
      device_bytes_planned_(plan.device_bytes_total),
      plan_warnings_(PlanWarnings(plan)),
      control_(context.dir, context.spec.lease_epoch(), context.clock, context.signals) {}

void RunWatch::Keep(const absl::Status& status) {
  if (status_.ok() && !status.ok()) status_ = status;
}

void RunWatch::OnStarted(const train::TrainStarted& started) {
  v1::TrainerEvent event;
  v1::TrainerStarted* out = event.mutable_started();
  out->set_host_bytes_arena(started.arena_bytes);
  out->set_device_bytes_arena(started.device_arena_bytes);
  out->set_total_steps(started.total_steps);
  out->set_first_step(started.first_step);
  out->set_load_seconds(started.load_seconds);
  context_.events->Add(event);
  last_.set_step(started.first_step);
  last_.set_total_steps(started.total_steps);
  told_nanos_ = context_.clock->BootNanos();
  context_.log(
      "loaded in " + FormatDuration(started.load_seconds) + ", arena " + FormatBytes(started.arena_bytes) +
      (started.device_arena_bytes > 0 ? " and " + FormatBytes(started.device_arena_bytes) + " of the GPU" : "") + ", " +
      (started.first_step > 0 ? "resumes after step " + std::to_string(started.first_step) + " of " : "") +
      std::to_string(started.total_steps) + " steps");
  // Where a library has no kernel for a shape, it says here what serves in its place, and why.
  context_.log("computes with " + started.computes_with);
  for (const std::string& warning : plan_warnings_) OnWarning(warning);
}

double RunWatch::SecondsSinceLastTold() const {
  return static_cast<double>(context_.clock->BootNanos() - told_nanos_) * 1e-9;
}

double RunWatch::Eta(int64_t step, int64_t total_steps) const {
  // By the mean update and the last evaluation of this run.
  return EtaSeconds(step, total_steps, context_.spec.spec().hyperparameters().eval_every_steps(),
                    seconds_here_ / static_cast<double>(steps_here_), eval_seconds_);
}

void RunWatch::Tell(v1::TrainingProgress point) {
  point.set_attempt(context_.spec.attempt());
  point.set_host_bytes_used(ProcessRssBytes(::getpid()));
  point.set_host_bytes_planned(host_bytes_planned_);
  point.set_device_bytes_planned(device_bytes_planned_);
  const int64_t wall_micros = context_.clock->WallMicros();
  point.mutable_time()->set_seconds(wall_micros / 1'000'000);
  point.mutable_time()->set_nanos(static_cast<int32_t>(wall_micros % 1'000'000 * 1'000));
  v1::TrainerEvent event;
  *event.mutable_progress() = point;
  context_.events->Add(event);
  last_ = std::move(point);
}

void RunWatch::OnProgress(const train::TrainProgress& progress) {
  ++steps_here_;
  seconds_here_ += progress.step_seconds;
  v1::TrainingProgress point;
  point.set_step(progress.step);
  point.set_total_steps(progress.total_steps);
  point.set_epoch(progress.epoch);
  point.set_loss(progress.loss);
  point.set_learning_rate(progress.learning_rate);
  point.set_grad_norm(progress.grad_norm);
  point.set_tokens_per_second(progress.tokens_per_second);
  point.set_trained_tokens(progress.trained_tokens);
  point.set_step_seconds(progress.step_seconds);
  point.set_eta_seconds(Eta(progress.step, progress.total_steps));
  if (untold_eval_.has_value()) {
    point.set_eval_step(untold_eval_->first);
    point.set_eval_loss(untold_eval_->second);
    untold_eval_.reset();
  }
  point.set_skipped_updates(progress.skipped_updates);
  point.set_device_bytes_used(progress.device_bytes_used);
  Tell(std::move(point));
  context_.log(ProgressLine(last_));
  told_nanos_ = context_.clock->BootNanos();
  if (!context_.alone) Keep(attempt::RotateStderrIfLarge(context_.dir, limits::kMaxStderrLogBytes / 2));
  Keep(Failpoint("train_step_" + std::to_string(progress.step)));
}

void RunWatch::OnEvaluated(int64_t step, const train::EvalResult& result) {
  char text[96];
  std::snprintf(text, sizeof(text), "held-out loss %.4f after step %lld (%s targets)", result.loss,
                static_cast<long long>(step), FormatCount(result.targets).c_str());
  context_.log(text);
  eval_seconds_ = SecondsSinceLastTold();
  told_nanos_ = context_.clock->BootNanos();
  // The step's point is told again, now with it. Where this attempt has not made the step, the next one carries it.
  if (step != last_.step() || steps_here_ == 0) {
    untold_eval_ = {step, result.loss};
    return;
  }
  v1::TrainingProgress point = last_;
  point.set_eval_step(step);
  point.set_eval_loss(result.loss);
  point.set_eta_seconds(std::max(0.0, Eta(step, last_.total_steps()) - eval_seconds_));
  Tell(std::move(point));
}

absl::Status RunWatch::OnCheckpoint(const train::CheckpointInfo& info) {
  v1::TrainerEvent event;
  v1::CheckpointWritten* out = event.mutable_checkpoint();
  out->set_step(info.step);
  out->set_final(info.final);
  for (const std::string& file : info.files) out->add_files(file);
  if (info.eval_loss.has_value()) out->set_eval_loss(*info.eval_loss);
  out->set_plan_signature(info.plan_signature);
  out->set_made_with(attempt::CutUtf8(info.made_with, limits::kMaxCheckpointTextBytes));
  context_.events->AddDurable(event);
  if (!context_.events->status().ok()) return context_.events->status();
  context_.log("checkpoint of step " + std::to_string(info.step) + " written");
  told_nanos_ = context_.clock->BootNanos();
  return Failpoint("train_checkpoint_written");
}

void RunWatch::OnWarning(const std::string& message) {
  context_.events->Warn(message);
  context_.log("warning: " + message);
}

void RunWatch::OnHold(bool held) {
  v1::TrainerEvent event;
  event.mutable_hold()->set_held(held);
  told_nanos_ = context_.clock->BootNanos();  // an evaluation that it broke into begins again
  context_.events->Add(event);
  context_.log(held ? "the lease has run out: holding at the step boundary" : "the lease lives: going on");
}

train::Control RunWatch::Poll() {
  Keep(context_.events->status());
  if (!status_.ok() || lease_lost_ || control_.CancelAsked()) return train::Control::kCancel;
  const int64_t now = context_.clock->BootNanos();
  if (decision_ != Decision::kContinue || now - lease_looked_nanos_ >= kLeaseLookNanos ||
      context_.signals->stop_asked()) {
    lease_looked_nanos_ = now;
    decision_ = control_.AtStepBoundary();
  }
  switch (decision_) {
    case Decision::kContinue:
      return train::Control::kContinue;
    case Decision::kStop:
      return train::Control::kStopWithCheckpoint;
    case Decision::kHold:
      return train::Control::kHold;
    case Decision::kCancel:
      return train::Control::kCancel;
    case Decision::kLeaseLost:
      lease_lost_ = true;
      return train::Control::kCancel;
  }
  return train::Control::kContinue;
}

void RunWatch::WaitWhileHeld() { decision_ = control_.Hold(); }

std::optional<v1::TrainerExit> StoppedBefore(SignalInbox* signals) {
  signals->Poll();
  if (signals->cancel_asked()) return ExitOf(v1::TRAINER_EXIT_CANCELLED, "cancelled before the first step");
  if (signals->stop_asked()) return ExitOf(v1::TRAINER_EXIT_CHECKPOINTED, "stopped before the first step");
  return std::nullopt;
}

std::optional<v1::TrainerExit> RunWatch::StoppedBefore() { return trainer::StoppedBefore(context_.signals); }

v1::TrainerExit RunWatch::CancelledExit() const {
  if (lease_lost_) return ExitOf(v1::TRAINER_EXIT_LEASE_LOST, "the lease is lost: another attempt may have the job");
  return ExitOf(v1::TRAINER_EXIT_CANCELLED, "cancelled");
}

}  // namespace longhaul::trainer
