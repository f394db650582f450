#include "storage/job_query.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/codec.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

absl::Status JobNotFound(const std::string& id) {
  return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "there is no job " + id);
}

// Runs `query` to its end, decoding column 0 of every row.
template <class T, class Decode>
absl::StatusOr<std::vector<T>> DecodeAll(Statement& query, Decode decode) {
  std::vector<T> values;
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return values;
    LH_ASSIGN_OR_RETURN(T value, decode(query.Bytes(0)));
    values.push_back(std::move(value));
  }
}

}  // namespace

absl::StatusOr<Job> QueryJob(Db* db, const std::string& id) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM jobs WHERE id=?1"));
  LH_ASSIGN_OR_RETURN(const bool row, query.BindText(1, id).Step());
  if (!row) return JobNotFound(id);
  return DecodeJob(query.Bytes(0));
}

absl::StatusOr<std::optional<RequestKey>> QueryRequestKey(Db* db, const std::string& project,
                                                          const std::string& request_id) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body_sha256, job_id, create_wall_micros FROM request_keys "
                                                   "WHERE project=?1 AND request_id=?2"));
  LH_ASSIGN_OR_RETURN(const bool row, query.BindText(1, project).BindText(2, request_id).Step());
  if (!row) return std::optional<RequestKey>();
  return std::optional<RequestKey>({project, request_id, query.Text(0), query.Text(1), query.Int(2)});
}

absl::StatusOr<std::vector<JobEvent>> QueryEvents(Db* db, const std::string& job_id, int64_t after_sequence, int most) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM events WHERE job_id=?1 AND sequence>?2 "
                                                   "ORDER BY sequence LIMIT ?3"));
  query.BindText(1, job_id).Bind(2, after_sequence).Bind(3, std::clamp(most, 0, limits::kMaxEventsRead));
  return DecodeAll<JobEvent>(query, DecodeEvent);
}

absl::StatusOr<std::vector<Attempt>> QueryAttempts(Db* db, const std::string& job_id) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM attempts WHERE job_id=?1 ORDER BY number"));
  query.BindText(1, job_id);
  return DecodeAll<Attempt>(query, DecodeAttempt);
}

absl::StatusOr<std::vector<Checkpoint>> QueryCheckpoints(Db* db, const std::string& job_id) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM checkpoints WHERE job_id=?1 ORDER BY step"));
  query.BindText(1, job_id);
  return DecodeAll<Checkpoint>(query, DecodeCheckpoint);
}

absl::StatusOr<std::vector<MetricPoint>> QueryMetrics(Db* db, const std::string& job_id, int64_t after_step, int most) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM metrics WHERE job_id=?1 AND last_step>?2 "
                                                   "ORDER BY first_step"));
  query.BindText(1, job_id).Bind(2, after_step);
  std::vector<MetricPoint> points;
  while (static_cast<int>(points.size()) < most) {
    LH_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) break;
    LH_ASSIGN_OR_RETURN(std::vector<MetricPoint> chunk, DecodeMetrics(query.Bytes(0)));
    for (MetricPoint& point : chunk) {
      if (point.step > after_step && static_cast<int>(points.size()) < most) points.push_back(std::move(point));
    }
  }
  return points;
}

absl::StatusOr<std::vector<Worker>> QueryWorkers(Db* db) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM workers ORDER BY id"));
  return DecodeAll<Worker>(query, DecodeWorker);
}

absl::StatusOr<bool> QueryHasBlob(Db* db, const BlobRef& blob) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT 1 FROM blobs WHERE sha256=?1 AND size_bytes=?2"));
  return query.BindText(1, blob.sha256).Bind(2, blob.size_bytes).Step();
}

absl::StatusOr<std::optional<int64_t>> QueryIdleBlobGraceMicros(Db* db, const BlobRef& blob) {
  LH_ASSIGN_OR_RETURN(Statement query,
                      db->Prepare("SELECT grace_wall_micros FROM blobs WHERE sha256=?1 AND size_bytes=?2 AND refs=0"));
  LH_ASSIGN_OR_RETURN(const bool there, query.BindText(1, blob.sha256).Bind(2, blob.size_bytes).Step());
  return there ? std::optional<int64_t>(query.Int(0)) : std::nullopt;
}

absl::StatusOr<bool> QueryBlobInProject(Db* db, const BlobRef& blob, const std::string& project) {
  LH_ASSIGN_OR_RETURN(Statement query,
                      db->Prepare("SELECT 1 FROM blob_projects WHERE project=?1 AND sha256=?2 UNION ALL "
                                  "SELECT 1 FROM blob_refs JOIN jobs ON jobs.id=blob_refs.job_id "
                                  "WHERE blob_refs.sha256=?2 AND jobs.project=?1 LIMIT 1"));
  return query.BindText(1, project).BindText(2, blob.sha256).Step();
}

absl::StatusOr<Store::Uploads> QueryUploaded(Db* db, const std::string& project) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT COUNT(*), IFNULL(SUM(size_bytes), 0) FROM blob_projects "
                                                   "JOIN blobs USING(sha256) WHERE project=?1"));
  LH_RETURN_IF_ERROR(query.BindText(1, project).Step().status());
  return Store::Uploads{query.Int(0), query.Int(1)};
}

absl::StatusOr<std::vector<Job>> QueryLiveJobs(Db* db) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM jobs WHERE state<10 ORDER BY create_number"));
  return DecodeAll<Job>(query, DecodeJob);
}

absl::StatusOr<std::vector<std::string>> QueryDeletedJobs(Db* db, const std::string& after, int most) {
  LH_ASSIGN_OR_RETURN(Statement query,
                      db->Prepare("SELECT job_id FROM deleted_jobs WHERE job_id>?1 ORDER BY job_id LIMIT ?2"));
  query.BindText(1, after);
  query.Bind(2, most);
  std::vector<std::string> ids;
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return ids;
    ids.push_back(query.Text(0));
  }
}

}  // namespace longhaul::storage
