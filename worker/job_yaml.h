// A job file for a trainer that runs alone: the same YAML that `longhaul submit -f` takes (clients/cli/job_file.h), its
// spec at the top or under `spec`. What only a scheduler uses (labels, suffix, retry) is read and ignored.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "longhaul/v1/job.pb.h"

namespace longhaul::trainer {

// INVALID_ARGUMENT names file, line and field path. Dataset files named without sha256 are made relative to the job
// file's folder.
absl::StatusOr<v1::JobSpec> ReadJobYaml(const std::string& path);

}  // namespace longhaul::trainer
