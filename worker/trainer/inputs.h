// What an attempt trains on, loaded and judged: the model's description, its tokenizer and template, the examples. The
// weights themselves are read by the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "longhaul/v1/job.pb.h"
#include "worker/data/chat_template.h"
#include "worker/data/dataset.h"
#include "worker/data/packing.h"
#include "worker/data/tokenizer.h"
#include "worker/formats/model_source.h"
#include "worker/train/hyper.h"

namespace longhaul::trainer {

struct InputPaths {
  std::string model;
  std::string dataset;
  std::string eval_dataset;  // "" = none
};

struct Inputs {
  formats::ModelSource model;
  data::Tokenizer tokenizer;
  std::optional<data::ChatTemplate> chat;  // nullopt: the model has none
  std::vector<data::Example> train;
  std::vector<data::Example> eval;  // the evaluation file's, or held out
  v1::DataReport report;
};

struct Model {
  formats::ModelSource source;
  data::Tokenizer tokenizer;
  std::optional<data::ChatTemplate> chat;
};

// Errors carry reason INVALID_MODEL, or the file system's.
absl::StatusOr<Model> OpenModel(const std::string& path);

// Bad lines are in the report, not an error. INVALID_ARGUMENT INVALID_DATASET where eval_examples leaves nothing to
// train on; INVALID_FIELD where the run would be too long; OpenModel's errors; the file system's; CANCELLED soon after
// `cancelled` says so. REQUIRES: `spec` is resolved.
absl::StatusOr<Inputs> LoadInputs(const v1::JobSpec& spec, const InputPaths& paths,
                                  const std::function<bool()>& cancelled = nullptr);

// OK where the data can be trained on; else INVALID_DATASET with the first error and how many there are.
absl::Status CheckReport(const v1::DataReport& report, const v1::JobSpec& spec);

train::Hyper HyperOfSpec(const v1::JobSpec& spec);
data::BatchOptions TrainBatches(const v1::JobSpec& spec);
data::BatchOptions EvalBatches(const v1::JobSpec& spec);

// SHA-256 over everything that decides the batches: a resume must share it.
std::string DataSignature(const v1::JobSpec& spec, const std::string& model_digest, const data::Tokenizer& tokenizer);

}  // namespace longhaul::trainer
