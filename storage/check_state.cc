#include "storage/check_state.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/codec.h"
#include "storage/blob_store.h"
#include "storage/job_query.h"
#include "storage/migrations.h"
#include "storage/sqlite_db.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

class Checker {
 public:
  Checker(Db* db, BlobStore* blobs, const CheckOptions& options) : db_(db), blobs_(blobs), options_(options) {}

  absl::Status Run();
  CheckReport TakeReport() { return std::move(report_); }
  // Blobs whose file was not there: a collector may have been quicker, see Reconsider.
  std::vector<BlobRef> TakeMissing() { return std::move(missing_); }
  void Problem(const std::string& sentence) {
    ++report_.problems_total;
    if (report_.problems.size() < static_cast<size_t>(limits::kMaxCheckProblems)) report_.problems.push_back(sentence);
  }

 private:
  absl::Status CheckStructure();
  absl::Status CheckJobs();
  absl::Status CheckJob(const std::string& id, const Job& job);
  absl::Status CheckEvents(const Job& job);
  absl::Status CheckAttempts(const Job& job);
  absl::Status CheckReferences(const Job& job);
  absl::Status CheckMetrics(const Job& job);
  absl::Status CheckBlobs();
  absl::Status CheckBlobFile(const BlobRef& blob);
  absl::Status CountUnrecorded();

  Db* const db_;
  BlobStore* const blobs_;
  const CheckOptions options_;
  CheckReport report_;
  std::vector<BlobRef> missing_;
};

absl::Status Checker::Run() {
  LH_RETURN_IF_ERROR(CheckStructure());
  LH_RETURN_IF_ERROR(CheckJobs());
  const absl::StatusOr<std::vector<Worker>> workers = QueryWorkers(db_);
  if (!workers.ok()) Problem("a worker's row: " + std::string(workers.status().message()));
  LH_RETURN_IF_ERROR(CheckBlobs());
  return CountUnrecorded();
}

absl::Status Checker::CheckStructure() {
  LH_ASSIGN_OR_RETURN(Statement integrity, db_->Prepare("PRAGMA integrity_check"));
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, integrity.Step());
    if (!row) break;
    if (integrity.Text(0) != "ok") Problem("database: " + integrity.Text(0));
  }
  LH_ASSIGN_OR_RETURN(Statement foreign, db_->Prepare("PRAGMA foreign_key_check"));
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, foreign.Step());
    if (!row) break;
    Problem("database: a row of " + foreign.Text(0) + " refers to a row of " + foreign.Text(2) + " that is not there");
  }
  LH_ASSIGN_OR_RETURN(
      const int64_t wrong_total,
      db_->QueryInt(
          "SELECT (SELECT value FROM totals WHERE name='blob_bytes') <> IFNULL(SUM(size_bytes), 0) FROM blobs"));
  if (wrong_total != 0) Problem("the total of blob bytes is not their sum");
  return absl::OkStatus();
}

absl::Status Checker::CheckJobs() {
  LH_ASSIGN_OR_RETURN(Statement rows, db_->Prepare("SELECT id, project, state, model, create_number, body FROM jobs "
                                                   "ORDER BY create_number"));
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return absl::OkStatus();
    ++report_.jobs;
    const std::string id = rows.Text(0);
    const absl::StatusOr<Job> job = DecodeJob(rows.Bytes(5));
    if (!job.ok()) {
      Problem("job " + id + ": " + std::string(job.status().message()));
      continue;
    }
    const bool agrees = job->id == id && job->project == rows.Text(1) &&
                        static_cast<int64_t>(job->state) == rows.Int(2) && job->model == rows.Text(3) &&
                        static_cast<int64_t>(job->create_number) == rows.Int(4);
    if (!agrees) Problem("job " + id + ": its columns do not agree with its body");
    LH_RETURN_IF_ERROR(CheckJob(id, *job));
  }
}

absl::Status Checker::CheckJob(const std::string& id, const Job& job) {
  LH_RETURN_IF_ERROR(CheckEvents(job));
  LH_RETURN_IF_ERROR(CheckAttempts(job));
  LH_RETURN_IF_ERROR(CheckReferences(job));
  LH_ASSIGN_OR_RETURN(Statement labels,
                      db_->Prepare("SELECT COUNT(*) FROM job_labels WHERE job_id=?1 AND end_state IS ?2 AND model=?3"));
  labels.BindText(1, id).BindText(3, job.model);
  if (IsTerminal(job.state)) labels.Bind(2, static_cast<int64_t>(job.state));
  LH_RETURN_IF_ERROR(labels.Step().status());
  if (labels.Int(0) != static_cast<int64_t>(job.labels.size())) Problem("job " + id + ": its labels' rows are not its");
  return IsTerminal(job.state) ? CheckMetrics(job) : absl::OkStatus();
}

absl::Status Checker::CheckEvents(const Job& job) {
  LH_ASSIGN_OR_RETURN(Statement rows,
                      db_->Prepare("SELECT COUNT(*), IFNULL(MIN(sequence), 1), IFNULL(MAX(sequence), 0) "
                                   "FROM events WHERE job_id=?1"));
  LH_RETURN_IF_ERROR(rows.BindText(1, job.id).Step().status());
  report_.events += rows.Int(0);
  const bool dense = rows.Int(1) == 1 && rows.Int(2) == rows.Int(0);
  if (!dense) Problem("job " + job.id + ": its events have gaps");
  if (rows.Int(2) != job.sequence) {
    Problem("job " + job.id + ": its last event is " + std::to_string(rows.Int(2)) + ", the job says " +
            std::to_string(job.sequence));
  }
  LH_ASSIGN_OR_RETURN(Statement last,
                      db_->Prepare("SELECT body FROM events WHERE job_id=?1 ORDER BY sequence DESC LIMIT 1"));
  LH_ASSIGN_OR_RETURN(const bool row, last.BindText(1, job.id).Step());
  if (!row) return absl::OkStatus();
  const absl::StatusOr<JobEvent> event = DecodeEvent(last.Bytes(0));
  if (!event.ok()) {
    Problem("job " + job.id + ": an event: " + std::string(event.status().message()));
  } else if (event->state != job.state) {
    Problem("job " + job.id + " is " + Name(job.state) + ", its last event says " + Name(event->state));
  }
  return absl::OkStatus();
}

absl::Status Checker::CheckAttempts(const Job& job) {
  const bool leased = IsActive(job.state) && job.state != JobState::kValidating;
  const bool may_lease = leased || job.state == JobState::kValidating;
  if (leased && !HasOpenAttempt(job)) Problem("job " + job.id + " is " + Name(job.state) + " without an open attempt");
  if (!may_lease && HasOpenAttempt(job)) Problem("job " + job.id + " is " + Name(job.state) + " with an open attempt");
  if (job.attempt.lease_epoch > job.lease_epoch) Problem("job " + job.id + ": its attempt's epoch is above its own");
  if (job.attempt.number == 0) return absl::OkStatus();
  const absl::StatusOr<std::vector<Attempt>> attempts = QueryAttempts(db_, job.id);
  if (!attempts.ok()) {
    Problem("job " + job.id + ": an attempt: " + std::string(attempts.status().message()));
    return absl::OkStatus();
  }
  const auto last = std::find_if(attempts->begin(), attempts->end(),
                                 [&](const Attempt& attempt) { return attempt.number == job.attempt.number; });
  if (last == attempts->end() || last->lease_epoch != job.attempt.lease_epoch) {
    Problem("job " + job.id + ": attempt " + std::to_string(job.attempt.number) + " has no row of its own");
  }
  return absl::OkStatus();
}

// The rows of blob_refs are those of the inputs, the artifact and the kept checkpoints, and no others.
absl::Status Checker::CheckReferences(const Job& job) {
  std::set<std::pair<std::string, int64_t>> expected;
  for (const BlobRef& input : job.inputs) expected.emplace(input.sha256, -1);
  for (const NamedBlob& file : job.artifact) expected.emplace(file.blob.sha256, -1);
  const absl::StatusOr<std::vector<Checkpoint>> checkpoints = QueryCheckpoints(db_, job.id);
  if (!checkpoints.ok()) {
    Problem("job " + job.id + ": a checkpoint: " + std::string(checkpoints.status().message()));
    return absl::OkStatus();
  }
  bool last_there = !job.last_checkpoint.has_value();
  for (const Checkpoint& checkpoint : *checkpoints) {
    last_there = last_there || checkpoint.step == job.last_checkpoint->step;
    for (const NamedBlob& file : checkpoint.files) expected.emplace(file.blob.sha256, checkpoint.step);
  }
  if (!last_there) Problem("job " + job.id + ": its last checkpoint has no row");
  std::set<std::pair<std::string, int64_t>> found;
  LH_ASSIGN_OR_RETURN(Statement rows, db_->Prepare("SELECT sha256, source FROM blob_refs WHERE job_id=?1"));
  rows.BindText(1, job.id);
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) break;
    found.emplace(rows.Text(0), rows.Int(1));
  }
  if (found != expected) Problem("job " + job.id + ": its references to blobs are not those of its rows");
  return absl::OkStatus();
}

absl::Status Checker::CheckMetrics(const Job& job) {
  LH_ASSIGN_OR_RETURN(Statement sum, db_->Prepare("SELECT IFNULL(SUM(points), 0) FROM metrics WHERE job_id=?1"));
  LH_RETURN_IF_ERROR(sum.BindText(1, job.id).Step().status());
  if (sum.Int(0) > limits::kMaxMetricsPointsTerminal) {
    Problem("job " + job.id + " has ended with " + std::to_string(sum.Int(0)) + " metric points");
  }
  return absl::OkStatus();
}

absl::Status Checker::CheckBlobs() {
  LH_ASSIGN_OR_RETURN(
      Statement rows,
      db_->Prepare(
          "SELECT sha256, size_bytes, refs, (SELECT COUNT(*) FROM blob_refs WHERE blob_refs.sha256=blobs.sha256) "
          "FROM blobs ORDER BY sha256"));
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) break;
    const BlobRef blob{rows.Text(0), rows.Int(1)};
    ++report_.blobs;
    report_.blob_bytes += blob.size_bytes;
    if (rows.Int(2) != rows.Int(3)) {
      Problem("blob " + blob.sha256 + " is counted " + std::to_string(rows.Int(2)) + " times and referred to " +
              std::to_string(rows.Int(3)) + " times");
    }
    LH_RETURN_IF_ERROR(CheckBlobFile(blob));
  }
  // A crash may have lost the row of a file that a checkpoint refers to; the file must be there.
  LH_ASSIGN_OR_RETURN(Statement rowless, db_->Prepare("SELECT DISTINCT sha256 FROM blob_refs WHERE NOT EXISTS "
                                                      "(SELECT 1 FROM blobs WHERE blobs.sha256=blob_refs.sha256)"));
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, rowless.Step());
    if (!row) return absl::OkStatus();
    LH_RETURN_IF_ERROR(CheckBlobFile({rowless.Text(0), 0}));
  }
}

absl::Status Checker::CheckBlobFile(const BlobRef& blob) {
  const absl::StatusOr<int64_t> size = blobs_->Size(blob);
  if (absl::IsNotFound(size.status())) {
    missing_.push_back(blob);
    return absl::OkStatus();
  }
  LH_RETURN_IF_ERROR(size.status());
  if (!options_.hash_blobs) return absl::OkStatus();
  Sha256 hash;
  for (int64_t at = 0; at < *size;) {
    const absl::StatusOr<std::string> chunk = blobs_->Read(blob, at, limits::kBlobChunkBytes);
    if (!chunk.ok() || chunk->empty()) {
      Problem("blob " + blob.sha256 + " cannot be read at byte " + std::to_string(at));
      return absl::OkStatus();
    }
    hash.Update(*chunk);
    at += static_cast<int64_t>(chunk->size());
  }
  if (hash.HexDigest() != blob.sha256) Problem("blob " + blob.sha256 + " has other bytes than its name says");
  return absl::OkStatus();
}

absl::Status Checker::CountUnrecorded() {
  constexpr char kHex[] = "0123456789abcdef";
  for (int prefix = 0; prefix < 256; ++prefix) {
    LH_ASSIGN_OR_RETURN(const std::vector<BlobRef> files, blobs_->List({kHex[prefix / 16], kHex[prefix % 16]}));
    for (const BlobRef& file : files) {
      LH_ASSIGN_OR_RETURN(const bool known, QueryHasBlob(db_, file));
      report_.unrecorded_blobs += !known;
    }
  }
  return absl::OkStatus();
}

// A file that was not there while the snapshot has its row may have been collected in between: then its row is gone
// now.
absl::Status Reconsider(Db* db, BlobStore* blobs, const std::vector<BlobRef>& missing, Checker* checker) {
  for (const BlobRef& blob : missing) {
    LH_ASSIGN_OR_RETURN(Statement known, db->Prepare("SELECT EXISTS (SELECT 1 FROM blobs WHERE sha256=?1) OR "
                                                     "EXISTS (SELECT 1 FROM blob_refs WHERE sha256=?1)"));
    LH_RETURN_IF_ERROR(known.BindText(1, blob.sha256).Step().status());
    if (known.Int(0) == 0) continue;
    LH_ASSIGN_OR_RETURN(const bool present, blobs->Present(blob));
    if (!present) {
      checker->Problem("blob " + blob.sha256 + " of " + std::to_string(blob.size_bytes) + " bytes is not on the disk");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CheckReport> CheckState(const std::string& state_dir, const CheckOptions& options) {
  const std::string path = JoinPath(state_dir, "state.db");
  if (!FileExists(path)) {
    return MakeError(absl::StatusCode::kNotFound, "NO_DATABASE", "there is no state.db in " + state_dir);
  }
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<Db> db, Db::Open(path, Db::Mode::kReadOnly));
  LH_RETURN_IF_ERROR(CheckSchema(db.get()));
  BlobStore::Options read_only;
  read_only.create_folders = false;
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<BlobStore> blobs, BlobStore::Open(state_dir, std::move(read_only)));
  Checker checker(db.get(), blobs.get(), options);
  LH_RETURN_IF_ERROR(db->Exec("BEGIN"));  // one snapshot
  const absl::Status status = checker.Run();
  LH_RETURN_IF_ERROR(db->Exec("ROLLBACK"));
  // A database so broken that a query fails is a finding, too.
  if (absl::IsDataLoss(status)) {
    checker.Problem("database: " + std::string(status.message()));
  } else {
    LH_RETURN_IF_ERROR(status);
  }
  LH_RETURN_IF_ERROR(Reconsider(db.get(), blobs.get(), checker.TakeMissing(), &checker));
  return checker.TakeReport();
}

}  // namespace longhaul::storage
