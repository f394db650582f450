// server::Store on SQLite: <state_dir>/state.db, WAL, synchronous=FULL. For the dispatcher's
// thread one connection that writes and one that reads, for any thread a pool of read-only ones; readers see the last
// commit and never wait for the writer.
// Holds flock on <state_dir>/lock for its life: FAILED_PRECONDITION LOCKED where another scheduler has it.
// A database of a newer schema than this binary's is refused: FAILED_PRECONDITION SCHEMA_TOO_NEW. An older one is
// migrated, one transaction a step.
// Errors of SQLite: disk full and I/O are RESOURCE_EXHAUSTED DISK_FULL and UNAVAILABLE STORE_IO; a corrupt file
// DATA_LOSS.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/core/store.h"

namespace longhaul::storage {

// Creates the folder where it is absent. Destroy transactions before the store.
absl::StatusOr<std::unique_ptr<server::Store>> OpenJobStore(const std::string& state_dir);

}  // namespace longhaul::storage
