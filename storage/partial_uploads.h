// Which unfinished uploads there are, and how much of the disk each space has of them (storage/blob_store.h): what they
// take counts before any of them is a blob. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace longhaul::storage {

// The most that a space may have, the upload that asks among them. One that is under way counts with all the bytes that
// it is said to get, any other with those of its file.
struct PartialBounds {
  int64_t files = std::numeric_limits<int64_t>::max();
  int64_t bytes = std::numeric_limits<int64_t>::max();
};

class PartialUploads {
 public:
  // A file that an earlier process has left.
  void Found(const std::string& path, const std::string& space, int64_t bytes);
  // From OK until End the file is the caller's alone. UNAVAILABLE BLOB_BUSY where it is somebody's, RESOURCE_EXHAUSTED
  // TOO_MANY_UPLOADS past the bounds. More of a file that is there is never too many files.
  absl::Status Begin(const std::string& path, const std::string& space, int64_t size_bytes,
                     const PartialBounds& bounds);
  // `bytes_left` < 0: there is no such file any more.
  void End(const std::string& path, int64_t bytes_left);
  // Asks `remove`, which says whether the file is gone now, unless it is somebody's: nobody begins it meanwhile.
  absl::StatusOr<bool> RemoveIdle(const std::string& path, const std::function<absl::StatusOr<bool>()>& remove);

 private:
  struct Partial {
    std::string space;
    int64_t bytes = 0;
    bool busy = false;
  };
  struct Totals {
    int64_t files = 0;
    int64_t bytes = 0;
  };
  void Forget(std::map<std::string, Partial>::iterator at);  // under mutex_
  Totals TotalsOf(const std::string& space) const;           // under mutex_

  std::mutex mutex_;                         // guards the two below
  std::map<std::string, Partial> partials_;  // by path
  std::map<std::string, Totals> totals_;     // by space; absent = none
};

}  // namespace longhaul::storage
