// The writing half of the job store: one transaction of the dispatcher (server::StoreTransaction on SQLite).
#pragma once

#include <memory>

#include "server/core/store.h"
#include "storage/sqlite_db.h"

namespace longhaul::storage {

// `db` is the writing connection; it must outlive the transaction, and there is one transaction at a time.
absl::StatusOr<std::unique_ptr<server::StoreTransaction>> BeginJobTransaction(Db* db);

}  // namespace longhaul::storage
