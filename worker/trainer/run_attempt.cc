#include "worker/trainer/run_attempt.h"

#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kernels/cuda_error.h"
#include "model/memory_plan.h"
#include "worker/train/trainer.h"
#include "worker/trainer/batches.h"
#include "worker/trainer/probe_devices.h"
#include "worker/trainer/run_watch.h"

namespace longhaul::trainer {
namespace {

// The reading of a large dataset takes minutes: a cancel does not wait for it.
std::function<bool()> SignalCame(const AttemptContext& context) {
  return [&context] { return StoppedBefore(context.signals).has_value(); };
}

// What is trained on must be what the digest names: in the adapter's card, in checkpoints, in the cache of bases.
absl::StatusOr<Inputs> LoadAttemptInputs(const AttemptContext& context) {
  LH_ASSIGN_OR_RETURN(Inputs inputs, LoadInputs(context.spec.spec(), context.paths, SignalCame(context)));
  LH_RETURN_IF_ERROR(train::CheckFingerprint(inputs.model, context.spec.model_fingerprint()));
  return inputs;
}

absl::StatusOr<v1::TrainerExit> Validate(const AttemptContext& context) {
  LH_ASSIGN_OR_RETURN(const Inputs inputs, LoadAttemptInputs(context));
  v1::TrainerEvent event;
  *event.mutable_data_report() = inputs.report;
  context.events->AddDurable(event);
  LH_RETURN_IF_ERROR(CheckReport(inputs.report, context.spec.spec()));
  return ExitOf(v1::TRAINER_EXIT_SUCCEEDED, "");
}

// Of the adapter as it is: not of an earlier step, where the last evaluation did not count.
std::optional<double> EvalAfter(const train::TrainerState& state) {
  return state.eval_last_step == state.step ? state.eval_last : std::nullopt;
}

v1::TrainingResult ResultOf(const train::TrainerState& state) {
  v1::TrainingResult result;
  result.set_steps(state.step);
  result.set_trained_tokens(state.trained_tokens);
  result.set_final_loss(state.last_loss);
  if (state.eval_before.has_value()) result.set_eval_loss_before(*state.eval_before);
  if (const auto after = EvalAfter(state); after.has_value()) result.set_eval_loss_after(*after);
  result.set_train_seconds(state.train_seconds);
  result.set_skipped_updates(state.skipped_updates);
  return result;
}

std::string Number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

// Facts of the run that the same run gives again: no times, no machine.
train::ExportFacts FactsOf(const AttemptContext& context, const Inputs& inputs, const train::TrainerState& state) {
  const v1::JobSpec& spec = context.spec.spec();
  train::ExportFacts facts;
  facts.base_model = context.spec.model_name().empty() ? spec.model() : context.spec.model_name();
  facts.card = {{"Base model digest (SHA-256)", context.spec.model_digest()},
                {"Dataset", spec.dataset().file_name()},
                {"Dataset digest (SHA-256)", spec.dataset().sha256()},
                {"Examples", FormatCount(static_cast<int64_t>(inputs.train.size()))},
                {"Updates", FormatCount(state.step)},
                {"Tokens seen", FormatCount(state.trained_tokens)},
                {"Sequence length", FormatCount(spec.hyperparameters().max_sequence_length())},
                {"Learning rate", Number("%g", spec.hyperparameters().learning_rate())},
                {"Seed", std::to_string(spec.hyperparameters().seed())},
                {"Loss of the last update", Number("%.4f", state.last_loss)}};
  if (state.eval_before.has_value())
    facts.card.emplace_back("Held-out loss before", Number("%.4f", *state.eval_before));
  if (const auto after = EvalAfter(state); after.has_value())
    facts.card.emplace_back("Held-out loss after", Number("%.4f", *after));
  return facts;
}

absl::StatusOr<v1::TrainerExit> ExportArtifact(const AttemptContext& context, const Inputs& inputs,
                                               const train::Trainer& trainer) {
  LH_RETURN_IF_ERROR(CreateDirs(context.dir.ArtifactDir()));
  LH_RETURN_IF_ERROR(trainer.Export(context.dir.ArtifactDir(), FactsOf(context, inputs, trainer.state())));
  v1::TrainerEvent event;
  for (const std::string& file : train::ExportedFiles()) event.mutable_artifact()->add_files(file);
  *event.mutable_artifact()->mutable_result() = ResultOf(trainer.state());
  context.events->AddDurable(event);
  LH_RETURN_IF_ERROR(context.events->status());
  LH_RETURN_IF_ERROR(Failpoint("train_artifact_written"));
  return ExitOf(v1::TRAINER_EXIT_SUCCEEDED, "");
}

absl::StatusOr<train::TrainerOptions> OptionsOf(const AttemptContext& context, const data::Tokenizer& tokenizer) {
  const v1::AttemptSpec& spec = context.spec;
  train::TrainerOptions options;
  auto plan = MemoryPlanFromJson(spec.memory_plan_json());
  // Whatever is wrong with it, the user has not written it.
  if (!plan.ok()) {
    return MakeError(plan.status().code(), "INVALID_PLAN",
                     "the attempt's memory plan: " + std::string(plan.status().message()));
  }
  options.plan = *std::move(plan);
  options.hyper = HyperOfSpec(spec.spec());
  // As many processors as threads: whoever started us gave us these alone (the agent does).
  options.pin_threads = HostCpuThreads() == options.plan.choices.cpu_threads;
  if (options.plan.device == DeviceKind::kCuda) {
    LH_ASSIGN_OR_RETURN(options.cuda_device, CudaDeviceOfId(spec.device_id()));
  }
  options.checkpoint_root = context.dir.CheckpointsDir();
  if (spec.has_resume_from()) options.resume_from = context.dir.ResumeDir();
  if (!spec.cache_dir().empty()) options.base_cache_folder = JoinPath(spec.cache_dir(), "base");
  options.model_digest = spec.model_digest();
  options.data_signature = DataSignature(spec.spec(), spec.model_digest(), tokenizer);
  // The agent removes them once the store has them; before that none may go.
  if (!context.alone) options.checkpoints_kept = std::numeric_limits<int>::max();
  return options;
}

// A GPU's errors are seen by whatever call comes next: the step that failed is the first that was not reported, or one
// begun since.
std::string WhenInRun(const train::Trainer& trainer, int64_t reported) {
  if (trainer.last_begun() <= reported) return "after step " + std::to_string(reported);
  if (kernels::CudaLaunchesBlock()) return "in step " + std::to_string(trainer.last_begun());
  const std::string first = "in step " + std::to_string(reported + 1);
  return trainer.last_begun() == reported + 1 ? first : first + " or " + std::to_string(trainer.last_begun());
}

// A context is of no use after a CUDA call that failed: the attempt ends, with the step that it was in.
absl::StatusOr<train::Outcome> RunEngine(const train::TrainerOptions& options, const AttemptContext& context,
                                         formats::ModelSource source, DatasetBatches* train, DatasetBatches* eval,
                                         RunWatch* watch, std::unique_ptr<train::Trainer>* trainer) {
  try {
    {
      // The base is in the arena afterwards; the pages of its file are not part of the plan and go.
      const formats::ModelSource model = std::move(source);
      const train::ModelWeightSource weights(model, context.spec.model_fingerprint());
      LH_ASSIGN_OR_RETURN(*trainer, train::Trainer::Create(options, weights, train, eval, watch, watch, context.clock));
    }
    return (*trainer)->Run();
  } catch (const kernels::CudaError& error) {
    return CudaFailure(error, *trainer == nullptr ? "while the model was loaded" : WhenInRun(**trainer, watch->step()));
  }
}

absl::StatusOr<v1::TrainerExit> Train(const AttemptContext& context) {
  const v1::JobSpec& spec = context.spec.spec();
  LH_ASSIGN_OR_RETURN(Inputs inputs, LoadAttemptInputs(context));
  LH_RETURN_IF_ERROR(CheckReport(inputs.report, spec));
  LH_ASSIGN_OR_RETURN(const train::TrainerOptions options, OptionsOf(context, inputs.tokenizer));
  DatasetBatches train_batches(&inputs.train, TrainBatches(spec), "the dataset");
  std::unique_ptr<DatasetBatches> eval_batches;
  if (!inputs.eval.empty()) {
    eval_batches = std::make_unique<DatasetBatches>(&inputs.eval, EvalBatches(spec), "the evaluation data");
  }
  RunWatch watch(context, options.plan);
  if (const auto exit = watch.StoppedBefore(); exit.has_value()) return *exit;
  std::unique_ptr<train::Trainer> trainer;
  const absl::StatusOr<train::Outcome> outcome =
      RunEngine(options, context, std::move(inputs.model), &train_batches, eval_batches.get(), &watch, &trainer);
  // What the watch has seen explains a run that ended early.
  LH_RETURN_IF_ERROR(watch.status());
  if (!outcome.ok()) return outcome.status();
  switch (*outcome) {
    case train::Outcome::kFinished:
      break;
    case train::Outcome::kStopped:
      return ExitOf(v1::TRAINER_EXIT_CHECKPOINTED, "stopped after update " + std::to_string(trainer->state().step));
    case train::Outcome::kCancelled:
      return watch.CancelledExit();
  }
  return ExportArtifact(context, inputs, *trainer);
}

}  // namespace

v1::TrainerExit RunAttempt(const AttemptContext& context) {
  const auto exit = context.spec.kind() == v1::ATTEMPT_KIND_VALIDATE ? Validate(context) : Train(context);
  if (exit.ok() && context.events->status().ok()) return *exit;
  if (absl::IsCancelled(exit.status())) {
    if (const auto stopped = StoppedBefore(context.signals); stopped.has_value()) return *stopped;
  }
  return ExitOfError(exit.ok() ? context.events->status() : exit.status());
}

}  // namespace longhaul::trainer
