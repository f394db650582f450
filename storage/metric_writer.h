// The points of runs: one row of `metrics` for each chunk, which has the points of limits::kMetricsChunkPoints
// consecutive steps, so that a resumed attempt's points replace the earlier ones in place. On the writer's connection,
// within its transaction. A call needs the memory of what it is handed and of a few chunks, however long the run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/core/job.h"
#include "storage/sqlite_db.h"

namespace longhaul::storage {

// StoreTransaction::PutMetrics.
absl::Status WriteMetrics(Db* db, const std::string& job_id, const std::vector<server::MetricPoint>& points);
// StoreTransaction::ThinMetrics; also needs the memory of `most_points`. For a run that has ended: its chunks are not
// those of consecutive steps any more.
absl::Status ThinAllMetrics(Db* db, const std::string& job_id, int64_t most_points);

}  // namespace longhaul::storage
