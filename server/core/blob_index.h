// What the dispatcher asks of the blob store. storage/blob_store.h implements it. Any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/job.h"

namespace longhaul::server {

class BlobIndex {
 public:
  virtual ~BlobIndex() = default;
  // Is it there, whole and verified?
  virtual absl::StatusOr<bool> Present(const BlobRef& blob) = 0;
  // Deletes the bytes. Absent is OK. Only the dispatcher calls it, after the deletion of the row is committed.
  virtual absl::Status Remove(const BlobRef& blob) = 0;
  // Blobs on disk whose SHA-256 begins with `prefix` (two hex digits): files whose row a crash has lost are found so.
  virtual absl::StatusOr<std::vector<BlobRef>> List(const std::string& prefix) = 0;
};

}  // namespace longhaul::server
