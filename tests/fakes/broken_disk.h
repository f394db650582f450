// A disk that refuses changes of some kinds with an errno, from the n-th one on, until it is mended. Process-wide while
// it lives. Not thread-safe: break and mend it while nothing changes the disk.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "base/disk_seam.h"

namespace longhaul {

inline const std::vector<DiskChange::Kind> kEveryChange = {
    DiskChange::Kind::kCreate,  DiskChange::Kind::kWrite,    DiskChange::Kind::kTruncate, DiskChange::Kind::kRename,
    DiskChange::Kind::kMakeDir, DiskChange::Kind::kSyncFile, DiskChange::Kind::kSyncDir};

class BrokenDisk final : public DiskSeam {
 public:
  BrokenDisk() { InstallDiskSeam(this); }
  ~BrokenDisk() override { InstallDiskSeam(nullptr); }
  void Break(int error_number, std::vector<DiskChange::Kind> kinds, int after = 0) {
    kinds_ = std::move(kinds);
    left_ = after;
    error_number_ = error_number;
  }
  void Mend() { error_number_ = 0; }
  int Before(const DiskChange& change) override {
    if (error_number_ == 0) return 0;
    if (std::find(kinds_.begin(), kinds_.end(), change.kind) == kinds_.end()) return 0;
    return --left_ < 0 ? error_number_ : 0;
  }

 private:
  int error_number_ = 0;
  int left_ = 0;
  std::vector<DiskChange::Kind> kinds_;
};

}  // namespace longhaul
