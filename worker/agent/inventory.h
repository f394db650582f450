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
  // So much of models that are new here is read in one go, for their digests: half a minute of a slow disk, less than
  // the shortest time after which a silent worker is lost.
  int64_t new_model_bytes = int64_t{1} << 30;
};

// Paths of the models that were left for another time: together with what was read they are larger than
// new_model_bytes. What is known of them can be offered at once, and the scheduler hears of this worker meanwhile.
using UnreadModels = std::set<std::string>;

struct Inventory {
  v1::WorkerInventory proto;
  ModelOffer models;  // those of `proto`
  UnreadModels unread;
};

// Models: every .gguf file and every folder with a config.json or a .gguf directly under a model folder, or the model
// folder itself where it is one. The name is the file's without .gguf, or the folder's; a name that comes twice is an
// error at the start, later the second is left out. One that cannot be used is told to `log` and left out.
// A digest is kept in the state folder as soon as it is known.
// INVALID_ARGUMENT where an option cannot be met, NOT_FOUND where a model folder is absent, CANCELLED soon after
// `cancelled` says so: a large model's digest takes minutes.
absl::StatusOr<Inventory> TakeInventory(const InventoryOptions& options,
                                        const std::function<void(const std::string&)>& log,
                                        const std::function<bool()>& cancelled = nullptr);
// The models alone, as they are now. What is as it was in `before` is not read again; of the paths in `changing`, which
// are still written to, nothing is read: they are offered only where they are as they were. The first new one is read
// however large it is, so that a worker comes to the end of them; with `unread` null all are. The same errors.
absl::StatusOr<ModelOffer> TakeModels(const InventoryOptions& options, const ModelOffer& before,
                                      const std::set<std::string>& changing,
                                      const std::function<void(const std::string&)>& log,
                                      const std::function<bool()>& cancelled = nullptr, UnreadModels* unread = nullptr);

}  // namespace longhaul::agent
