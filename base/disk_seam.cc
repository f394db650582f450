#include "base/disk_seam.h"

#include <atomic>

namespace longhaul {
namespace {

std::atomic<DiskSeam*> installed{nullptr};

}  // namespace

void InstallDiskSeam(DiskSeam* seam) { installed.store(seam, std::memory_order_release); }

int AskDiskSeam(const DiskChange& change) {
  DiskSeam* seam = installed.load(std::memory_order_acquire);
  return seam == nullptr ? 0 : seam->Before(change);
}

}  // namespace longhaul
