#include "worker/agent/host_models.h"

#include <set>
#include <utility>

#include "base/status_macros.h"

namespace longhaul::agent {

HostModels::HostModels(const InventoryOptions& options, std::function<void(const std::string&)> log,
                       std::function<bool()> cancelled)
    : options_(options),
      log_(std::move(log)),
      cancelled_(std::move(cancelled)),
      watch_(options_.model_dirs, [this](const std::set<std::string>& changing, std::set<std::string>* unread) {
        auto taken = TakeModels(options_, offered_, changing, log_, cancelled_, unread);
        if (taken.ok()) offered_ = *taken;
        return taken;
      }) {}

absl::StatusOr<Inventory> HostModels::AtStart() {
  LH_ASSIGN_OR_RETURN(Inventory inventory, TakeInventory(options_, log_, cancelled_));
  offered_ = inventory.models;
  watch_.Unread(inventory.unread);
  return inventory;
}

}  // namespace longhaul::agent
