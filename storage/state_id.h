// What tells one state from another, and a state folder from a backup of one.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace longhaul::storage {

// Names one state for good; made when a state folder is first opened to write.
inline constexpr char kStateIdFile[] = "state-id";
// In a backup: the state-id of the state that it is of.
inline constexpr char kBackupOfFile[] = "backup-of";

// A folder that is opened to write is a state of its own from then on, also a copy of a backup: it has an id of its
// own, and is no backup any more. REQUIRES: the caller holds the folder's lock. Errors as base/env.h.
absl::Status OwnStateFolder(const std::string& state_dir);

}  // namespace longhaul::storage
