#include "storage/state_id.h"

#include "base/env.h"
#include "base/random.h"
#include "base/status_macros.h"

namespace longhaul::storage {

absl::Status OwnStateFolder(const std::string& state_dir) {
  LH_RETURN_IF_ERROR(RemoveFile(JoinPath(state_dir, kBackupOfFile)));
  const std::string path = JoinPath(state_dir, kStateIdFile);
  return FileExists(path) ? absl::OkStatus() : WriteFileAtomic(path, RandomId() + "\n");
}

}  // namespace longhaul::storage
