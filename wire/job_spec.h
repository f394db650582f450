// What a job spec may say and what it means where it says nothing. The scheduler, the CLI and a trainer that runs alone
// share this one copy. Pure, thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "longhaul/v1/job.pb.h"
#include "model/model_shape.h"

namespace longhaul::wire {

// What the caller may leave out: an estimate needs no dataset, and no model where it brings a shape.
struct JobSpecRules {
  bool require_model = true;
  bool require_dataset = true;
};

// Every fault at once: INVALID_ARGUMENT, reason INVALID_FIELD, one violation a fault with the field's path
// ("spec.hyperparameters.lora_rank"), its value and the limit. Unknown fields are faults. `shape` may be null; with it
// the sequence length is checked against the model's positions.
absl::Status ValidateJobSpec(const v1::JobSpec& spec, const ModelShape* shape, const JobSpecRules& rules = {});

// Fills in every default (the comments of job.proto) but two that only a device can answer: compute_type and
// cpu_threads stay open where they are. `model_storage` is Model.storage: "gguf:Q4_1", "safetensors:BF16". Target
// modules come out in the engine's order. Idempotent. REQUIRES: ValidateJobSpec(*spec, &shape) is OK.
void ResolveJobSpec(v1::JobSpec* spec, const ModelShape& shape, const std::string& model_storage);

}  // namespace longhaul::wire
