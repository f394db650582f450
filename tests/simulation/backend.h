// Where the simulated scheduler keeps its state: in memory with failures on demand, or in SQLite and files on a disk
// that loses power.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/blob_index.h"
#include "server/core/store.h"

namespace longhaul::simulation {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual server::Store* store() = 0;
  virtual server::BlobIndex* blobs() = 0;
  // Verified and durable, without its row.
  virtual absl::StatusOr<server::BlobRef> Upload(const std::string& content) = 0;
  // Whole, with its own bytes?
  virtual bool Holds(const server::BlobRef& blob) = 0;
  virtual void LoseBlob(const server::BlobRef& blob) = 0;

  virtual void FailCommits(int count) = 0;
  virtual void FailWrites(int count) = 0;
  virtual void LieAboutCommits(int count) = 0;  // kept, but answered with an error; 0 = no more
  virtual bool lied() const = 0;                // since the last call with more than 0
  virtual void CutPowerAfter(uint64_t changes) = 0;
  virtual bool power_is_off() const = 0;
  virtual int power_cuts() const = 0;
  // The process died, or its machine did (power_is_off): opens what is there. No store is in use meanwhile.
  virtual absl::Status Reopen() = 0;
  // What is wrong with what is stored, beyond what the store's interface shows; empty where nothing is.
  virtual std::vector<std::string> Problems() = 0;
};

std::unique_ptr<Backend> MakeMemoryBackend();
// `seed` draws what a power cut leaves.
std::unique_ptr<Backend> MakeDiskBackend(uint64_t seed);

}  // namespace longhaul::simulation
