#include "storage/metric_writer.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <map>
#include <utility>

#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/codec.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

constexpr int64_t kLevelChunks = 220;  // the points of a run that is shorter are all kept until it ends
constexpr int64_t kDenseChunks = 4;    // of the newest points nothing is left out

absl::Status WriteChunk(Db* db, const std::string& job_id, int64_t first_step, const std::vector<MetricPoint>& points) {
  const std::string body = EncodeMetrics(points);
  LH_ASSIGN_OR_RETURN(Statement put,
                      db->Prepare("INSERT INTO metrics(job_id, first_step, last_step, points, body) "
                                  "VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(job_id, first_step) DO UPDATE SET "
                                  "last_step=excluded.last_step, points=excluded.points, body=excluded.body"));
  put.BindText(1, job_id).Bind(2, first_step).Bind(3, points.back().step);
  return put.Bind(4, static_cast<int64_t>(points.size())).BindBlob(5, body).Run();
}

// The usual case: points behind all that the chunk has. A list's bytes are those of its parts (server/core/record.h),
// so that nothing of the chunk is decoded. False: they have to be merged.
absl::StatusOr<bool> AppendToChunk(Db* db, const std::string& job_id, int64_t first_step,
                                   const std::vector<const MetricPoint*>& added) {
  std::string body;
  int64_t count = 0;
  {
    LH_ASSIGN_OR_RETURN(Statement read, db->Prepare("SELECT last_step, points, body FROM metrics "
                                                    "WHERE job_id=?1 AND first_step=?2"));
    LH_ASSIGN_OR_RETURN(const bool row, read.BindText(1, job_id).Bind(2, first_step).Step());
    if (!row || read.Int(0) >= added.front()->step) return false;
    count = read.Int(1);
    body = std::string(read.Bytes(2));
  }
  std::vector<MetricPoint> points;
  for (const MetricPoint* point : added) {
    if (!points.empty() && points.back().step >= point->step) return false;
    points.push_back(*point);
  }
  body += EncodeMetrics(points);
  LH_ASSIGN_OR_RETURN(Statement put, db->Prepare("UPDATE metrics SET last_step=?3, points=?4, body=?5 "
                                                 "WHERE job_id=?1 AND first_step=?2"));
  put.BindText(1, job_id).Bind(2, first_step).Bind(3, points.back().step);
  LH_RETURN_IF_ERROR(put.Bind(4, count + static_cast<int64_t>(points.size())).BindBlob(5, body).Run());
  return true;
}

// The first point of every `stride` steps stays. What is thin already is not read.
absl::Status ThinChunk(Db* db, const std::string& job_id, int64_t first_step, int64_t stride) {
  std::vector<MetricPoint> kept;
  // Of a longer stride only the chunk with which it begins has one.
  if (first_step % std::max<int64_t>(stride, limits::kMetricsChunkPoints) == 0) {
    LH_ASSIGN_OR_RETURN(Statement read,
                        db->Prepare("SELECT points, body FROM metrics WHERE job_id=?1 AND first_step=?2"));
    LH_ASSIGN_OR_RETURN(const bool row, read.BindText(1, job_id).Bind(2, first_step).Step());
    if (!row || read.Int(0) <= std::max<int64_t>(1, limits::kMetricsChunkPoints / stride)) return absl::OkStatus();
    LH_ASSIGN_OR_RETURN(std::vector<MetricPoint> points, DecodeMetrics(read.Bytes(1)));
    for (MetricPoint& point : points) {
      if (kept.empty() || kept.back().step / stride != point.step / stride) kept.push_back(std::move(point));
    }
  }
  if (!kept.empty()) return WriteChunk(db, job_id, first_step, kept);
  LH_ASSIGN_OR_RETURN(Statement erase, db->Prepare("DELETE FROM metrics WHERE job_id=?1 AND first_step=?2"));
  return erase.BindText(1, job_id).Bind(2, first_step).Run();
}

// Chunks behind `after` until `last`, by their numbers.
absl::Status ThinChunks(Db* db, const std::string& job_id, int64_t after, int64_t last, int64_t stride) {
  std::vector<int64_t> first_steps;
  {
    LH_ASSIGN_OR_RETURN(Statement find, db->Prepare("SELECT first_step FROM metrics WHERE job_id=?1 AND first_step>?2 "
                                                    "AND first_step<=?3"));
    find.BindText(1, job_id).Bind(2, after * limits::kMetricsChunkPoints).Bind(3, last * limits::kMetricsChunkPoints);
    while (true) {
      LH_ASSIGN_OR_RETURN(const bool row, find.Step());
      if (!row) break;
      first_steps.push_back(find.Int(0));
    }
  }
  for (const int64_t first_step : first_steps) LH_RETURN_IF_ERROR(ThinChunk(db, job_id, first_step, stride));
  return absl::OkStatus();
}

// A long run keeps some 100,000 points while it lives, and every commit does its part. On level k, while the run is at
// chunks kLevelChunks * 2^k to kLevelChunks * 2^(k + 1), what was just finished is thinned to a point every 2^k steps,
// and what lies before the level, one old chunk for a new one, to one every 2^(k + 1): at most 1.75 * kLevelChunks
// chunks' points at any time, and the newest. A run that goes back to an earlier step does the same once more.
absl::Status ThinBehind(Db* db, const std::string& job_id, int64_t first_step) {
  const int64_t chunk = first_step / limits::kMetricsChunkPoints;
  if (chunk < kLevelChunks) return absl::OkStatus();
  const int64_t level = std::bit_width(static_cast<uint64_t>(chunk / kLevelChunks)) - 1;
  const int64_t begin = kLevelChunks << level;
  // Steps may have been left out: what lies between is done with this one.
  LH_ASSIGN_OR_RETURN(Statement before,
                      db->Prepare("SELECT IFNULL(MAX(first_step), 0) FROM metrics WHERE job_id=?1 AND first_step<?2"));
  LH_RETURN_IF_ERROR(before.BindText(1, job_id).Bind(2, first_step).Step().status());
  const int64_t previous = before.Int(0) / limits::kMetricsChunkPoints;
  LH_RETURN_IF_ERROR(ThinChunks(db, job_id, previous - begin, chunk - begin, int64_t{2} << level));
  return ThinChunks(db, job_id, previous - kDenseChunks, chunk - kDenseChunks, int64_t{1} << level);
}

}  // namespace

absl::Status WriteMetrics(Db* db, const std::string& job_id, const std::vector<MetricPoint>& points) {
  std::map<int64_t, std::vector<const MetricPoint*>> by_chunk;
  for (const MetricPoint& point : points) {
    const int64_t chunk = point.step / limits::kMetricsChunkPoints * limits::kMetricsChunkPoints;
    by_chunk[chunk].push_back(&point);
  }
  for (const auto& [first_step, added] : by_chunk) {
    LH_ASSIGN_OR_RETURN(const bool appended, AppendToChunk(db, job_id, first_step, added));
    if (appended) continue;
    std::map<int64_t, MetricPoint> merged;
    {
      LH_ASSIGN_OR_RETURN(Statement read, db->Prepare("SELECT body FROM metrics WHERE job_id=?1 AND first_step=?2"));
      LH_ASSIGN_OR_RETURN(const bool row, read.BindText(1, job_id).Bind(2, first_step).Step());
      if (row) {
        LH_ASSIGN_OR_RETURN(std::vector<MetricPoint> old, DecodeMetrics(read.Bytes(0)));
        for (MetricPoint& point : old) merged[point.step] = std::move(point);
      }
    }
    for (const MetricPoint* point : added) {
      const auto found = merged.find(point->step);
      if (found == merged.end() || found->second.attempt <= point->attempt) merged[point->step] = *point;
    }
    std::vector<MetricPoint> chunk;
    for (auto& [step, point] : merged) chunk.push_back(std::move(point));
    LH_RETURN_IF_ERROR(WriteChunk(db, job_id, first_step, chunk));
  }
  for (const auto& [first_step, added] : by_chunk) LH_RETURN_IF_ERROR(ThinBehind(db, job_id, first_step));
  return absl::OkStatus();
}

absl::Status ThinAllMetrics(Db* db, const std::string& job_id, int64_t most_points) {
  LH_ASSIGN_OR_RETURN(Statement sum, db->Prepare("SELECT IFNULL(SUM(points), 0) FROM metrics WHERE job_id=?1"));
  LH_RETURN_IF_ERROR(sum.BindText(1, job_id).Step().status());
  const int64_t count = sum.Int(0);
  if (count <= most_points || most_points < 2) return absl::OkStatus();
  // Evenly over the run, the first and the last always kept: point i stays where its share of the picks moves on. Chunk
  // by chunk: all of them may be more than memory has.
  std::vector<MetricPoint> picked;
  {
    LH_ASSIGN_OR_RETURN(Statement read, db->Prepare("SELECT body FROM metrics WHERE job_id=?1 ORDER BY first_step"));
    read.BindText(1, job_id);
    int64_t index = 0;
    while (true) {
      LH_ASSIGN_OR_RETURN(const bool row, read.Step());
      if (!row) break;
      LH_ASSIGN_OR_RETURN(std::vector<MetricPoint> points, DecodeMetrics(read.Bytes(0)));
      for (MetricPoint& point : points) {
        const int64_t next = static_cast<int64_t>(picked.size()) * (count - 1) / (most_points - 1);
        if (index++ == next) picked.push_back(std::move(point));
      }
    }
  }
  LH_ASSIGN_OR_RETURN(Statement clear, db->Prepare("DELETE FROM metrics WHERE job_id=?1"));
  LH_RETURN_IF_ERROR(clear.BindText(1, job_id).Run());
  for (size_t at = 0; at < picked.size(); at += limits::kMetricsChunkPoints) {
    const size_t end = std::min(picked.size(), at + limits::kMetricsChunkPoints);
    const std::vector<MetricPoint> chunk(std::make_move_iterator(picked.begin() + static_cast<int64_t>(at)),
                                         std::make_move_iterator(picked.begin() + static_cast<int64_t>(end)));
    LH_RETURN_IF_ERROR(WriteChunk(db, job_id, chunk.front().step, chunk));
  }
  return absl::OkStatus();
}

}  // namespace longhaul::storage
