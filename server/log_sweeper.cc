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
  SweepDeleted();
  if (const absl::Status looked = SweepLogs(); !looked.ok()) {
    spdlog::warn("logs without a job: {}", std::string(looked.message()));
  }
}

bool LogSweeper::Remove(const std::string& id) {
  const absl::Status removed = steps_.remove(id);
  if (removed.ok()) {
    kept_.erase(id);
  } else if (kept_.insert(id).second) {
    spdlog::warn("the logs of deleted job {} stay for now: {}", id, std::string(removed.message()));
  }
  return removed.ok();
}

void LogSweeper::SweepDeleted() {
  const absl::StatusOr<std::vector<std::string>> ids = NextPage();
  absl::Status finished = ids.status();
  std::vector<std::string> gone;
  for (const std::string& id : ids.ok() ? *ids : std::vector<std::string>()) {
    if (Remove(id)) gone.push_back(id);
  }
  if (!gone.empty()) finished = steps_.forget(std::move(gone));
  if (!finished.ok()) spdlog::warn("logs of deleted jobs: {}", std::string(finished.message()));
}

// A job is there before its first log, and its id is nobody else's afterwards.
absl::Status LogSweeper::SweepLogs() {
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> ids, steps_.next_logs(limits::kMaxLogsPerSweep));
  for (const std::string& id : ids) {
    LH_ASSIGN_OR_RETURN(const bool exists, steps_.exists(id));
    if (!exists) Remove(id);
  }
  return absl::OkStatus();
}

}  // namespace longhaul::server
