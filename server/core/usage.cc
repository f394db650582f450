#include "server/core/usage.h"

#include <algorithm>
#include <cmath>

#include "base/limits.h"

namespace longhaul::server {
namespace {

// Of the decay: usage falls to 1/e of itself in so many seconds.
const double kDecaySeconds = static_cast<double>(limits::kUsageHalfLifeSeconds) / std::log(2.0);

// A share below this is no share: the project is forgotten.
constexpr double kForgottenSeconds = 1e-3;

double Decay(double seconds) { return std::exp(-seconds / kDecaySeconds); }

}  // namespace

void UsageLedger::SetHeld(const std::map<std::string, ResourceVector>& held, int64_t boot_micros) {
  const double seconds = std::max<double>(0, static_cast<double>(boot_micros - now_boot_micros_) * 1e-6);
  const double kept = Decay(seconds);
  for (auto it = projects_.begin(); it != projects_.end();) {
    Entry& entry = it->second;
    bool any = false;
    for (int r = 0; r < kResources; ++r) {
      entry.used[r] = entry.used[r] * kept + entry.held[r] * kDecaySeconds * (1 - kept);
      any = any || entry.used[r] > kForgottenSeconds;
    }
    entry.held = {};
    it = any || held.contains(it->first) ? std::next(it) : projects_.erase(it);
  }
  for (const auto& [project, amounts] : held) projects_[project].held = amounts;
  now_boot_micros_ = boot_micros;
}

void UsageLedger::AddPast(const std::string& project, const ResourceVector& held, double seconds, double ago_seconds) {
  if (seconds <= 0 || ago_seconds < 0) return;
  Entry& entry = projects_[project];
  for (int r = 0; r < kResources; ++r) {
    entry.used[r] += held[r] * kDecaySeconds * (1 - Decay(seconds)) * Decay(ago_seconds);
  }
}

double UsageLedger::Share(const std::string& project, const ResourceVector& capacity) const {
  const auto found = projects_.find(project);
  if (found == projects_.end()) return 0;
  double share = 0;
  for (int r = 0; r < kResources; ++r) {
    if (capacity[r] > 0) share = std::max(share, found->second.used[r] / (capacity[r] * kDecaySeconds));
  }
  return share;
}

}  // namespace longhaul::server
