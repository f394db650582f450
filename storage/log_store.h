// What attempts printed: logs/<job>/<attempt>.log of the state folder, appended in order as agents ship it, and an
// empty <attempt>.log.complete once nothing follows. Not fsynced at each append: a log is for people, and the agent
// keeps its own until the attempt is acknowledged. Job ids are checked to be plain names. Thread-safe. Errors:
// OUT_OF_RANGE LOG_GAP names the size to continue from; RESOURCE_EXHAUSTED DISK_FULL; INVALID_ARGUMENT for a bad name.
#pragma once

#include <array>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/limits.h"

namespace longhaul::storage {

class LogStore {
 public:
  struct Chunk {
    std::string data;
    int64_t offset = 0;     // of data's first byte
    bool complete = false;  // the log is complete and data reaches its end
  };

  // What would leave less than `min_free_bytes` of the disk is refused.
  static absl::StatusOr<std::unique_ptr<LogStore>> Open(const std::string& state_dir,
                                                        int64_t min_free_bytes = limits::kMinFreeDiskBytes);

  // Appends what of `data` at `offset` is not there yet; repeated calls change nothing. Returns the offset to continue
  // from: the log's size, or, where it has come to limits::kMaxStoredLogBytes and ends with a line that says so, the
  // end of `data`, of which nothing more is kept.
  absl::StatusOr<int64_t> Append(const std::string& job_id, int attempt, int64_t offset, std::string_view data,
                                 bool complete);
  // Up to `most_bytes` at `offset`; empty at or past the end, and where nothing was written yet.
  absl::StatusOr<Chunk> Read(const std::string& job_id, int attempt, int64_t offset, int64_t most_bytes);
  absl::Status Delete(const std::string& job_id);
  // Up to `most` of the jobs that have logs, the next ones each call; fewer at the end, and then from the begin again.
  absl::StatusOr<std::vector<std::string>> NextJobs(int most);

 private:
  LogStore(std::string logs_dir, int64_t min_free_bytes)
      : logs_dir_(std::move(logs_dir)), min_free_bytes_(min_free_bytes) {}
  absl::Status CheckSpace(int64_t bytes_to_come) const;
  absl::StatusOr<std::string> LogPath(const std::string& job_id, int attempt) const;
  std::mutex& MutexOf(const std::string& path);

  const std::string logs_dir_;
  const int64_t min_free_bytes_;
  std::array<std::mutex, 64> mutexes_;        // each guards the files whose path hashes to it
  std::mutex walk_mutex_;                     // guards walk_
  std::filesystem::directory_iterator walk_;  // where NextJobs goes on; at the end = at the begin
};

}  // namespace longhaul::storage
