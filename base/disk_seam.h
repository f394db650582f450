// Where every change that Longhaul makes to a disk passes, just before it is made: base/env and SQLite's files
// (storage/sqlite_vfs) tell it. A test puts a DiskSeam in, to delay, refuse or record: tests/fakes/power_cut_disk.h
// plays a disk that loses power. Without one: one atomic load.
#pragma once

#include <cstdint>
#include <string_view>

namespace longhaul {

struct DiskChange {
  enum class Kind {
    kCreate,    // an empty file; its folder entry lasts from the folder's next kSyncDir
    kWrite,     // `bytes` at `offset`
    kTruncate,  // to `offset` bytes
    kRename,    // to `to`
    kRemove,    // a file, or a folder with all that is in it
    kMakeDir,
    kSyncFile,  // what was written to the file lasts
    kSyncDir,   // the folder's entries last
  } kind = Kind::kWrite;
  std::string_view path{};
  std::string_view to{};
  int64_t offset = 0;
  std::string_view bytes{};
};

class DiskSeam {
 public:
  virtual ~DiskSeam() = default;
  // On the thread that is about to make the change. 0: it is made. Else an errno: it is not made and fails with that.
  virtual int Before(const DiskChange& change) = 0;
};

// Process-wide; null takes it out. The seam outlives its time here, and nothing changes a disk while it comes or goes.
void InstallDiskSeam(DiskSeam* seam);

// For whoever changes a disk: 0, or the errno to fail with.
int AskDiskSeam(const DiskChange& change);

}  // namespace longhaul
