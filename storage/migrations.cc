#include "storage/migrations.h"

#include <array>
#include <string>

#include "base/error.h"
#include "base/failpoints.h"
#include "base/status_macros.h"

namespace longhaul::storage {
namespace {

constexpr int64_t kApplicationId = 0x4c48'4a53;  // "LHJS"

// Values are in `body` (server/core/codec.h); a column beside it exists only because a query needs it.
constexpr std::array kSteps = {
    // 1
    R"sql(
CREATE TABLE jobs(
  id TEXT PRIMARY KEY,
  project TEXT NOT NULL,
  state INTEGER NOT NULL,
  model TEXT NOT NULL,
  create_number INTEGER NOT NULL UNIQUE,
  create_wall_micros INTEGER NOT NULL,
  body BLOB NOT NULL);
CREATE INDEX jobs_by_project ON jobs(project, create_number);
CREATE INDEX jobs_by_state ON jobs(state, create_number);
CREATE INDEX jobs_by_project_state ON jobs(project, state, create_number);
CREATE INDEX jobs_by_model ON jobs(model, create_number);
CREATE INDEX jobs_live ON jobs(create_number) WHERE state < 10;

CREATE TABLE job_labels(
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  PRIMARY KEY(key, value, job_id)) WITHOUT ROWID;
CREATE INDEX job_labels_by_job ON job_labels(job_id);

CREATE TABLE attempts(
  job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  number INTEGER NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY(job_id, number)) WITHOUT ROWID;

CREATE TABLE events(
  job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY(job_id, sequence)) WITHOUT ROWID;

CREATE TABLE checkpoints(
  job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY(job_id, step)) WITHOUT ROWID;

CREATE TABLE metrics(
  job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  first_step INTEGER NOT NULL,
  last_step INTEGER NOT NULL,
  points INTEGER NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY(job_id, first_step));

CREATE TABLE request_keys(
  project TEXT NOT NULL,
  request_id TEXT NOT NULL,
  body_sha256 TEXT NOT NULL,
  job_id TEXT NOT NULL,
  create_wall_micros INTEGER NOT NULL,
  PRIMARY KEY(project, request_id)) WITHOUT ROWID;
CREATE INDEX request_keys_by_time ON request_keys(create_wall_micros);

CREATE TABLE workers(
  id TEXT PRIMARY KEY,
  body BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE blobs(
  sha256 TEXT PRIMARY KEY,
  size_bytes INTEGER NOT NULL,
  grace_wall_micros INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX blobs_by_grace ON blobs(grace_wall_micros);

-- Who keeps a blob: a job (source -1: its inputs and its artifact) or one of its checkpoints (source = step).
CREATE TABLE blob_refs(
  sha256 TEXT NOT NULL,
  job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  source INTEGER NOT NULL,
  PRIMARY KEY(sha256, job_id, source)) WITHOUT ROWID;
CREATE INDEX blob_refs_by_job ON blob_refs(job_id, source);
)sql",
    // 2: tokens, the audit log, and which project uploaded a blob
    R"sql(
-- `change` grows with each change of any row: readers take what is newer than what they have.
CREATE TABLE tokens(
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  scopes INTEGER NOT NULL,
  project TEXT NOT NULL,
  worker_id TEXT NOT NULL,
  text_sha256 TEXT NOT NULL,
  create_wall_micros INTEGER NOT NULL,
  expire_wall_micros INTEGER NOT NULL,
  revoke_wall_micros INTEGER NOT NULL,
  change INTEGER NOT NULL UNIQUE) WITHOUT ROWID;

-- AUTOINCREMENT: a number is never given twice, so that a gap shows.
CREATE TABLE audit(
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  wall_micros INTEGER NOT NULL,
  caller TEXT NOT NULL,
  host TEXT NOT NULL,
  method TEXT NOT NULL,
  project TEXT NOT NULL,
  target TEXT NOT NULL,
  code TEXT NOT NULL,
  reason TEXT NOT NULL);
CREATE INDEX audit_by_time ON audit(wall_micros);
-- Append-only: nothing changes a row, and nothing deletes one of the last 400 days.
CREATE TRIGGER audit_constant BEFORE UPDATE ON audit
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_kept BEFORE DELETE ON audit
WHEN OLD.wall_micros > (CAST(strftime('%s', 'now') AS INTEGER) - 400 * 86400) * 1000000
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;

-- Whose bytes a blob's are, beside those of the jobs that refer to it: who has shown that it has them.
CREATE TABLE blob_projects(
  project TEXT NOT NULL,
  sha256 TEXT NOT NULL REFERENCES blobs(sha256) ON DELETE CASCADE,
  PRIMARY KEY(project, sha256)) WITHOUT ROWID;
CREATE INDEX blob_projects_by_blob ON blob_projects(sha256);
    )sql",
    // 3: what is asked of a million jobs is answered by an index, and what was begun is written down.
    R"sql(
-- Labels in the order of List.
CREATE TABLE new_job_labels(
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  create_number INTEGER NOT NULL,
  job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  PRIMARY KEY(key, value, create_number)) WITHOUT ROWID;
INSERT INTO new_job_labels SELECT key, value, create_number, job_id FROM job_labels JOIN jobs ON jobs.id=job_id;
DROP TABLE job_labels;
ALTER TABLE new_job_labels RENAME TO job_labels;
CREATE INDEX job_labels_by_job ON job_labels(job_id);

-- The column never decreases along create_number, even where the clock was set back (the body keeps what it showed):
-- so a range of time is a range of numbers.
UPDATE jobs SET create_wall_micros=latest.micros FROM
  (SELECT id, MAX(create_wall_micros) OVER (ORDER BY create_number) AS micros FROM jobs) AS latest
  WHERE latest.id=jobs.id AND latest.micros<>jobs.create_wall_micros;
CREATE INDEX jobs_by_time ON jobs(create_wall_micros, create_number);
CREATE INDEX jobs_by_project_model ON jobs(project, model, create_number);

-- How many rows of blob_refs keep a blob, so that collecting garbage reads garbage only.
ALTER TABLE blobs ADD COLUMN refs INTEGER NOT NULL DEFAULT 0;
UPDATE blobs SET refs=(SELECT COUNT(*) FROM blob_refs WHERE blob_refs.sha256=blobs.sha256);
DROP INDEX blobs_by_grace;
CREATE INDEX blobs_unreferenced ON blobs(grace_wall_micros) WHERE refs=0;
CREATE TRIGGER blob_ref_added AFTER INSERT ON blob_refs BEGIN
  UPDATE blobs SET refs=refs+1 WHERE sha256=NEW.sha256;
END;
CREATE TRIGGER blob_ref_dropped AFTER DELETE ON blob_refs BEGIN
  UPDATE blobs SET refs=refs-1 WHERE sha256=OLD.sha256;
END;

CREATE TABLE totals(
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO totals SELECT 'blob_bytes', IFNULL(SUM(size_bytes), 0) FROM blobs;
CREATE TRIGGER blob_added AFTER INSERT ON blobs BEGIN
  UPDATE totals SET value=value+NEW.size_bytes WHERE name='blob_bytes';
END;
CREATE TRIGGER blob_resized AFTER UPDATE OF size_bytes ON blobs BEGIN
  UPDATE totals SET value=value+NEW.size_bytes-OLD.size_bytes WHERE name='blob_bytes';
END;
CREATE TRIGGER blob_dropped AFTER DELETE ON blobs BEGIN
  UPDATE totals SET value=value-OLD.size_bytes WHERE name='blob_bytes';
END;

-- Deleted jobs whose files are not known to be gone yet: an intent, finished at the next start or minute.
CREATE TABLE deleted_jobs(job_id TEXT PRIMARY KEY) WITHOUT ROWID;
)sql",
    // 4: a common label of other projects costs a List nothing.
    R"sql(
-- Labels in the order of List: of a project, whatever labels others use, and of all.
CREATE TABLE new_job_labels(
  project TEXT NOT NULL,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  create_number INTEGER NOT NULL,
  job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  PRIMARY KEY(project, key, value, create_number)) WITHOUT ROWID;
INSERT INTO new_job_labels
  SELECT project, key, value, job_labels.create_number, job_id FROM job_labels JOIN jobs ON jobs.id=job_id;
DROP TABLE job_labels;
ALTER TABLE new_job_labels RENAME TO job_labels;
CREATE INDEX job_labels_by_job ON job_labels(job_id);
CREATE INDEX job_labels_of_all ON job_labels(key, value, create_number);
)sql",
    // 5: a label, or a model, and the state in which a job ended are one range of an index.
    R"sql(
-- NULL while the job lives: these indexes have no row of a job until it ends, and one for good from then on.
ALTER TABLE job_labels ADD COLUMN end_state INTEGER;
UPDATE job_labels SET end_state=jobs.state FROM jobs WHERE jobs.create_number=job_labels.create_number AND jobs.state>=10;
CREATE INDEX job_labels_ended ON job_labels(project, key, value, end_state, create_number)
  WHERE end_state IS NOT NULL;
CREATE INDEX job_labels_ended_of_all ON job_labels(key, value, end_state, create_number)
  WHERE end_state IS NOT NULL;
-- Not "state>=10": SQLite would read that range of an index rather than the one state that is asked for.
CREATE INDEX jobs_ended_by_model ON jobs(model, state, create_number) WHERE state IN (10, 11, 12);
CREATE INDEX jobs_ended_by_project_model ON jobs(project, model, state, create_number) WHERE state IN (10, 11, 12);
)sql",
    // 6: a label and a model are one range of an index.
    R"sql(
-- A job's model is constant: the rows of its labels have it from the first.
ALTER TABLE job_labels ADD COLUMN model TEXT NOT NULL DEFAULT '';
UPDATE job_labels SET model=jobs.model FROM jobs WHERE jobs.create_number=job_labels.create_number;
CREATE INDEX job_labels_by_model ON job_labels(project, key, value, model, create_number);
CREATE INDEX job_labels_by_model_of_all ON job_labels(key, value, model, create_number);
)sql",
};

// The schema's number, where this build knows it.
absl::StatusOr<int64_t> KnownVersion(Db* db) {
  LH_ASSIGN_OR_RETURN(const int64_t version, db->QueryInt("PRAGMA user_version"));
  LH_ASSIGN_OR_RETURN(const int64_t application, db->QueryInt("PRAGMA application_id"));
  LH_ASSIGN_OR_RETURN(const int64_t tables, db->QueryInt("SELECT COUNT(*) FROM sqlite_master"));
  if (application != kApplicationId && (version != 0 || tables != 0)) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NOT_OURS",
                     "state.db is not a database of Longhaul: choose another state folder");
  }
  if (version > SchemaVersion()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "SCHEMA_TOO_NEW",
                     "the database has schema " + std::to_string(version) + ", this build knows up to " +
                         std::to_string(SchemaVersion()) + ": run the newer build that wrote it, or restore a backup");
  }
  return version;
}

}  // namespace

int SchemaVersion() { return static_cast<int>(kSteps.size()); }

absl::Status CheckSchema(Db* db) {
  LH_ASSIGN_OR_RETURN(const int64_t version, KnownVersion(db));
  if (version == SchemaVersion()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, "SCHEMA_TOO_OLD",
                   "the database has schema " + std::to_string(version) + ", this build has " +
                       std::to_string(SchemaVersion()) + ": start this build's longhauld on it once");
}

absl::Status Migrate(Db* db) {
  LH_ASSIGN_OR_RETURN(int64_t version, KnownVersion(db));
  for (; version < SchemaVersion(); ++version) {
    LH_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(db));
    LH_RETURN_IF_ERROR(db->Exec(kSteps[static_cast<size_t>(version)]));
    const std::string mark = "PRAGMA application_id=" + std::to_string(kApplicationId) +
                             "; PRAGMA user_version=" + std::to_string(version + 1);
    LH_RETURN_IF_ERROR(db->Exec(mark.c_str()));
    LH_RETURN_IF_ERROR(Failpoint("migration_commit"));
    LH_RETURN_IF_ERROR(transaction.Commit());
  }
  return absl::OkStatus();
}

}  // namespace longhaul::storage
