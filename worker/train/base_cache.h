// The frozen base as it lies in the arena (packed, and through NF4 where the plan says so), kept on the worker's disk:
// the next start of the same model under the same choices copies it instead of reading, quantising and packing again.
//
// A file: the regions one after the other; the CRC-32C of every piece; the number of payload bytes (u64) and a magic
// (u64), little-endian. Whole or absent: written beside, synced, renamed.
// Nothing here can fail a job: a file that is not what it should be is removed and the base is read anew.
// Not thread-safe, but for the writing thread that Store starts, which reads regions that nobody writes any more.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "kernels/exec.h"
#include "worker/train/memory.h"

namespace longhaul::train {

// A base on disk. It was used last when it was modified last: Load touches it.
struct CachedBase {
  std::string path;
  int64_t bytes = 0;
  int64_t used_nanos = 0;
};

// Those to remove so that `bytes` more are within limits::kMaxBaseCacheBytes and the disk, which has `free_bytes` now,
// keeps limits::kMinBaseCacheFreeBytes: the ones used longest ago. nullopt where that cannot be: then none is to go.
std::optional<std::vector<CachedBase>> BasesToEvict(std::vector<CachedBase> bases, int64_t bytes, int64_t free_bytes);

class BaseCache {
 public:
  // `folder` empty: no cache. `model_digest`: SHA-256 of the model's content. `memory` outlives the cache.
  BaseCache(std::string folder, const std::string& model_digest, const EngineMemory& memory);
  ~BaseCache();  // waits for Store, or makes it give up early
  BaseCache(const BaseCache&) = delete;
  BaseCache& operator=(const BaseCache&) = delete;

  // True where the regions were filled from the cache, with exec's threads.
  bool Load(const kernels::Exec& exec) const;
  // Writes the regions in the background. Skipped where the disk has too little room or another process is writing.
  void Store();
  // Waits until Store is done.
  void Finish();
  // The file of this base; "" without a folder.
  const std::string& path() const { return path_; }

 private:
  struct Span {
    const uint8_t* data;
    int64_t bytes;
  };
  int64_t PayloadBytes() const;
  absl::Status Write(std::stop_token stop) const;
  absl::Status WriteFile(const std::string& path, std::stop_token stop) const;

  std::string folder_;
  std::string path_;
  std::vector<Span> spans_;
  std::jthread writer_;  // last: it uses the rest
};

}  // namespace longhaul::train
