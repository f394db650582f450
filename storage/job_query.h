// The reading half of the job store: one function a query, on any connection; List is in job_list.h. Each sees the last
// commit.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/store.h"
#include "storage/sqlite_db.h"

namespace longhaul::storage {

absl::StatusOr<server::Job> QueryJob(Db* db, const std::string& id);
absl::StatusOr<std::optional<server::RequestKey>> QueryRequestKey(Db* db, const std::string& project,
                                                                  const std::string& request_id);
absl::StatusOr<std::vector<server::JobEvent>> QueryEvents(Db* db, const std::string& job_id, int64_t after_sequence,
                                                          int most);
absl::StatusOr<std::vector<server::Attempt>> QueryAttempts(Db* db, const std::string& job_id);
absl::StatusOr<std::vector<server::Checkpoint>> QueryCheckpoints(Db* db, const std::string& job_id);
absl::StatusOr<std::vector<server::MetricPoint>> QueryMetrics(Db* db, const std::string& job_id, int64_t after_step,
                                                              int most);
absl::StatusOr<std::vector<server::Worker>> QueryWorkers(Db* db);
absl::StatusOr<bool> QueryHasBlob(Db* db, const server::BlobRef& blob);
absl::StatusOr<std::optional<int64_t>> QueryIdleBlobGraceMicros(Db* db, const server::BlobRef& blob);
absl::StatusOr<bool> QueryBlobInProject(Db* db, const server::BlobRef& blob, const std::string& project);
absl::StatusOr<server::Store::Uploads> QueryUploaded(Db* db, const std::string& project);
absl::StatusOr<std::vector<server::Job>> QueryLiveJobs(Db* db);
absl::StatusOr<std::vector<std::string>> QueryDeletedJobs(Db* db, const std::string& after, int most);

}  // namespace longhaul::storage
