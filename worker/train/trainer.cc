#include "worker/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_engine.h"
#include "nlohmann/json.hpp"
#include "worker/train/rehearsal.h"

namespace longhaul::train {
namespace {

constexpr char kFolderPrefix[] = "step-";

std::string RunSignature(const TrainerOptions& options, int64_t total_steps) {
  const TrainShape& t = options.plan.train;
  const nlohmann::json run = {{"hyper", HyperToJson(options.hyper)},
                              {"shape", ModelShapeToJson(options.plan.shape)},
                              {"rank", t.lora_rank},
                              {"targets", t.lora_targets},
                              {"base", BaseWeightsName(t.base)},
                              {"batch_size", t.batch_size},
                              {"sequence_length", t.sequence_length},
                              {"accumulation_steps", t.accumulation_steps},
                              {"total_steps", total_steps},
                              {"data", options.data_signature}};
  return Sha256Hex(run.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

int64_t CountTargets(const TokenBatch& batch) {
  return batch.rows - std::count(batch.labels, batch.labels + batch.rows, -100);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const TrainerOptions& options, const WeightSource& weights,
                                                         BatchSource* train, BatchSource* eval,
                                                         TrainerObserver* observer, TrainerControl* control,
                                                         const Clock* clock) {
  LH_CHECK(options.plan.kind == PlanKind::kTrain);
  LH_RETURN_IF_ERROR(ValidateHyper(options.hyper));
  if (options.hyper.lora_dropout > 0 && !options.plan.train.lora_dropout) {
    return MakeError(absl::StatusCode::kInvalidArgument, "PLAN_MISMATCH",
                     "lora_dropout is " + std::to_string(options.hyper.lora_dropout) +
                         ", but the memory plan was made without dropout");
  }
  std::unique_ptr<Trainer> trainer(new Trainer(options, train, eval, observer, control, clock));
  LH_RETURN_IF_ERROR(trainer->CheckBatches(*train, "dataset"));
  if (train->UpdatesPerEpoch() == 0) return InvalidField("dataset", "has nothing to train on");
  LH_RETURN_IF_ERROR(CheckTotalSteps(options.hyper, train->UpdatesPerEpoch()));
  if (eval != nullptr) LH_RETURN_IF_ERROR(trainer->CheckBatches(*eval, "eval dataset"));
  LH_RETURN_IF_ERROR(trainer->Load(weights));
  return trainer;
}

absl::Status Trainer::CheckBatches(const BatchSource& batches, const char* name) const {
  const TrainShape& t = options_.plan.train;
  // On CUDA one document more may fill up the rows.
  const int64_t documents = options_.plan.choices.documents;
  if (options_.plan.device == DeviceKind::kCuda && batches.MostDocuments() >= documents) {
    return MakeError(absl::StatusCode::kInvalidArgument, "PLAN_MISMATCH",
                     std::string(name) + ": micro-batches of up to " + FormatCount(batches.MostDocuments()) +
                         " documents; the memory plan is for " + FormatCount(documents - 1) +
                         ". Turn packing off, or join the shortest documents");
  }
  if (batches.MostTokens() <= t.tokens() && batches.LongestDocument() <= t.longest()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "PLAN_MISMATCH",
                   std::string(name) + ": micro-batches of up to " + FormatCount(batches.MostTokens()) +
                       " tokens, documents of up to " + FormatCount(batches.LongestDocument()) +
                       "; the memory plan is for " + FormatCount(t.tokens()) + " and " + FormatCount(t.longest()));
}

absl::Status Trainer::Load(const WeightSource& weights) {
  const int64_t begin = clock_->BootNanos();
  LH_ASSIGN_OR_RETURN(exec_, CreateExec(options_.plan, options_.pin_threads, options_.cuda_device));
  LH_ASSIGN_OR_RETURN(memory_, EngineMemory::Create(options_.plan, *exec_));
  weights_ = CarveWeights(*memory_);
  if (options_.plan.device == DeviceKind::kCpu) {
    base_cache_ = std::make_unique<BaseCache>(options_.base_cache_folder, options_.model_digest, *memory_);
  }
  LH_RETURN_IF_ERROR(LoadWeights(weights, *memory_, *exec_, weights_, base_cache_.get()));
  adapter_ = std::make_unique<Adapter>(*memory_);
  adapter_->Initialize(options_.hyper.seed);
  for (const kernels::Tensor* t : {&adapter_->grad(), &adapter_->moment1(), &adapter_->moment2()}) {
    kernels::Zero(*exec_, *t);
  }
  LH_ASSIGN_OR_RETURN(
      ops_, CreateOps(*memory_, *exec_, weights_, *adapter_, LoraScale(options_.hyper, options_.plan.train.lora_rank)));
  decoder_ = std::make_unique<Decoder>(*memory_, *exec_, ops_.get(), weights_, *adapter_);
  loss_ = std::make_unique<CutCrossEntropy>(*memory_, *exec_, ops_.get(), weights_);
  keep_going_ = [this] { return control_->Poll() != Control::kCancel; };
  // An evaluation may be as long as many steps, and it can be done again: a stop does not wait for it.
  keep_evaluating_ = [this] { return control_->Poll() == Control::kContinue; };
  state_.total_steps = TotalSteps(options_.hyper, train_->UpdatesPerEpoch());
  const std::string computes_with = ops_->Describe();
  identity_.plan_signature = PlanSignature(options_.plan, computes_with);
  identity_.made_with = DescribeChoices(options_.plan) + ", " + options_.plan.choices.isa + ", " + computes_with;
  identity_.run_signature = RunSignature(options_, state_.total_steps);
  if (options_.plan.device == DeviceKind::kCuda) {
    LH_RETURN_IF_ERROR(Rehearse(*memory_, options_.hyper.lora_dropout, ops_.get(), decoder_.get(), loss_.get()));
  }
  if (!options_.resume_from.empty()) LH_RETURN_IF_ERROR(Resume());
  ops_->AdapterChanged();
  updates_ = std::make_unique<AdapterUpdates>(*memory_, *adapter_, options_.hyper);
  updates_->Begin(state_.adam_steps);
  observer_->OnStarted({options_.plan.arena_bytes, options_.plan.device_arena_bytes, state_.total_steps, state_.step,
                        SecondsSince(begin), computes_with});
  return absl::OkStatus();
}

absl::Status Trainer::Resume() {
  LH_ASSIGN_OR_RETURN(const LoadedCheckpoint loaded, ReadCheckpoint(options_.resume_from, *adapter_));
  if (loaded.identity.run_signature != identity_.run_signature || loaded.state.total_steps != state_.total_steps) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_CHECKPOINT",
                     options_.resume_from + ": was written by a run with other hyperparameters, data or model");
  }
  if (loaded.identity.plan_signature != identity_.plan_signature) {
    const std::string what = "the checkpoint was made with \"" + loaded.identity.made_with + "\", here it is \"" +
                             identity_.made_with + "\": the continued run will not be bit-identical";
    if (!options_.hyper.allow_nonidentical_resume) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "RESUME_NOT_IDENTICAL",
                       what + "; allow_nonidentical_resume permits it");
    }
    observer_->OnWarning(what);
  }
  state_ = loaded.state;
  checkpoint_step_ = state_.step;
  return absl::OkStatus();
}

Window Trainer::WindowOf(int64_t number) const {
  return train_->GetWindow(number / train_->UpdatesPerEpoch(), number % train_->UpdatesPerEpoch());
}

bool Trainer::Accumulate(StepInFlight* step) {
  const Window& window = step->window;
  const double grad_scale = GradScale(window);
  loss_->BeginWindow(step->slot, window.micro_batches);
  for (int64_t i = 0; i < window.micro_batches; ++i) {
    const TokenBatch batch = train_->Get(i);
    step->tokens += batch.rows;
    // Nothing to learn from: legal, and costs nothing.
    if (CountTargets(batch) == 0) continue;
    if (options_.hyper.lora_dropout > 0) {
      const uint64_t step_key = CounterBits(options_.hyper.seed, static_cast<uint64_t>(step->number) + 1);
      ops_->SetDropout(options_.hyper.lora_dropout, CounterBits(step_key, static_cast<uint64_t>(i)));
    } else {
      ops_->SetDropout(0, 0);
    }
    if (!RunMicroBatch(batch, grad_scale, &step->timings)) return false;
    loss_->QueueNumbers(step->slot, i);
  }
  return true;
}

bool Trainer::RunMicroBatch(const TokenBatch& batch, double grad_scale, TrainProgress* timings) {
  const int64_t begin = clock_->BootNanos();
  const TokenBatch brought = ops_->Bring(batch);
  loss_->Prepare(batch, grad_scale);
  // Passes that are replayed ask nobody.
  bool asked = false;
  const KeepGoing asks = [&] {
    asked = true;
    return keep_going_();
  };
  const auto forward = [&] { return decoder_->Forward(brought, asks); };
  if (!ops_->Queue(EngineOps::Part::kForward, brought.rows, forward)) return false;
  if (!asked && !keep_going_()) return false;
  const int64_t forward_done = clock_->BootNanos();
  loss_->Queue(decoder_->Stream(options_.plan.shape.layers, brought.rows), decoder_->DStream(brought.rows));
  const int64_t loss_done = clock_->BootNanos();
  const auto backward = [&] {
    if (!decoder_->Backward(brought, asks)) return false;
    // Where there are others, whose fault it is that an update is skipped.
    if (options_.plan.train.accumulation_steps > 1) loss_->QueueGradientCheck(adapter_->grad());
    return true;
  };
  if (!ops_->Queue(EngineOps::Part::kBackward, brought.rows, backward)) return false;
  if (options_.plan.device == DeviceKind::kCuda) return true;
  timings->forward_seconds += static_cast<double>(forward_done - begin) * 1e-9;
  timings->loss_seconds += static_cast<double>(loss_done - forward_done) * 1e-9;
  timings->backward_seconds += SecondsSince(loss_done);
  return true;
}

std::string Trainer::DescribeMicroBatch(const StepInFlight& step, int64_t index) const {
  WindowOf(step.number);  // the source may be at the next one
  train_->Get(index);
  return train_->Describe();
}

void Trainer::CollectLosses(StepInFlight* step) const {
  double nats = 0;
  for (int64_t i = 0; i < step->window.micro_batches; ++i) {
    const MicroBatchNumbers& numbers = loss_->NumbersOf(step->slot, i);
    if (!std::isfinite(numbers.loss.nats) && step->non_finite.empty()) step->non_finite = DescribeMicroBatch(*step, i);
    if (numbers.non_finite_gradients > 0 && step->first_non_finite_gradient < 0) step->first_non_finite_gradient = i;
    nats += numbers.loss.nats;
  }
  step->loss = nats * GradScale(step->window);
}

std::string Trainer::WhyNotFinite(const UpdateResult& update, const StepInFlight& step) const {
  if (!step.non_finite.empty()) return "the loss is not finite for " + step.non_finite;
  std::string why = "the gradient's norm is " + std::to_string(update.grad_norm);
  const int64_t first = step.window.micro_batches == 1 ? 0 : step.first_non_finite_gradient;
  if (first >= 0) why += ", not finite from " + DescribeMicroBatch(step, first) + " on";
  return why;
}

absl::Status Trainer::CountSkip(const UpdateResult& update, const StepInFlight& step) {
  ++state_.skipped_updates;
  ++state_.skipped_in_a_row;
  const std::string what = "update " + std::to_string(step.number + 1) + ": " + WhyNotFinite(update, step);
  if (state_.skipped_in_a_row < limits::kMaxNonFiniteStepsInARow) {
    observer_->OnWarning(what + "; the update was skipped");
    return absl::OkStatus();
  }
  return MakeError(absl::StatusCode::kFailedPrecondition, "NON_FINITE_LOSS",
                   what + "; " + std::to_string(state_.skipped_in_a_row) +
                       " updates in a row were skipped. Lower the learning rate or look at the data");
}

bool Trainer::QueueStep(StepInFlight* step) {
  step->begin_nanos = clock_->BootNanos();
  step->follows = in_flight_.has_value();
  step->number = state_.step + (step->follows ? 1 : 0);
  step->slot = step->number % kStepSlots;
  last_begun_ = step->number + 1;
  step->window = WindowOf(step->number);
  ops_->BeginStep(step->number);
  if (!Accumulate(step)) return false;
  // On a GPU the losses are read when more is queued: what is not finite there shows in the gradient's norm, too.
  if (!reads_late()) CollectLosses(step);
  const int64_t accumulated = clock_->BootNanos();
  step->learning_rate = LearningRateAt(options_.hyper, state_.total_steps, step->number);
  ops_->BeginPart("optimizer");
  updates_->Queue(step->learning_rate, std::isfinite(step->loss), step->slot);
  ops_->AdapterChanged();
  ops_->EndPart();
  ops_->EndStep(step->number);
  if (!reads_late()) step->timings.update_seconds = SecondsSince(accumulated);
  return true;
}

absl::StatusOr<bool> Trainer::Step() {
  StepInFlight step;
  if (!QueueStep(&step)) {
    kernels::Zero(*exec_, adapter_->grad());
    return false;
  }
  LH_RETURN_IF_ERROR(Settle());
  in_flight_ = std::move(step);
  if (!reads_late() || IsLookedAt(in_flight_->number + 1)) LH_RETURN_IF_ERROR(Settle());
  return true;
}

absl::Status Trainer::Settle() {
  if (!in_flight_.has_value()) return absl::OkStatus();
  if (reads_late()) {
    ops_->WaitForStep(in_flight_->number);
    CollectLosses(&*in_flight_);
  }
  const StepInFlight step = *std::exchange(in_flight_, std::nullopt);
  const UpdateResult update = updates_->Result(step.slot);
  state_.adam_steps = update.adam_steps;
  if (update.skipped) {
    LH_RETURN_IF_ERROR(CountSkip(update, step));
  } else {
    state_.skipped_in_a_row = 0;
    state_.last_loss = step.loss;
  }
  ++state_.step;
  state_.trained_tokens += step.tokens;
  Report(step, update.grad_norm);
  return Failpoint("trainer_after_step");
}

void Trainer::Report(const StepInFlight& step, double grad_norm) {
  TrainProgress progress = step.timings;
  progress.step = state_.step;
  progress.total_steps = state_.total_steps;
  progress.epoch = static_cast<double>(state_.step) / static_cast<double>(train_->UpdatesPerEpoch());
  progress.loss = step.loss;
  progress.learning_rate = step.learning_rate;
  progress.grad_norm = grad_norm;
  // Queued while another ran: when that one ended is the device's to say, the host may have been busy.
  progress.step_seconds = step.follows ? ops_->SecondsSinceStepBefore(step.number) : SecondsSince(step.begin_nanos);
  state_.train_seconds += progress.step_seconds;
  progress.tokens_per_second = progress.step_seconds > 0 ? static_cast<double>(step.tokens) / progress.step_seconds : 0;
  progress.trained_tokens = state_.trained_tokens;
  progress.skipped_updates = state_.skipped_updates;
  if (options_.plan.device == DeviceKind::kCuda) progress.device_bytes_used = kernels::CudaOwnBytes(*exec_);
  observer_->OnProgress(progress);
}

bool Trainer::IsLookedAt(int64_t done) const {
  const auto due = [done](int64_t every) { return every > 0 && done % every == 0; };
  return done == state_.total_steps || due(options_.hyper.eval_every_steps) ||
         due(options_.hyper.checkpoint_every_steps);
}

bool Trainer::EvaluateNow() {
  if (eval_ == nullptr || state_.eval_last_step == state_.step) return true;
  const EvalResult result =
      Evaluate(ops_.get(), decoder_.get(), loss_.get(), eval_, options_.plan.shape.layers, keep_evaluating_);
  if (!result.complete) return false;
  if (result.targets == 0) return true;
  if (!std::isfinite(result.loss)) {
    // No number can be better than a NaN, nor worse: it would stay the best for good.
    observer_->OnWarning("the held-out loss after update " + std::to_string(state_.step) +
                         " is not finite; the evaluation does not count");
    return true;
  }
  state_.eval_last = result.loss;
  state_.eval_last_step = state_.step;
  if (state_.step == 0) state_.eval_before = result.loss;
  if (!state_.eval_best.has_value() || result.loss < *state_.eval_best) state_.eval_best = result.loss;
  observer_->OnEvaluated(state_.step, result);
  return true;
}

absl::StatusOr<std::optional<Outcome>> Trainer::EvaluateAtBoundary() {
  while (!EvaluateNow()) {
    state_.eval_pending = true;
    LH_ASSIGN_OR_RETURN(const std::optional<Outcome> stop, AtBoundary());
    if (stop.has_value()) return stop;
  }
  state_.eval_pending = false;
  return std::optional<Outcome>();
}

absl::Status Trainer::Checkpoint(bool final) {
  if (options_.checkpoint_root.empty()) return absl::OkStatus();
  CheckpointInfo info;
  info.folder = JoinPath(options_.checkpoint_root, kFolderPrefix + std::to_string(state_.step));
  LH_RETURN_IF_ERROR(CreateDirs(options_.checkpoint_root));
  LH_RETURN_IF_ERROR(WriteCheckpoint(info.folder, state_, identity_, *adapter_));
  checkpoint_step_ = state_.step;
  info.files = CheckpointFiles();
  info.step = state_.step;
  info.final = final;
  info.eval_loss = state_.eval_last_step == state_.step ? state_.eval_last : std::nullopt;
  info.plan_signature = identity_.plan_signature;
  info.made_with = identity_.made_with;
  LH_RETURN_IF_ERROR(observer_->OnCheckpoint(info));
  RemoveOldCheckpoints();
  return absl::OkStatus();
}

// Whoever still needs an older one has its bytes elsewhere by then; what cannot be removed is left for the next time.
void Trainer::RemoveOldCheckpoints() {
  const absl::StatusOr<std::vector<std::string>> names = ListDir(options_.checkpoint_root);
  if (!names.ok()) return;
  std::vector<std::pair<int64_t, std::string>> found;
  for (const std::string& name : *names) {
    const std::string digits = name.rfind(kFolderPrefix, 0) == 0 ? name.substr(sizeof(kFolderPrefix) - 1) : "";
    if (digits.empty() || digits.size() > 12 || digits.find_first_not_of("0123456789") != std::string::npos) continue;
    found.emplace_back(std::stoll(digits), name);
  }
  std::sort(found.begin(), found.end());
  const int64_t surplus = static_cast<int64_t>(found.size()) - options_.checkpoints_kept;
  for (int64_t i = 0; i < surplus; ++i) {
    RemoveTree(JoinPath(options_.checkpoint_root, found[static_cast<size_t>(i)].second)).IgnoreError();
  }
}

absl::StatusOr<std::optional<Outcome>> Trainer::AtBoundary() {
  Control control = control_->Poll();
  if (control == Control::kContinue) return std::optional<Outcome>();
  if (control != Control::kCancel) LH_RETURN_IF_ERROR(Settle());
  // Before the first update there is nothing to lose.
  const bool unsaved = state_.step > 0 && checkpoint_step_ != state_.step;
  if (control == Control::kHold) {
    if (unsaved) LH_RETURN_IF_ERROR(Checkpoint(false));
    observer_->OnHold(true);
    do {
      control_->WaitWhileHeld();
      control = control_->Poll();
    } while (control == Control::kHold);
    observer_->OnHold(false);
  }
  if (control == Control::kCancel) return std::optional<Outcome>(Outcome::kCancelled);
  if (control == Control::kStopWithCheckpoint) {
    if (unsaved && checkpoint_step_ != state_.step) LH_RETURN_IF_ERROR(Checkpoint(false));
    return std::optional<Outcome>(Outcome::kStopped);
  }
  return std::optional<Outcome>();
}

absl::StatusOr<Outcome> Trainer::Run() {
  absl::StatusOr<Outcome> outcome = RunSteps();
  // Where it ended early, more may be queued than was read.
  exec_->Synchronize();
  in_flight_.reset();
  return outcome;
}

absl::StatusOr<Outcome> Trainer::RunSteps() {
  if (state_.training_done) return Outcome::kFinished;
  const Hyper& hyper = options_.hyper;
  const auto due = [this](int64_t every) { return every > 0 && state_.step % every == 0; };
  if (state_.step == 0 || state_.eval_pending) {
    LH_ASSIGN_OR_RETURN(const std::optional<Outcome> stop, EvaluateAtBoundary());
    if (stop.has_value()) return *stop;
  }
  while (state_.step < state_.total_steps) {
    LH_ASSIGN_OR_RETURN(std::optional<Outcome> stop, AtBoundary());
    if (stop.has_value()) return *stop;
    LH_ASSIGN_OR_RETURN(const bool complete, Step());
    if (!complete) return Outcome::kCancelled;
    if (in_flight_.has_value()) continue;
    if (state_.step == state_.total_steps) break;
    if (due(hyper.eval_every_steps)) {
      LH_ASSIGN_OR_RETURN(stop, EvaluateAtBoundary());
      if (stop.has_value()) return *stop;
    }
    // (Where a hold broke into the evaluation, this step's is written already, and may be on its way to the store.)
    if (due(hyper.checkpoint_every_steps) && checkpoint_step_ != state_.step) LH_RETURN_IF_ERROR(Checkpoint(false));
  }
  LH_ASSIGN_OR_RETURN(const std::optional<Outcome> stop, EvaluateAtBoundary());
  if (stop.has_value()) return *stop;
  state_.training_done = true;
  if (checkpoint_step_ != state_.step) LH_RETURN_IF_ERROR(Checkpoint(true));
  return Outcome::kFinished;
}

}  // namespace longhaul::train
