// List over a million jobs. Rows come in the order of create_number from an index that the filter allows, so that a
// page costs a page: by a label, else by project, state and model as far as they are given. Several states are several
// queries, merged. A range of time is turned into a range of numbers first (the column of the time never decreases).
// What no index covers is tested row by row: a second label, or a state beside a label.
#pragma once

#include "absl/status/statusor.h"
#include "server/core/store.h"
#include "storage/sqlite_db.h"

namespace longhaul::storage {

absl::StatusOr<server::JobPage> QueryJobs(Db* db, const server::JobFilter& filter);

}  // namespace longhaul::storage
