// Turns errno into absl::Status for base/*.cc: "cannot <action> <path>: <errno text>". The codes are those that
// base/env.h promises; reasons: DISK_FULL, FILE_NOT_FOUND, PERMISSION_DENIED, FILE_EXISTS, TOO_MANY_OPEN_FILES,
// HOST_OOM, IO_ERROR. Thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace longhaul {

absl::Status ErrnoStatus(const std::string& action, const std::string& path, int error_number);
// The errno that a status was made of, also through Annotate; 0 where it was made of none.
int ErrnoOf(const absl::Status& status);

}  // namespace longhaul
