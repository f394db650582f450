// One block of memory, carved by the memory plan's names. Nothing else in the engine allocates tensors, so what the
// plan says is what the process uses. Huge-page aligned mmap; pages are touched when they are first written, so that
// high_water_bytes() is what really was needed.
// Not thread-safe: carved before step 1, read afterwards.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace longhaul::kernels {

// A named byte range. Regions whose lifetimes never meet may overlap; the plan decides that.
struct ArenaRegion {
  std::string name;
  int64_t offset_bytes = 0;  // multiple of 64
  int64_t bytes = 0;
};

class Arena {
 public:
  // RESOURCE_EXHAUSTED, reason HOST_OOM, where the mapping fails.
  static absl::StatusOr<std::unique_ptr<Arena>> CreateHost(int64_t bytes, std::vector<ArenaRegion> regions);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // A region that the plan does not name is a CHECK: it cannot be allocated.
  void* Get(const std::string& region) const;
  int64_t RegionBytes(const std::string& region) const;
  // CHECKs that rows x cols of dtype fit into the region (at byte `offset`).
  Tensor Matrix(const std::string& region, DType dtype, int64_t rows, int64_t cols, int64_t offset_bytes = 0) const;
  bool Has(const std::string& region) const;

  int64_t bytes() const { return bytes_; }
  // Bytes of the arena that were ever written, by resident pages (mincore).
  int64_t high_water_bytes() const;

 private:
  Arena() = default;
  uint8_t* base_ = nullptr;
  int64_t bytes_ = 0;
  int64_t map_bytes_ = 0;  // bytes_ rounded up to pages
  std::map<std::string, ArenaRegion> regions_;
};

}  // namespace longhaul::kernels
