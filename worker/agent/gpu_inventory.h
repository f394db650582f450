// The GPUs of this machine, as longhaul-train tells of them: it is run for that, so that no context, which would take
// device memory, is the agent's.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "longhaul/v1/worker_service.pb.h"

namespace longhaul::agent {

struct InventoryOptions;

// Adds them to `inventory`, which has the CPU device already. Whatever keeps a GPU from use, or all of them, is a line
// of `log` and no error: the CPU serves. Memory that other programs hold is not offered; while trainers of ours run on
// a GPU, what is offered stays what it was.
// CANCELLED soon after `cancelled` says so.
absl::Status AddGpus(const InventoryOptions& options, const std::function<void(const std::string&)>& log,
                     const std::function<bool()>& cancelled, v1::WorkerInventory* inventory);

}  // namespace longhaul::agent
