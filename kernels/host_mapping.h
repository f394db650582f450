// Anonymous host memory that starts on a huge-page boundary and asks the kernel for huge pages.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace longhaul::kernels {

class HostMapping {
 public:
  // Zeroed, not touched: a page takes memory when it is first written. RESOURCE_EXHAUSTED, reason HOST_OOM.
  // REQUIRES: bytes > 0.
  static absl::StatusOr<HostMapping> Create(int64_t bytes);
  HostMapping() = default;
  ~HostMapping();
  HostMapping(HostMapping&& other) noexcept;
  HostMapping& operator=(HostMapping&& other) noexcept;

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }  // as asked for, rounded up to pages
  // Bytes of the first `bytes` that are in memory (mincore).
  int64_t ResidentBytes(int64_t bytes) const;

 private:
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace longhaul::kernels
