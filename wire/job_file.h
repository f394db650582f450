// A job as people write it: YAML (so also JSON) whose keys are the proto's field names in snake_case.
//
//   suffix: glosses                    # fields of CreateFineTuneJobRequest
//   labels: {team: words}
//   spec:                              # JobSpec; its fields may also stand at the top
//     model: SmolLM2-135M-Instruct
//     dataset: {file_name: train.jsonl}   # without sha256: a local file, relative to this one, uploaded first
//     hyperparameters: {lora_rank: 16, learning_rate: 5e-4, schedule: cosine}
//
// Enum values are the proto's, with or without their prefix, in either case. Errors are INVALID_ARGUMENT and list every
// field at fault with its path; an unknown key gets the nearest known one.
#pragma once

#include <yaml-cpp/yaml.h>

#include <string>

#include "absl/status/statusor.h"
#include "longhaul/v1/fine_tune_service.pb.h"

namespace longhaul::wire {

// The file's tree with spec fields moved under `spec` and local dataset paths made relative to the working folder.
absl::StatusOr<YAML::Node> ReadJobFile(const std::string& path);

// `origin` is what errors name: the file's path, or "command line".
absl::StatusOr<v1::CreateFineTuneJobRequest> JobRequestFromYaml(const YAML::Node& root, const std::string& origin);

}  // namespace longhaul::wire
