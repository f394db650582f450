// The schema's numbered steps. PRAGMA user_version is the number of the last one applied; each step is one transaction,
// so that a crash leaves the database at a whole number. A step, once released, never changes: a new one follows it.
#pragma once

#include "absl/status/status.h"
#include "storage/sqlite_db.h"

namespace longhaul::storage {

// The newest step.
int SchemaVersion();
// For readers that change nothing: FAILED_PRECONDITION SCHEMA_TOO_OLD, SCHEMA_TOO_NEW or NOT_OURS unless `db` has just
// this build's schema.
absl::Status CheckSchema(Db* db);
// Brings `db` up to SchemaVersion(). FAILED_PRECONDITION SCHEMA_TOO_NEW names both numbers where the file is of a newer
// build; FAILED_PRECONDITION NOT_OURS where it is some other program's database.
absl::Status Migrate(Db* db);

}  // namespace longhaul::storage
