// What this machine offers: its devices and the models under the given folders.
//
// A model's content digest and a device's measured speed are kept in files of the state folder, so that only what has
// changed is read again: a digest belongs to ModelSource::Fingerprint, a speed to (CPU model,
// threads, ISA) or (GPU, driver, libraries).
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "longhaul/v1/worker_service.pb.h"
#include "worker/agent/local_model.h"

namespace longhaul::agent {

struct InventoryOptions {
  std::vector<std::string> model_dirs;
  std::string state_dir;
  int64_t host_bytes = 0;    // 0 = what other programs leave, less a reserve (host_memory.h)
  int cpu_threads = 0;       // 0 = all that the affinity mask allows
  std::string trainer_path;  // longhaul-train, which is asked for the GPUs; "" = none are looked for
};

struct Inventory {
  v1::WorkerInventory proto;
  ModelOffer models;  // those of `proto`
};

// Models: every .gguf file and every folder with a config.json or a .gguf directly under a model folder, or the model
// folder itself where it is one. The name is the file's without .gguf, or the folder's; a name that comes twice is an
// error. One that cannot be used is told to `log` and left out.
// INVALID_ARGUMENT where an option cannot be met, NOT_FOUND where a model folder is absent, CANCELLED soon after
// `cancelled` says so: a large model's digest takes minutes.
absl::StatusOr<Inventory> TakeInventory(const InventoryOptions& options,
                                        const std::function<void(const std::string&)>& log,
                                        const std::function<bool()>& cancelled = nullptr);
// The models alone, as they are now. What is as it was in `before` is not read again; of the paths in `changing`, which
// are still written to, nothing is read: they are offered only where they are as they were. The same errors.
absl::StatusOr<ModelOffer> TakeModels(const InventoryOptions& options, const ModelOffer& before,
                                      const std::set<std::string>& changing,
                                      const std::function<void(const std::string&)>& log,
                                      const std::function<bool()>& cancelled = nullptr);

}  // namespace longhaul::agent
