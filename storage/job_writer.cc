#include "storage/job_writer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/core/codec.h"
#include "storage/access_store.h"
#include "storage/job_query.h"
#include "storage/metric_writer.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

constexpr int64_t kJobSource = -1;  // blob_refs.source of inputs and artifact

class JobTransaction final : public StoreTransaction {
 public:
  JobTransaction(Db* db, Transaction transaction) : db_(db), transaction_(std::move(transaction)) {}

  absl::Status BeginCommand() override { return RunText("SAVEPOINT command"); }
  absl::Status EndCommand(bool keep) override {
    if (!keep) LH_RETURN_IF_ERROR(RunText("ROLLBACK TO command"));
    return RunText("RELEASE command");
  }

  absl::Status PutJob(const Job& job) override;
  absl::Status DeleteJob(const std::string& id, int64_t grace_wall_micros) override;
  absl::Status ForgetDeletedJob(const std::string& id) override;
  absl::Status PutAttempt(const std::string& job_id, const Attempt& attempt) override;
  absl::Status AddEvent(const std::string& job_id, const JobEvent& event) override;
  absl::Status PutCheckpoint(const std::string& job_id, const Checkpoint& checkpoint) override;
  absl::Status DeleteCheckpoint(const std::string& job_id, int64_t step, int64_t grace_wall_micros) override;
  absl::Status PutMetrics(const std::string& job_id, const std::vector<MetricPoint>& points) override {
    return WriteMetrics(db_, job_id, points);
  }
  absl::Status ThinMetrics(const std::string& job_id, int64_t most_points) override {
    return ThinAllMetrics(db_, job_id, most_points);
  }
  absl::Status PutRequestKey(const RequestKey& key) override;
  absl::StatusOr<int> DeleteRequestKeysBefore(int64_t wall_micros, int most) override;
  absl::Status PutWorker(const Worker& worker) override;
  absl::Status DeleteWorker(const std::string& id) override;
  absl::Status PutBlob(const BlobRef& blob, int64_t wall_micros) override;
  absl::Status PutBlobProject(const BlobRef& blob, const std::string& project) override;
  absl::StatusOr<std::vector<BlobRef>> DropUnreferencedBlobs(int64_t wall_micros, int most) override;
  absl::Status AddAudit(const AuditRecord& record) override { return InsertAudit(db_, record); }
  absl::Status DeleteAuditBefore(int64_t wall_micros) override;
  absl::Status Commit() override {
    LH_RETURN_IF_ERROR(Failpoint("store_commit"));
    return transaction_.Commit();
  }

 private:
  // A literal, prepared once.
  absl::Status RunText(const char* sql) {
    LH_ASSIGN_OR_RETURN(Statement statement, db_->Prepare(sql));
    return statement.Run();
  }
  absl::Status PutLabels(const Job& job);
  absl::Status PutEndState(const Job& job);
  absl::Status PutRefs(const std::string& job_id, int64_t source, const std::vector<const BlobRef*>& blobs);
  absl::Status EraseCheckpoint(const std::string& job_id, int64_t step);
  absl::Status SetGrace(const std::vector<NamedBlob>& files, int64_t commit_wall_micros, int64_t grace_wall_micros);

  Db* db_;
  Transaction transaction_;
};

absl::Status JobTransaction::PutJob(const Job& job) {
  const std::string body = EncodeJob(job);
  LH_ASSIGN_OR_RETURN(Statement known, db_->Prepare("SELECT state FROM jobs WHERE id=?1"));
  LH_ASSIGN_OR_RETURN(const bool exists, known.BindText(1, job.id).Step());
  if (exists) {
    const bool ended = known.Int(0) >= static_cast<int64_t>(JobState::kSucceeded);
    // Project, model, labels and numbers are set at Create and constant.
    LH_ASSIGN_OR_RETURN(Statement update, db_->Prepare("UPDATE jobs SET state=?2, body=?3 WHERE id=?1"));
    update.BindText(1, job.id).Bind(2, static_cast<int64_t>(job.state)).BindBlob(3, body);
    LH_RETURN_IF_ERROR(update.Run());
    if (ended || IsTerminal(job.state)) LH_RETURN_IF_ERROR(PutEndState(job));
  } else {
    LH_ASSIGN_OR_RETURN(
        Statement insert,
        db_->Prepare("INSERT INTO jobs(id, project, state, model, create_number, create_wall_micros, body) "
                     "VALUES(?1, ?2, ?3, ?4, ?5, MAX(?6, IFNULL((SELECT MAX(create_wall_micros) FROM jobs), 0)), ?7)"));
    insert.BindText(1, job.id).BindText(2, job.project).Bind(3, static_cast<int64_t>(job.state));
    insert.BindText(4, job.model).Bind(5, static_cast<int64_t>(job.create_number)).Bind(6, job.create_wall_micros);
    LH_RETURN_IF_ERROR(insert.BindBlob(7, body).Run());
    LH_RETURN_IF_ERROR(PutLabels(job));
  }
  std::vector<const BlobRef*> blobs;
  for (const BlobRef& input : job.inputs) blobs.push_back(&input);
  for (const NamedBlob& file : job.artifact) blobs.push_back(&file.blob);
  // Inputs are constant and the artifact comes once: rewriting a running job's row writes no references.
  return exists && job.artifact.empty() ? absl::OkStatus() : PutRefs(job.id, kJobSource, blobs);
}

absl::Status JobTransaction::PutLabels(const Job& job) {
  for (const auto& [key, value] : job.labels) {
    LH_ASSIGN_OR_RETURN(Statement insert,
                        db_->Prepare("INSERT INTO job_labels(project, key, value, create_number, job_id, model, "
                                     "end_state) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)"));
    insert.BindText(1, job.project).BindText(2, key).BindText(3, value);
    insert.Bind(4, static_cast<int64_t>(job.create_number));
    insert.BindText(5, job.id).BindText(6, job.model);
    if (IsTerminal(job.state)) insert.Bind(7, static_cast<int64_t>(job.state));
    LH_RETURN_IF_ERROR(insert.Run());
  }
  return absl::OkStatus();
}

// Once in a job's life, as it ends: what lives is found by its state alone.
absl::Status JobTransaction::PutEndState(const Job& job) {
  LH_ASSIGN_OR_RETURN(Statement update,
                      db_->Prepare("UPDATE job_labels SET end_state=?2 WHERE job_id=?1 AND end_state IS NOT ?2"));
  update.BindText(1, job.id);
  if (IsTerminal(job.state)) update.Bind(2, static_cast<int64_t>(job.state));
  return update.Run();
}

absl::Status JobTransaction::PutRefs(const std::string& job_id, int64_t source,
                                     const std::vector<const BlobRef*>& blobs) {
  for (const BlobRef* blob : blobs) {
    LH_ASSIGN_OR_RETURN(Statement insert,
                        db_->Prepare("INSERT OR IGNORE INTO blob_refs(sha256, job_id, source) VALUES(?1, ?2, ?3)"));
    LH_RETURN_IF_ERROR(insert.BindText(1, blob->sha256).BindText(2, job_id).Bind(3, source).Run());
  }
  return absl::OkStatus();
}

absl::Status JobTransaction::DeleteJob(const std::string& id, int64_t grace_wall_micros) {
  LH_ASSIGN_OR_RETURN(const std::vector<Checkpoint> checkpoints, QueryCheckpoints(db_, id));
  for (const Checkpoint& checkpoint : checkpoints) {
    LH_RETURN_IF_ERROR(DeleteCheckpoint(id, checkpoint.step, grace_wall_micros));
  }
  std::optional<Job> job;
  {
    LH_ASSIGN_OR_RETURN(Statement read, db_->Prepare("SELECT body FROM jobs WHERE id=?1"));
    LH_ASSIGN_OR_RETURN(const bool row, read.BindText(1, id).Step());
    if (row) {
      LH_ASSIGN_OR_RETURN(job, DecodeJob(read.Bytes(0)));
    }
  }
  LH_ASSIGN_OR_RETURN(Statement intent,
                      db_->Prepare("INSERT OR IGNORE INTO deleted_jobs(job_id) SELECT id FROM jobs WHERE id=?1"));
  LH_RETURN_IF_ERROR(intent.BindText(1, id).Run());
  LH_ASSIGN_OR_RETURN(Statement statement, db_->Prepare("DELETE FROM jobs WHERE id=?1"));
  LH_RETURN_IF_ERROR(statement.BindText(1, id).Run());  // the rest cascades
  if (!job.has_value()) return absl::OkStatus();
  return SetGrace(job->artifact, job->artifact_wall_micros, grace_wall_micros);
}

absl::Status JobTransaction::ForgetDeletedJob(const std::string& id) {
  LH_ASSIGN_OR_RETURN(Statement statement, db_->Prepare("DELETE FROM deleted_jobs WHERE job_id=?1"));
  return statement.BindText(1, id).Run();
}

absl::Status JobTransaction::PutAttempt(const std::string& job_id, const Attempt& attempt) {
  const std::string body = EncodeAttempt(attempt);
  LH_ASSIGN_OR_RETURN(Statement statement,
                      db_->Prepare("INSERT INTO attempts(job_id, number, body) VALUES(?1, ?2, ?3) "
                                   "ON CONFLICT(job_id, number) DO UPDATE SET body=excluded.body"));
  return statement.BindText(1, job_id).Bind(2, attempt.number).BindBlob(3, body).Run();
}

absl::Status JobTransaction::AddEvent(const std::string& job_id, const JobEvent& event) {
  LH_ASSIGN_OR_RETURN(Statement last, db_->Prepare("SELECT IFNULL(MAX(sequence), 0) FROM events WHERE job_id=?1"));
  LH_RETURN_IF_ERROR(last.BindText(1, job_id).Step().status());
  if (event.sequence != last.Int(0) + 1) {
    return MakeError(
        absl::StatusCode::kAborted, "SEQUENCE_NOT_DENSE",
        "event " + std::to_string(event.sequence) + " of " + job_id + " after " + std::to_string(last.Int(0)));
  }
  const std::string body = EncodeEvent(event);
  LH_ASSIGN_OR_RETURN(Statement insert, db_->Prepare("INSERT INTO events(job_id, sequence, body) VALUES(?1, ?2, ?3)"));
  return insert.BindText(1, job_id).Bind(2, event.sequence).BindBlob(3, body).Run();
}

absl::Status JobTransaction::PutCheckpoint(const std::string& job_id, const Checkpoint& checkpoint) {
  LH_RETURN_IF_ERROR(EraseCheckpoint(job_id, checkpoint.step));
  const std::string body = EncodeCheckpoint(checkpoint);
  LH_ASSIGN_OR_RETURN(Statement insert, db_->Prepare("INSERT INTO checkpoints(job_id, step, body) VALUES(?1, ?2, ?3)"));
  LH_RETURN_IF_ERROR(insert.BindText(1, job_id).Bind(2, checkpoint.step).BindBlob(3, body).Run());
  std::vector<const BlobRef*> blobs;
  for (const NamedBlob& file : checkpoint.files) blobs.push_back(&file.blob);
  return PutRefs(job_id, checkpoint.step, blobs);
}

absl::Status JobTransaction::DeleteCheckpoint(const std::string& job_id, int64_t step, int64_t grace_wall_micros) {
  std::optional<Checkpoint> checkpoint;
  {
    LH_ASSIGN_OR_RETURN(Statement read, db_->Prepare("SELECT body FROM checkpoints WHERE job_id=?1 AND step=?2"));
    LH_ASSIGN_OR_RETURN(const bool row, read.BindText(1, job_id).Bind(2, step).Step());
    if (!row) return absl::OkStatus();
    LH_ASSIGN_OR_RETURN(checkpoint, DecodeCheckpoint(read.Bytes(0)));
  }
  LH_RETURN_IF_ERROR(EraseCheckpoint(job_id, step));
  return SetGrace(checkpoint->files, checkpoint->commit_wall_micros, grace_wall_micros);
}

// A grace that began by the commit is that of the upload which the commit ended; a later one is somebody's who was told
// since that the blob is there. REQUIRES: the references are dropped.
absl::Status JobTransaction::SetGrace(const std::vector<NamedBlob>& files, int64_t commit_wall_micros,
                                      int64_t grace_wall_micros) {
  for (const NamedBlob& file : files) {
    LH_ASSIGN_OR_RETURN(Statement update,
                        db_->Prepare("UPDATE blobs SET grace_wall_micros=CASE WHEN grace_wall_micros<=?2 THEN ?3 ELSE "
                                     "MAX(grace_wall_micros, ?3) END WHERE sha256=?1 AND refs=0"));
    update.BindText(1, file.blob.sha256).Bind(2, commit_wall_micros);
    LH_RETURN_IF_ERROR(update.Bind(3, grace_wall_micros).Run());
  }
  return absl::OkStatus();
}

absl::Status JobTransaction::EraseCheckpoint(const std::string& job_id, int64_t step) {
  LH_ASSIGN_OR_RETURN(Statement refs, db_->Prepare("DELETE FROM blob_refs WHERE job_id=?1 AND source=?2"));
  LH_RETURN_IF_ERROR(refs.BindText(1, job_id).Bind(2, step).Run());
  LH_ASSIGN_OR_RETURN(Statement row, db_->Prepare("DELETE FROM checkpoints WHERE job_id=?1 AND step=?2"));
  return row.BindText(1, job_id).Bind(2, step).Run();
}

absl::Status JobTransaction::PutRequestKey(const RequestKey& key) {
  LH_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("INSERT OR REPLACE INTO request_keys(project, request_id, body_sha256, job_id, create_wall_micros) "
                   "VALUES(?1, ?2, ?3, ?4, ?5)"));
  statement.BindText(1, key.project).BindText(2, key.request_id).BindText(3, key.body_sha256);
  return statement.BindText(4, key.job_id).Bind(5, key.create_wall_micros).Run();
}

absl::StatusOr<int> JobTransaction::DeleteRequestKeysBefore(int64_t wall_micros, int most) {
  LH_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("DELETE FROM request_keys WHERE (project, request_id) IN (SELECT project, request_id "
                   "FROM request_keys WHERE create_wall_micros<?1 ORDER BY create_wall_micros LIMIT ?2) RETURNING 1"));
  statement.Bind(1, wall_micros).Bind(2, most);
  for (int deleted = 0;; ++deleted) {
    LH_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return deleted;
  }
}

absl::Status JobTransaction::PutWorker(const Worker& worker) {
  const std::string body = EncodeWorker(worker);
  LH_ASSIGN_OR_RETURN(Statement statement, db_->Prepare("INSERT INTO workers(id, body) VALUES(?1, ?2) "
                                                        "ON CONFLICT(id) DO UPDATE SET body=excluded.body"));
  return statement.BindText(1, worker.id).BindBlob(2, body).Run();
}

absl::Status JobTransaction::DeleteWorker(const std::string& id) {
  LH_ASSIGN_OR_RETURN(Statement statement, db_->Prepare("DELETE FROM workers WHERE id=?1"));
  return statement.BindText(1, id).Run();
}

absl::Status JobTransaction::PutBlob(const BlobRef& blob, int64_t wall_micros) {
  {
    // Nearly always it is there. Its references are counted only where it is not: a dataset may have thousands.
    LH_ASSIGN_OR_RETURN(Statement renew, db_->Prepare("UPDATE blobs SET grace_wall_micros=MAX(grace_wall_micros, ?3) "
                                                      "WHERE sha256=?1 AND size_bytes=?2 RETURNING 1"));
    renew.BindText(1, blob.sha256).Bind(2, blob.size_bytes).Bind(3, wall_micros);
    LH_ASSIGN_OR_RETURN(const bool there, renew.Step());
    if (there) return absl::OkStatus();
  }
  LH_ASSIGN_OR_RETURN(Statement statement,
                      db_->Prepare("INSERT INTO blobs(sha256, size_bytes, grace_wall_micros, refs) "
                                   "VALUES(?1, ?2, ?3, (SELECT COUNT(*) FROM blob_refs WHERE sha256=?1)) "
                                   "ON CONFLICT(sha256) DO UPDATE SET size_bytes=excluded.size_bytes, "
                                   "grace_wall_micros=MAX(grace_wall_micros, excluded.grace_wall_micros)"));
  return statement.BindText(1, blob.sha256).Bind(2, blob.size_bytes).Bind(3, wall_micros).Run();
}

absl::StatusOr<std::vector<BlobRef>> JobTransaction::DropUnreferencedBlobs(int64_t wall_micros, int most) {
  std::vector<BlobRef> dropped;
  {
    LH_ASSIGN_OR_RETURN(Statement find,
                        db_->Prepare("SELECT sha256, size_bytes FROM blobs WHERE refs=0 AND grace_wall_micros<?1 "
                                     "ORDER BY grace_wall_micros LIMIT ?2"));
    find.Bind(1, wall_micros).Bind(2, most);
    while (true) {
      LH_ASSIGN_OR_RETURN(const bool row, find.Step());
      if (!row) break;
      dropped.push_back({find.Text(0), find.Int(1)});
    }
  }
  for (const BlobRef& blob : dropped) {
    LH_ASSIGN_OR_RETURN(Statement erase, db_->Prepare("DELETE FROM blobs WHERE sha256=?1"));
    LH_RETURN_IF_ERROR(erase.BindText(1, blob.sha256).Run());
  }
  return dropped;
}

absl::Status JobTransaction::PutBlobProject(const BlobRef& blob, const std::string& project) {
  LH_ASSIGN_OR_RETURN(Statement statement,
                      db_->Prepare("INSERT OR IGNORE INTO blob_projects(project, sha256) VALUES(?1, ?2)"));
  return statement.BindText(1, project).BindText(2, blob.sha256).Run();
}

absl::Status JobTransaction::DeleteAuditBefore(int64_t wall_micros) {
  LH_ASSIGN_OR_RETURN(Statement statement, db_->Prepare("DELETE FROM audit WHERE wall_micros<?1"));
  return statement.Bind(1, wall_micros).Run();
}

}  // namespace

absl::StatusOr<std::unique_ptr<StoreTransaction>> BeginJobTransaction(Db* db) {
  LH_RETURN_IF_ERROR(Failpoint("store_begin"));
  LH_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(db));
  return std::make_unique<JobTransaction>(db, std::move(transaction));
}

}  // namespace longhaul::storage
