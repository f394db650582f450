// One block of memory, carved by the memory plan's names. Nothing else in the engine allocates tensors, so what the
// plan says is what the process uses. Host memory here; device and pinned memory: cuda/cuda_backend.h.
// Not thread-safe: carved before step 1, read afterwards.
#pragma once

#include <cstdint>
#include <functional>
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
  // Memory that some backend made, and how it is asked and given back.
  struct Memory {
    uint8_t* base = nullptr;
    std::function<int64_t()> high_water_bytes;
    std::function<void()> release;  // called once, by the arena's destructor
  };

  // Huge-page aligned mmap; pages are touched when they are first written, so that high_water_bytes() is what really
  // was needed. RESOURCE_EXHAUSTED, reason HOST_OOM, where the mapping fails.
  static absl::StatusOr<std::unique_ptr<Arena>> CreateHost(int64_t bytes, std::vector<ArenaRegion> regions);
  // Carves `memory`, aligned to 64 bytes (base may be null where bytes is 0). Regions that do not fit are a CHECK.
  static std::unique_ptr<Arena> Carve(Memory memory, int64_t bytes, std::vector<ArenaRegion> regions);
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
  // Bytes of the arena that were ever written, by resident pages (mincore). Device and pinned memory is resident
  // whole: bytes().
  int64_t high_water_bytes() const;

 private:
  Arena() = default;
  Memory memory_;
  int64_t bytes_ = 0;
  std::map<std::string, ArenaRegion> regions_;
};

}  // namespace longhaul::kernels
