#include "storage/log_store.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <functional>

#include "base/env.h"
#include "base/errno_status.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul::storage {
namespace {

constexpr char kCompleteSuffix[] = ".complete";

bool PlainName(const std::string& name) {
  return !name.empty() && static_cast<int>(name.size()) <= limits::kMaxJobIdBytes &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_'; });
}

// Ends a log that has reached its limit, which then has exactly kMaxStoredLogBytes.
constexpr std::string_view kCutLine = "\n[the rest of this log is not kept: it has reached its limit]\n";

// What of `data` a log of `size` bytes takes.
std::string Kept(std::string_view data, int64_t size) {
  const int64_t room = std::max<int64_t>(0, limits::kMaxStoredLogBytes - static_cast<int64_t>(kCutLine.size()) - size);
  if (static_cast<int64_t>(data.size()) <= room) return std::string(data);
  return std::string(data.substr(0, static_cast<size_t>(room))) + std::string(kCutLine);
}

std::string FolderOf(const std::string& path) { return path.substr(0, path.rfind('/')); }

}  // namespace

absl::StatusOr<std::unique_ptr<LogStore>> LogStore::Open(const std::string& state_dir, int64_t min_free_bytes) {
  const std::string logs_dir = JoinPath(state_dir, "logs");
  LH_RETURN_IF_ERROR(CreateDirs(logs_dir));
  return std::unique_ptr<LogStore>(new LogStore(logs_dir, min_free_bytes));
}

absl::StatusOr<std::string> LogStore::LogPath(const std::string& job_id, int attempt) const {
  if (!PlainName(job_id)) return InvalidField("job_id", "is not a job's id");
  if (attempt < 1) return InvalidField("attempt", "is " + std::to_string(attempt) + "; the first attempt is 1");
  return JoinPath(JoinPath(logs_dir_, job_id), std::to_string(attempt) + ".log");
}

std::mutex& LogStore::MutexOf(const std::string& path) {
  return mutexes_[std::hash<std::string>()(path) % mutexes_.size()];
}

absl::Status LogStore::CheckSpace(int64_t bytes_to_come) const {
  LH_ASSIGN_OR_RETURN(const int64_t free, DiskFreeBytes(logs_dir_));
  if (free - bytes_to_come >= min_free_bytes_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kResourceExhausted, "DISK_FULL",
                   "the scheduler's disk has " + FormatBytes(free) + " free and keeps " + FormatBytes(min_free_bytes_) +
                       " for its database: no log is taken until there is room");
}

absl::StatusOr<int64_t> LogStore::Append(const std::string& job_id, int attempt, int64_t offset, std::string_view data,
                                         bool complete) {
  LH_ASSIGN_OR_RETURN(const std::string path, LogPath(job_id, attempt));
  std::lock_guard lock(MutexOf(path));
  LH_RETURN_IF_ERROR(CreateDirs(FolderOf(path)));
  LH_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path));
  const int64_t size = file.size();
  // A full log takes everything that comes and keeps none of it: its agent has to come to the end.
  if (offset < 0 || (offset > size && size < limits::kMaxStoredLogBytes)) {
    return MakeError(absl::StatusCode::kOutOfRange, "LOG_GAP",
                     "log data at offset " + std::to_string(offset) + " of " + job_id + ", whose log has " +
                         std::to_string(size) + " bytes: continue from there");
  }
  const int64_t end = offset + static_cast<int64_t>(data.size());
  data.remove_prefix(std::min<size_t>(data.size(), static_cast<size_t>(std::max<int64_t>(0, size - offset))));
  if (!data.empty() && size < limits::kMaxStoredLogBytes) {
    LH_RETURN_IF_ERROR(CheckSpace(static_cast<int64_t>(data.size())));
    if (!Failpoint("log_append").ok()) return ErrnoStatus("append to", path, EIO);
    LH_RETURN_IF_ERROR(file.Append(Kept(data, size)));
  }
  if (complete) {
    LH_RETURN_IF_ERROR(file.Sync());
    LH_RETURN_IF_ERROR(WriteFileAtomic(path + kCompleteSuffix, ""));
  }
  return std::max(file.size(), end);
}

absl::StatusOr<LogStore::Chunk> LogStore::Read(const std::string& job_id, int attempt, int64_t offset,
                                               int64_t most_bytes) {
  LH_ASSIGN_OR_RETURN(const std::string path, LogPath(job_id, attempt));
  if (offset < 0) return InvalidField("offset", "is " + std::to_string(offset) + "; must be 0 or more");
  std::lock_guard lock(MutexOf(path));
  Chunk chunk;
  chunk.offset = offset;
  const bool marked = FileExists(path + kCompleteSuffix);
  if (!FileExists(path)) {
    chunk.complete = marked;
    return chunk;
  }
  LH_ASSIGN_OR_RETURN(const int64_t size, FileSize(path));
  if (offset < size && most_bytes > 0) {
    LH_ASSIGN_OR_RETURN(chunk.data, ReadFileRange(path, offset, std::min(most_bytes, size - offset)));
  }
  chunk.complete = marked && offset + static_cast<int64_t>(chunk.data.size()) >= size;
  return chunk;
}

absl::Status LogStore::Delete(const std::string& job_id) {
  LH_RETURN_IF_ERROR(LogPath(job_id, 1).status());
  return RemoveTree(JoinPath(logs_dir_, job_id));
}

absl::StatusOr<std::vector<std::string>> LogStore::NextJobs(int most) {
  const std::filesystem::directory_iterator end;
  std::lock_guard lock(walk_mutex_);
  std::error_code error;
  if (walk_ == end) walk_ = std::filesystem::directory_iterator(logs_dir_, error);
  std::vector<std::string> ids;
  while (!error && walk_ != end && static_cast<int>(ids.size()) < most) {
    const std::string name = walk_->path().filename().string();
    if (PlainName(name)) ids.push_back(name);
    walk_.increment(error);
  }
  if (!error) return ids;
  walk_ = end;
  return ErrnoStatus("list", logs_dir_, error.value());
}

}  // namespace longhaul::storage
