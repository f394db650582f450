#include "storage/job_query.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/codec.h"
#include "server/core/page_token.h"

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

// The first string after every string with this prefix; "" where there is none.
std::string PrefixEnd(std::string prefix) {
  while (!prefix.empty() && static_cast<unsigned char>(prefix.back()) == 0xff) prefix.pop_back();
  if (!prefix.empty()) prefix.back() = static_cast<char>(prefix.back() + 1);
  return prefix;
}

// Text and values of List's query, built together so that they cannot disagree.
class ListQuery {
 public:
  void And(const std::string& condition) { sql_ += (sql_.empty() ? "" : " AND ") + condition; }
  std::string Int(int64_t value) {
    values_.push_back({++parameters_, value});
    return "?" + std::to_string(parameters_);
  }
  std::string Text(const std::string& value) {
    texts_.push_back({++parameters_, value});
    return "?" + std::to_string(parameters_);
  }
  absl::StatusOr<Statement> Prepare(Db* db, const std::string& tail) {
    LH_ASSIGN_OR_RETURN(Statement statement, db->PrepareText("SELECT body FROM jobs WHERE " + sql_ + tail));
    for (const auto& [index, value] : values_) statement.Bind(index, value);
    for (const auto& [index, text] : texts_) statement.BindText(index, text);
    return statement;
  }

 private:
  std::string sql_;
  int parameters_ = 0;
  std::vector<std::pair<int, int64_t>> values_;
  std::vector<std::pair<int, std::string>> texts_;
};

void AddFilter(const JobFilter& filter, ListQuery* query) {
  if (!filter.project.empty()) query->And("project=" + query->Text(filter.project));
  if (!filter.states.empty()) {
    std::string list;
    for (const JobState state : filter.states) {
      list += (list.empty() ? "" : ",") + query->Int(static_cast<int64_t>(state));
    }
    query->And("state IN (" + list + ")");
  }
  if (!filter.model.empty()) query->And("model=" + query->Text(filter.model));
  for (const auto& [key, value] : filter.labels) {
    const std::string key_parameter = query->Text(key);
    query->And("EXISTS (SELECT 1 FROM job_labels WHERE key=" + key_parameter + " AND value=" + query->Text(value) +
               " AND job_id=jobs.id)");
  }
  if (filter.created_after_micros != 0) {
    query->And("create_wall_micros>" + query->Int(filter.created_after_micros));
  }
  if (filter.created_before_micros != 0) {
    query->And("create_wall_micros<" + query->Int(filter.created_before_micros));
  }
  if (!filter.id_prefix.empty()) {
    query->And("id>=" + query->Text(filter.id_prefix));
    const std::string end = PrefixEnd(filter.id_prefix);
    if (!end.empty()) query->And("id<" + query->Text(end));
  }
}

}  // namespace

absl::StatusOr<Job> QueryJob(Db* db, const std::string& id) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM jobs WHERE id=?1"));
  LH_ASSIGN_OR_RETURN(const bool row, query.BindText(1, id).Step());
  if (!row) return JobNotFound(id);
  return DecodeJob(query.Bytes(0));
}

absl::StatusOr<JobPage> QueryJobs(Db* db, const JobFilter& filter) {
  const int page_size = std::clamp(filter.page_size, 1, limits::kMaxPageSize);
  ListQuery query;
  if (filter.page_token.empty()) {
    query.And("create_number>0");
  } else {
    LH_ASSIGN_OR_RETURN(const uint64_t last, ReadPageToken(filter));
    query.And((filter.oldest_first ? "create_number>" : "create_number<") + query.Int(static_cast<int64_t>(last)));
  }
  AddFilter(filter, &query);
  const std::string order = filter.oldest_first ? " ORDER BY create_number" : " ORDER BY create_number DESC";
  const std::string limit = " LIMIT " + query.Int(page_size + 1);
  LH_ASSIGN_OR_RETURN(Statement statement, query.Prepare(db, order + limit));
  JobPage page;
  LH_ASSIGN_OR_RETURN(page.jobs, DecodeAll<Job>(statement, DecodeJob));
  if (static_cast<int>(page.jobs.size()) > page_size) {
    page.jobs.pop_back();
    page.next_page_token = MakePageToken(filter, page.jobs.back().create_number);
  }
  return page;
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

absl::StatusOr<bool> QueryBlobInProject(Db* db, const BlobRef& blob, const std::string& project) {
  LH_ASSIGN_OR_RETURN(Statement query,
                      db->Prepare("SELECT 1 FROM blob_projects WHERE project=?1 AND sha256=?2 UNION ALL "
                                  "SELECT 1 FROM blob_refs JOIN jobs ON jobs.id=blob_refs.job_id "
                                  "WHERE blob_refs.sha256=?2 AND jobs.project=?1 LIMIT 1"));
  return query.BindText(1, project).BindText(2, blob.sha256).Step();
}

absl::StatusOr<int64_t> QueryUploadedBytes(Db* db, const std::string& project) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT IFNULL(SUM(size_bytes), 0) FROM blob_projects "
                                                   "JOIN blobs USING(sha256) WHERE project=?1"));
  LH_RETURN_IF_ERROR(query.BindText(1, project).Step().status());
  return query.Int(0);
}

absl::StatusOr<std::vector<Job>> QueryLiveJobs(Db* db) {
  LH_ASSIGN_OR_RETURN(Statement query, db->Prepare("SELECT body FROM jobs WHERE state<10 ORDER BY create_number"));
  return DecodeAll<Job>(query, DecodeJob);
}

}  // namespace longhaul::storage
