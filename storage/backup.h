// An online backup: a state folder of its own in `destination`, consistent as of one moment, taken while the scheduler
// goes on. Blobs are copied and verified, those that are there already are kept, so that the next backup into the same
// folder copies what is new. The old backup there holds until the new database is renamed over its own.
//
// Order: the blobs of a first snapshot, then the database, then the blobs that came in between. A blob that the
// database refers to and that was not there before it is younger than its grace time, so it cannot be collected
// meanwhile: but a checkpoint that newer ones overtake is, some minutes later (DispatcherCore::DroppedGraceMicros).
// Where one is gone before its turn has come, the database is taken again, and what came in between.
//
// In the copy every live job's lease epoch and attempt number is raised (limits::kBackupEpochStep, kBackupAttemptStep):
// a scheduler on it fences whatever the original's workers have gone on to do (DispatcherCore::TickRestored).
// Its tokens are held until they are confirmed (`longhauld token confirm`): the original may revoke one of them later.
// To restore: stop the scheduler, copy the folder, start longhauld with it as its --state-dir.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace longhaul::storage {

struct BackupReport {
  int64_t jobs = 0;
  int64_t database_bytes = 0;
  int64_t blobs_copied = 0;
  int64_t blobs_kept = 0;     // from an earlier backup into this folder
  int64_t blobs_removed = 0;  // of an earlier backup, referred to by nothing any more
  int64_t bytes_copied = 0;
  std::vector<std::string> lost;  // blobs that the original refers to and does not have whole: all else is backed up
};

// FAILED_PRECONDITION LOCKED where a scheduler runs on `destination`, BAD_DESTINATION where it is in the state folder
// or was not closed in order; CheckSchema's errors for the original.
absl::StatusOr<BackupReport> BackupState(const std::string& state_dir, const std::string& destination);

}  // namespace longhaul::storage
