#include "storage/backup.h"

#include <filesystem>
#include <memory>
#include <set>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "storage/access_store.h"
#include "storage/blob_store.h"
#include "storage/job_query.h"
#include "storage/job_writer.h"
#include "storage/migrations.h"
#include "storage/sqlite_db.h"
#include "storage/state_id.h"

namespace longhaul::storage {
namespace {

constexpr char kTemporary[] = "state.db.new";
// So often at most the database is taken anew because checkpoints were overtaken before they could be copied.
constexpr int kMaxRounds = 5;

absl::Status BadDestination(const std::string& why) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "BAD_DESTINATION", why);
}

absl::Status CheckDestination(const std::string& state_dir, const std::string& destination) {
  std::error_code error;
  const std::string from = std::filesystem::weakly_canonical(state_dir, error).string();
  const std::string to = std::filesystem::weakly_canonical(destination, error).string();
  if (to == from || to.starts_with(from + "/") || from.starts_with(to + "/")) {
    return BadDestination("the backup's folder " + destination + " and the state folder " + state_dir +
                          " contain one another: choose another folder");
  }
  const std::string log = JoinPath(destination, "state.db-wal");
  if (FileSize(log).value_or(0) > 0) {
    return BadDestination(destination +
                          " was used as a state folder and not closed in order: start and stop longhauld "
                          "on it, or choose another folder");
  }
  return absl::OkStatus();
}

// OK where the folder is empty or a backup of the state `id`: anything else in it is not ours to overwrite.
absl::Status CheckClaim(const std::string& id, const std::string& state_dir, const std::string& destination) {
  if (FileExists(JoinPath(destination, kStateIdFile))) {
    return BadDestination(destination + " is a state folder that longhauld has run on, not a backup");
  }
  const std::string mark = JoinPath(destination, kBackupOfFile);
  if (FileExists(mark)) {
    LH_ASSIGN_OR_RETURN(const std::string there, ReadFile(mark, limits::kMaxStateIdBytes));
    if (there == id) return absl::OkStatus();
    return BadDestination(destination + " has a backup of another state than " + state_dir);
  }
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(destination));
  for (const std::string& name : names) {
    // What a crash before the mark has left, and what a new file system has.
    if (name == "lock" || name == "lost+found" || name.starts_with(std::string(kBackupOfFile) + ".tmp-")) continue;
    return BadDestination(destination + " has files, " + name + " for one, and no mark of a backup of " + state_dir);
  }
  return absl::OkStatus();
}

class Backup {
 public:
  Backup(std::string state_dir, std::string destination)
      : state_dir_(std::move(state_dir)), destination_(std::move(destination)) {}

  absl::StatusOr<BackupReport> Run();

 private:
  absl::Status CopyDatabase(Db* original);
  absl::StatusOr<std::set<std::string>> CopyAllOfCopy();
  absl::StatusOr<bool> LostAnOvertaken(Db* original) const;
  absl::Status FenceCopy();
  absl::StatusOr<std::set<std::string>> CopyBlobs(Db* db, bool last);
  absl::Status CopyBlob(const BlobRef& blob);
  absl::Status CopyLogs(Db* db);
  absl::Status RemoveUnreferenced(const std::set<std::string>& wanted);

  const std::string state_dir_;
  const std::string destination_;
  std::unique_ptr<BlobStore> from_;
  std::unique_ptr<BlobStore> to_;
  BackupReport report_;
};

// Epochs and numbers of every job that may still run, and the tokens. Nobody else has the file.
absl::Status Backup::FenceCopy() {
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<Db> db, Db::Open(JoinPath(destination_, kTemporary), Db::Mode::kReadWrite));
  LH_RETURN_IF_ERROR(HoldTokens(db.get()));
  LH_ASSIGN_OR_RETURN(std::vector<server::Job> jobs, QueryLiveJobs(db.get()));
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<server::StoreTransaction> tx, BeginJobTransaction(db.get()));
  for (server::Job& job : jobs) {
    job.lease_epoch += limits::kBackupEpochStep;
    job.attempts += limits::kBackupAttemptStep;
    LH_RETURN_IF_ERROR(tx->PutJob(job));
  }
  return tx->Commit();
}

absl::Status Backup::CopyDatabase(Db* original) {
  const std::string path = JoinPath(destination_, kTemporary);
  for (const char* suffix : {"", "-wal", "-shm", "-journal"}) LH_RETURN_IF_ERROR(RemoveFile(path + suffix));
  LH_RETURN_IF_ERROR(original->CopyTo(path));
  return FenceCopy();
}

// Every blob that `db` refers to or has a row for. `last`: what is not there is lost; else it is looked for again
// later.
absl::StatusOr<std::set<std::string>> Backup::CopyBlobs(Db* db, bool last) {
  LH_ASSIGN_OR_RETURN(Statement rows, db->Prepare("SELECT sha256, size_bytes, refs FROM blobs UNION ALL "
                                                  "SELECT DISTINCT sha256, 0, 1 FROM blob_refs WHERE NOT EXISTS "
                                                  "(SELECT 1 FROM blobs WHERE blobs.sha256=blob_refs.sha256)"));
  std::set<std::string> wanted;
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return wanted;
    const BlobRef blob{rows.Text(0), rows.Int(1)};
    wanted.insert(blob.sha256);
    absl::Status copied = CopyBlob(blob);
    // Not the original's fault perhaps, but that of an earlier backup that was broken off.
    if (absl::IsUnavailable(copied) && ErrorReason(copied) == "BLOB_HASH_MISMATCH") copied = CopyBlob(blob);
    if (copied.ok()) continue;
    const bool gone = absl::IsNotFound(copied) || ErrorReason(copied) == "BLOB_HASH_MISMATCH";
    if (!gone) return copied;
    if (last && rows.Int(2) > 0) report_.lost.push_back(blob.sha256);
  }
}

absl::Status Backup::CopyBlob(const BlobRef& named) {
  LH_ASSIGN_OR_RETURN(const int64_t size, from_->Size(named));
  const BlobRef blob{named.sha256, size};
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<BlobStore::Upload> copy, to_->BeginUpload(blob));
  if (copy->complete()) {
    ++report_.blobs_kept;
    return absl::OkStatus();
  }
  for (int64_t at = copy->committed_bytes(); at < size;) {
    LH_ASSIGN_OR_RETURN(const std::string chunk, from_->Read(blob, at, limits::kBlobChunkBytes));
    if (chunk.empty()) break;
    LH_RETURN_IF_ERROR(copy->Append(at, chunk));
    at += static_cast<int64_t>(chunk.size());
  }
  LH_RETURN_IF_ERROR(copy->Finish());  // verifies what was read
  ++report_.blobs_copied;
  report_.bytes_copied += size;
  return absl::OkStatus();
}

// Logs only grow: a copy of the same size is the same. One that a deletion took meanwhile is skipped.
absl::Status Backup::CopyLogs(Db* db) {
  LH_ASSIGN_OR_RETURN(Statement rows, db->Prepare("SELECT id FROM jobs ORDER BY create_number"));
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, rows.Step());
    if (!row) return absl::OkStatus();
    const std::string folder = JoinPath("logs", rows.Text(0));
    const std::string from = JoinPath(state_dir_, folder);
    if (!IsDirectory(from)) continue;
    const absl::StatusOr<std::vector<std::string>> names = ListDir(from);
    for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
      if (name.find(".tmp-") != std::string::npos) continue;
      const std::string target = JoinPath(JoinPath(destination_, folder), name);
      const absl::StatusOr<std::string> log = ReadFile(JoinPath(from, name), 2 * limits::kMaxStoredLogBytes);
      if (!log.ok()) continue;
      if (FileSize(target).value_or(-1) == static_cast<int64_t>(log->size())) continue;
      LH_RETURN_IF_ERROR(CreateDirs(JoinPath(destination_, folder)));
      LH_RETURN_IF_ERROR(WriteFileAtomic(target, *log));
      report_.bytes_copied += static_cast<int64_t>(log->size());
    }
  }
}

absl::Status Backup::RemoveUnreferenced(const std::set<std::string>& wanted) {
  constexpr char kHex[] = "0123456789abcdef";
  for (int prefix = 0; prefix < 256; ++prefix) {
    LH_ASSIGN_OR_RETURN(const std::vector<BlobRef> files, to_->List({kHex[prefix / 16], kHex[prefix % 16]}));
    for (const BlobRef& file : files) {
      if (wanted.contains(file.sha256)) continue;
      LH_RETURN_IF_ERROR(to_->Remove(file));
      ++report_.blobs_removed;
    }
  }
  return absl::OkStatus();
}

// What the copied database refers to.
absl::StatusOr<std::set<std::string>> Backup::CopyAllOfCopy() {
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<Db> copy,
                      Db::Open(JoinPath(destination_, kTemporary), Db::Mode::kReadWrite));
  report_.lost.clear();
  LH_ASSIGN_OR_RETURN(std::set<std::string> wanted, CopyBlobs(copy.get(), true));
  LH_RETURN_IF_ERROR(CopyLogs(copy.get()));
  LH_ASSIGN_OR_RETURN(report_.jobs, copy->QueryInt("SELECT COUNT(*) FROM jobs"));
  return wanted;
}

// Something of the copied database is lost to which the original does not refer any more: a checkpoint that newer ones
// have overtaken, and that was collected since.
absl::StatusOr<bool> Backup::LostAnOvertaken(Db* original) const {
  for (const std::string& sha256 : report_.lost) {
    LH_ASSIGN_OR_RETURN(Statement refs, original->Prepare("SELECT 1 FROM blob_refs WHERE sha256=?1 LIMIT 1"));
    LH_ASSIGN_OR_RETURN(const bool referred, refs.BindText(1, sha256).Step());
    if (!referred) return true;
  }
  return false;
}

absl::StatusOr<BackupReport> Backup::Run() {
  const std::string database = JoinPath(destination_, "state.db");
  BlobStore::Options reader;
  reader.create_folders = false;
  LH_ASSIGN_OR_RETURN(from_, BlobStore::Open(state_dir_, std::move(reader)));
  LH_ASSIGN_OR_RETURN(to_, BlobStore::Open(destination_));
  std::set<std::string> wanted;
  {
    LH_ASSIGN_OR_RETURN(const std::unique_ptr<Db> original,
                        Db::Open(JoinPath(state_dir_, "state.db"), Db::Mode::kReadOnly));
    LH_RETURN_IF_ERROR(CheckSchema(original.get()));
    LH_RETURN_IF_ERROR(CopyBlobs(original.get(), false).status());
    const int64_t kept = report_.blobs_kept;  // later passes find what this one has copied
    for (int round = 1;; ++round) {
      LH_RETURN_IF_ERROR(Failpoint("backup_before_database"));
      LH_RETURN_IF_ERROR(CopyDatabase(original.get()));
      LH_RETURN_IF_ERROR(Failpoint("backup_after_database"));
      LH_ASSIGN_OR_RETURN(wanted, CopyAllOfCopy());
      LH_ASSIGN_OR_RETURN(const bool again, LostAnOvertaken(original.get()));
      if (!again || round == kMaxRounds) break;
    }
    report_.blobs_kept = kept;
  }
  LH_ASSIGN_OR_RETURN(report_.database_bytes, FileSize(JoinPath(destination_, kTemporary)));
  LH_RETURN_IF_ERROR(SyncFile(JoinPath(destination_, kTemporary)));
  for (const char* suffix : {"-wal", "-shm"}) LH_RETURN_IF_ERROR(RemoveFile(database + suffix));
  LH_RETURN_IF_ERROR(RenameFile(JoinPath(destination_, kTemporary), database));
  LH_RETURN_IF_ERROR(RemoveUnreferenced(wanted));
  return std::move(report_);
}

}  // namespace

absl::StatusOr<BackupReport> BackupState(const std::string& state_dir, const std::string& destination) {
  if (!FileExists(JoinPath(state_dir, "state.db"))) {
    return MakeError(absl::StatusCode::kNotFound, "NO_DATABASE", "there is no state.db in " + state_dir);
  }
  LH_RETURN_IF_ERROR(CheckDestination(state_dir, destination));
  const std::string id_path = JoinPath(state_dir, kStateIdFile);
  if (!FileExists(id_path)) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "SCHEMA_TOO_OLD",
                     state_dir + " has no " + kStateIdFile + ": no longhauld of this version has run on it");
  }
  LH_ASSIGN_OR_RETURN(const std::string id, ReadFile(id_path, limits::kMaxStateIdBytes));
  LH_RETURN_IF_ERROR(CreateDirs(destination));
  LH_RETURN_IF_ERROR(CheckClaim(id, state_dir, destination));  // first without the lock, which makes a file
  LH_ASSIGN_OR_RETURN(const FileLock lock, FileLock::Acquire(JoinPath(destination, "lock")));
  LH_RETURN_IF_ERROR(CheckClaim(id, state_dir, destination));
  LH_RETURN_IF_ERROR(Failpoint("backup_before_mark"));
  LH_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(destination, kBackupOfFile), id));
  LH_RETURN_IF_ERROR(Failpoint("backup_after_mark"));
  return Backup(state_dir, destination).Run();
}

}  // namespace longhaul::storage
