// What of another project a caller must not see does not exist for it: the answers are those of absent things.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/error.h"
#include "server/core/access.h"
#include "server/core/store.h"

namespace longhaul::server {

// As the store's own.
inline absl::Status NoSuchJob(const std::string& id) {
  return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "there is no job " + id);
}

// Of a blob, who knows its hash has not shown to have its bytes: a caller sees what its project has uploaded and what
// its project's jobs keep. A worker sees all: it is told the hashes of its own attempts and no others.
inline absl::StatusOr<bool> MaySeeBlob(Store& store, const Caller& caller, const BlobRef& blob) {
  if (caller.all_projects) return true;
  return store.BlobInProject(blob, caller.project);
}

}  // namespace longhaul::server
