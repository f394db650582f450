#include "worker/trainer/inputs.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/attempt/utf8.h"
#include "worker/data/packing.h"

namespace longhaul::trainer {
namespace {

// What is wrong with a model is the model's fault; what is wrong with this machine is not.
absl::Status AsModelError(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  if (reason == "DISK_FULL" || reason == "HOST_OOM" || reason == "IO_ERROR" || reason == "TOO_MANY_OPEN_FILES")
    return status;
  return MakeError(status.code(), "INVALID_MODEL", std::string(status.message()));
}

data::LineFormat FormatOf(v1::DatasetFormat format) {
  switch (format) {
    case v1::DATASET_FORMAT_MESSAGES:
      return data::LineFormat::kMessages;
    case v1::DATASET_FORMAT_TEXT:
      return data::LineFormat::kText;
    default:
      return data::LineFormat::kAuto;
  }
}

data::DatasetOptions OptionsOf(const v1::JobSpec& spec, const v1::Dataset& dataset,
                               const std::function<bool()>& cancelled) {
  data::DatasetOptions options;
  options.format = FormatOf(dataset.format());
  options.max_sequence_length = spec.hyperparameters().max_sequence_length();
  options.train_on_responses_only = spec.hyperparameters().train_on_responses_only();
  options.cancelled = cancelled;
  return options;
}

std::string NameOf(const v1::Dataset& dataset, const char* otherwise) {
  return dataset.file_name().empty() ? otherwise : dataset.file_name();
}

void AddErrors(const data::DatasetReport& from, const std::string& file_name, v1::DataReport* report) {
  report->set_error_count(report->error_count() + from.error_count);
  for (const data::LineError& error : from.errors) {
    if (report->errors_size() >= limits::kMaxDatasetErrorsReported) return;
    v1::DataError* out = report->add_errors();
    out->set_line(error.line);
    out->set_field(attempt::CutUtf8(error.field, limits::kMaxDataErrorBytes));
    out->set_reason(attempt::CutUtf8(error.reason, limits::kMaxDataErrorBytes));
    out->set_file_name(attempt::CutUtf8(file_name, limits::kMaxDatasetFileNameBytes));
  }
}

v1::DataReport ReportOf(const data::DatasetReport& train, const v1::JobSpec& spec) {
  v1::DataReport report;
  report.set_examples(train.examples);
  report.set_tokens(train.tokens);
  report.set_trained_tokens(train.trained_tokens);
  report.set_dropped(train.dropped);
  report.set_truncated(train.truncated);
  report.set_longest_tokens(train.longest_tokens);
  for (const data::LengthBucket& bucket : train.length_histogram) {
    v1::LengthBucket* out = report.add_length_histogram();
    out->set_up_to_tokens(bucket.up_to_tokens);
    out->set_examples(bucket.examples);
  }
  AddErrors(train, NameOf(spec.dataset(), "dataset"), &report);
  return report;
}

// The run's length follows from how the rows pack, so that is done here once, and again when training.
absl::Status AddRun(const v1::JobSpec& spec, const Inputs& inputs, v1::DataReport* report) {
  int64_t tokens = 0;
  for (const data::Example& example : inputs.train) tokens += static_cast<int64_t>(example.ids.size());
  report->set_tokens_per_epoch(tokens);
  report->set_eval_examples(static_cast<int64_t>(inputs.eval.size()));
  if (inputs.train.empty()) return absl::OkStatus();
  const data::BatchPlan batches(&inputs.train, TrainBatches(spec));
  LH_RETURN_IF_ERROR(train::CheckTotalSteps(HyperOfSpec(spec), batches.UpdatesPerEpoch()));
  report->set_total_steps(train::TotalSteps(HyperOfSpec(spec), batches.UpdatesPerEpoch()));
  return absl::OkStatus();
}

absl::Status LoadEval(const v1::JobSpec& spec, const InputPaths& paths, const std::function<bool()>& cancelled,
                      Inputs* inputs) {
  const int64_t held_out = spec.hyperparameters().eval_examples();
  if (!paths.eval_dataset.empty()) {
    const data::ChatTemplate* chat = inputs->chat.has_value() ? &*inputs->chat : nullptr;
    LH_ASSIGN_OR_RETURN(data::Dataset eval, data::LoadDataset(paths.eval_dataset, inputs->tokenizer, chat,
                                                              OptionsOf(spec, spec.eval_dataset(), cancelled)));
    AddErrors(eval.report, NameOf(spec.eval_dataset(), "eval dataset"), &inputs->report);
    // The memory plan must cover the evaluation's documents too.
    inputs->report.set_longest_tokens(std::max(inputs->report.longest_tokens(), eval.report.longest_tokens));
    inputs->report.set_eval_tokens(eval.report.tokens);
    inputs->eval = std::move(eval.examples);
  } else if (held_out > 0 && !inputs->train.empty() && inputs->report.error_count() == 0) {
    // (A dataset with bad lines is refused for them; how many good ones are left says nothing then.)
    auto eval = data::HoldOut(held_out, spec.hyperparameters().seed(), &inputs->train);
    if (!eval.ok()) return MakeError(eval.status().code(), "INVALID_DATASET", std::string(eval.status().message()));
    inputs->eval = *std::move(eval);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Model> OpenModel(const std::string& path) {
  auto source = formats::ModelSource::Open(path);
  if (!source.ok()) return AsModelError(source.status());
  auto tokenizer = source->gguf() != nullptr ? data::Tokenizer::FromGguf(*source->gguf())
                                             : data::Tokenizer::FromHuggingFaceFolder(source->folder());
  if (!tokenizer.ok()) return AsModelError(tokenizer.status());
  if (tokenizer->vocab_size() > source->shape().vocab) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL",
                     path + ": the tokenizer has " + FormatCount(tokenizer->vocab_size()) +
                         " tokens, the model's vocabulary " + FormatCount(source->shape().vocab));
  }
  Model model{*std::move(source), *std::move(tokenizer), std::nullopt};
  auto chat = data::ChatTemplate::Create(model.tokenizer);
  if (chat.ok()) {
    model.chat = *std::move(chat);
  } else if (ErrorReason(chat.status()) != "NO_CHAT_TEMPLATE") {
    return AsModelError(chat.status());
  }
  return model;
}

absl::StatusOr<Inputs> LoadInputs(const v1::JobSpec& spec, const InputPaths& paths,
                                  const std::function<bool()>& cancelled) {
  LH_ASSIGN_OR_RETURN(Model model, OpenModel(paths.model));
  Inputs inputs{std::move(model.source), std::move(model.tokenizer), std::move(model.chat), {}, {}, {}};
  const data::ChatTemplate* chat = inputs.chat.has_value() ? &*inputs.chat : nullptr;
  LH_ASSIGN_OR_RETURN(data::Dataset train, data::LoadDataset(paths.dataset, inputs.tokenizer, chat,
                                                             OptionsOf(spec, spec.dataset(), cancelled)));
  inputs.report = ReportOf(train.report, spec);
  inputs.train = std::move(train.examples);
  LH_RETURN_IF_ERROR(LoadEval(spec, paths, cancelled, &inputs));
  LH_RETURN_IF_ERROR(AddRun(spec, inputs, &inputs.report));
  return inputs;
}

absl::Status CheckReport(const v1::DataReport& report, const v1::JobSpec& spec) {
  if (report.error_count() > 0 && report.errors_size() > 0) {
    const v1::DataError& first = report.errors(0);
    std::string message = first.file_name() + " line " + std::to_string(first.line());
    if (!first.field().empty()) message += ", " + first.field();
    message += ": " + first.reason();
    if (report.error_count() > 1)
      message += " (and " + FormatCount(report.error_count() - 1) +
                 (report.error_count() == 2 ? " more bad line)" : " more bad lines)");
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_DATASET", message);
  }
  if (report.tokens_per_epoch() > 0) return absl::OkStatus();
  std::string message = NameOf(spec.dataset(), "the dataset") + " has no example to train on";
  if (report.dropped() > 0) {
    message += ": all " + FormatCount(report.dropped()) + " have nothing that trains within " +
               FormatCount(spec.hyperparameters().max_sequence_length()) + " tokens";
  }
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_DATASET", message);
}

train::Hyper HyperOfSpec(const v1::JobSpec& spec) {
  const v1::Hyperparameters& from = spec.hyperparameters();
  train::Hyper hyper;
  hyper.lora_alpha = from.lora_alpha();
  hyper.lora_dropout = from.lora_dropout();
  hyper.use_rslora = from.use_rslora();
  hyper.learning_rate = from.learning_rate();
  hyper.schedule = from.schedule() == v1::LEARNING_RATE_SCHEDULE_COSINE     ? train::Schedule::kCosine
                   : from.schedule() == v1::LEARNING_RATE_SCHEDULE_CONSTANT ? train::Schedule::kConstant
                                                                            : train::Schedule::kLinear;
  hyper.warmup_ratio = from.warmup_ratio();
  hyper.warmup_steps = from.has_warmup_steps() ? from.warmup_steps() : -1;
  hyper.weight_decay = from.weight_decay();
  hyper.adam_beta1 = from.adam_beta1();
  hyper.adam_beta2 = from.adam_beta2();
  hyper.adam_epsilon = from.adam_epsilon();
  hyper.max_grad_norm = from.max_grad_norm();
  hyper.epochs = from.epochs();
  hyper.max_steps = from.max_steps();
  hyper.seed = from.seed();
  hyper.eval_every_steps = from.eval_every_steps();
  hyper.checkpoint_every_steps = from.checkpoint_every_steps();
  hyper.allow_nonidentical_resume = from.allow_nonidentical_resume();
  return hyper;
}

data::BatchOptions TrainBatches(const v1::JobSpec& spec) {
  const v1::Hyperparameters& hyper = spec.hyperparameters();
  data::BatchOptions options;
  options.row_tokens = hyper.max_sequence_length();
  options.pack = hyper.packing();
  options.batch_size = hyper.batch_size();
  options.accumulation_steps = hyper.gradient_accumulation_steps();
  options.shuffle = true;
  options.seed = hyper.seed();
  return options;
}

data::BatchOptions EvalBatches(const v1::JobSpec& spec) {
  data::BatchOptions options = TrainBatches(spec);
  options.accumulation_steps = 1;
  options.shuffle = false;
  return options;
}

std::string DataSignature(const v1::JobSpec& spec, const std::string& model_digest, const data::Tokenizer& tokenizer) {
  const v1::Hyperparameters& hyper = spec.hyperparameters();
  std::string all = "longhaul data 1";
  for (const std::string& part :
       {model_digest, tokenizer.digest(), spec.dataset().sha256(), std::to_string(spec.dataset().format()),
        spec.eval_dataset().sha256(), std::to_string(spec.eval_dataset().format()),
        std::to_string(hyper.max_sequence_length()), std::to_string(hyper.packing()),
        std::to_string(hyper.train_on_responses_only()), std::to_string(hyper.batch_size()),
        std::to_string(hyper.gradient_accumulation_steps()), std::to_string(hyper.seed()),
        std::to_string(hyper.eval_examples())}) {
    all += "\n" + part;
  }
  return Sha256Hex(all);
}

}  // namespace longhaul::trainer
