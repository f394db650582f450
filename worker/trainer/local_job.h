// A job without a scheduler: `longhaul-train --job job.yaml --out DIR`. Does what the scheduler and the agent would:
// checks and resolves the spec, plans for this machine, and makes an attempt directory, which then runs as any other.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "longhaul/v1/trainer.pb.h"
#include "worker/trainer/inputs.h"

namespace longhaul::trainer {

struct LocalJobOptions {
  v1::JobSpec spec;     // unresolved; may be empty where the others say enough
  std::string out_dir;  // becomes the attempt directory; must be empty or absent
  std::string model;    // path; "" = spec.model is one
  std::string dataset;  // "" = spec.dataset.file_name
  std::string eval_dataset;
  int64_t host_bytes = 0;      // 0 = what is available now
  std::string device = "cpu";  // or "cuda", the first GPU; or a GPU's UUID
};

struct LocalJob {
  v1::AttemptSpec spec;
  InputPaths paths;
};

// Writes the spec into out_dir. Errors name the option or the field: bad spec, absent file, a plan that does not fit
// (with the bytes needed and there, by part), INVALID_MODEL, INVALID_DATASET.
absl::StatusOr<LocalJob> PrepareLocalJob(const LocalJobOptions& options,
                                         const std::function<void(const std::string&)>& log);

}  // namespace longhaul::trainer
