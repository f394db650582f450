// Finishes deletions: removes the logs of deleted jobs, which a crash or a full disk may have left, and has those jobs
// forgotten. What cannot be removed is left for a later sweep, and keeps nobody from anything. Then it looks for logs
// of jobs that are not there: a piece that was let in just before its job was deleted begins the log anew. Not
// thread-safe.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace longhaul::server {

class LogSweeper {
 public:
  struct Steps {
    std::function<absl::StatusOr<std::vector<std::string>>(const std::string& after, int most)> list;  // as Store's
    std::function<absl::Status(const std::string& id)> remove;
    std::function<absl::Status(std::vector<std::string> ids)> forget;
    std::function<absl::StatusOr<std::vector<std::string>>(int most)> next_logs;  // as LogStore::NextJobs
    std::function<absl::StatusOr<bool>(const std::string& id)> exists;            // whether there is such a job
  };

  explicit LogSweeper(Steps steps) : steps_(std::move(steps)) {}

  // The next limits::kMaxDeletedJobsPerSweep, behind those of the last sweep; after the last of all the first again.
  // And the next limits::kMaxLogsPerSweep. Errors go to the log, a job's once.
  void Sweep();

 private:
  void SweepDeleted();
  absl::Status SweepLogs();
  bool Remove(const std::string& id);  // whether they are gone
  absl::StatusOr<std::vector<std::string>> NextPage();

  const Steps steps_;
  std::string after_;           // the last id of the last page
  std::set<std::string> kept_;  // could not be removed; told once each
};

}  // namespace longhaul::server
