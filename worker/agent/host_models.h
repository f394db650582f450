// The models of this host, from the start of its agent to its end: what is known of them at once, and what a look at
// the model folders finds since, the new ones that were too large to be read before the agent has a session.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "worker/agent/inventory.h"
#include "worker/agent/local_model.h"
#include "worker/agent/model_watch.h"

namespace longhaul::agent {

// One thread at a time.
class HostModels {
 public:
  // `cancelled` is asked while a model is read, on the thread that calls.
  HostModels(const InventoryOptions& options, std::function<void(const std::string&)> log,
             std::function<bool()> cancelled);
  HostModels(const HostModels&) = delete;
  HostModels& operator=(const HostModels&) = delete;

  // What is offered first. Once, before any look. Errors: TakeInventory's.
  absl::StatusOr<Inventory> AtStart();
  // ModelWatch::Look. Of several large models that are new each look reads one.
  absl::StatusOr<std::optional<ModelOffer>> Look(bool anyway) { return watch_.Look(anyway); }

 private:
  const InventoryOptions options_;
  const std::function<void(const std::string&)> log_;
  const std::function<bool()> cancelled_;
  ModelOffer offered_;
  ModelWatch watch_;
};

}  // namespace longhaul::agent
