#include "server/log_sweeper.h"

#include <utility>

#include "base/limits.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace longhaul::server {

absl::StatusOr<std::vector<std::string>> LogSweeper::NextPage() {
  LH_ASSIGN_OR_RETURN(std::vector<std::string> ids, steps_.list(after_, limits::kMaxDeletedJobsPerSweep));
  if (ids.empty() && !after_.empty()) {
    LH_ASSIGN_OR_RETURN(ids, steps_.list("", limits::kMaxDeletedJobsPerSweep));
  }
  after_ = ids.empty() ? "" : ids.back();
  return ids;
}

void LogSweeper::Sweep() {
  const absl::StatusOr<std::vector<std::string>> ids = NextPage();
  absl::Status finished = ids.status();
  std::vector<std::string> gone;
  for (const std::string& id : ids.ok() ? *ids : std::vector<std::string>()) {
    if (const absl::Status removed = steps_.remove(id); removed.ok()) {
      gone.push_back(id);
    } else if (kept_.insert(id).second) {
      spdlog::warn("the logs of deleted job {} stay for now: {}", id, std::string(removed.message()));
    }
  }
  for (const std::string& id : gone) kept_.erase(id);
  if (!gone.empty()) finished = steps_.forget(std::move(gone));
  if (!finished.ok()) spdlog::warn("logs of deleted jobs: {}", std::string(finished.message()));
}

}  // namespace longhaul::server
