#include "storage/sqlite_db.h"

#include <sqlite3.h>

#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "storage/sqlite_vfs.h"

namespace longhaul::storage {

Statement::Statement(Statement&& other) noexcept
    : db_(other.db_),
      statement_(std::exchange(other.statement_, nullptr)),
      idle_(other.idle_),
      bind_error_(other.bind_error_) {}

Statement::~Statement() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
  idle_->push_back(statement_);
}

Statement& Statement::Bind(int index, int64_t value) {
  const int code = sqlite3_bind_int64(statement_, index, value);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

Statement& Statement::BindText(int index, std::string_view value) {
  const int code = sqlite3_bind_text64(statement_, index, value.data() == nullptr ? "" : value.data(), value.size(),
                                       SQLITE_STATIC, SQLITE_UTF8);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

Statement& Statement::BindBlob(int index, std::string_view value) {
  const int code =
      sqlite3_bind_blob64(statement_, index, value.data() == nullptr ? "" : value.data(), value.size(), SQLITE_STATIC);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

absl::StatusOr<bool> Statement::Step() {
  if (bind_error_ != 0) return db_->Error(bind_error_, "bind a value");
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return db_->Error(code, "run a statement");
}

absl::Status Statement::Run() {
  const absl::StatusOr<bool> row = Step();
  if (row.ok()) LH_CHECK(!*row, "a statement without rows gave one");
  return row.status();
}

int64_t Statement::Int(int column) const { return sqlite3_column_int64(statement_, column); }
bool Statement::IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }

std::string_view Statement::Bytes(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return data == nullptr ? std::string_view() : std::string_view(static_cast<const char*>(data), size_t(size));
}

absl::StatusOr<std::unique_ptr<Db>> Db::Open(const std::string& path, Mode mode) {
  const int flags = mode == Mode::kReadWrite ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY;
  sqlite3* handle = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &handle, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, SeamVfsName());
  std::unique_ptr<Db> db(new Db(handle, path));
  if (code != SQLITE_OK) return db->Error(code, "open " + path);
  sqlite3_busy_timeout(handle, int(limits::kStoreBusyMs));
  if (mode == Mode::kReadWrite) {
    // The log goes back into the database at 16 MiB instead of 4: a checkpoint syncs twice, while the dispatcher waits.
    // temp_store: what a savepoint may have to undo is kept in memory. In a file it was six times what the log is.
    LH_RETURN_IF_ERROR(
        db->Exec("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; "
                 "PRAGMA wal_autocheckpoint=4000; PRAGMA cache_size=-16384; PRAGMA temp_store=MEMORY;"));
  } else {
    LH_RETURN_IF_ERROR(db->Exec("PRAGMA query_only=ON;"));
  }
  return db;
}

Db::~Db() {
  for (sqlite3_stmt* statement : all_) sqlite3_finalize(statement);
  sqlite3_close(db_);
}

absl::StatusOr<Statement> Db::Prepare(const char* sql) { return PrepareText(sql); }

absl::StatusOr<Statement> Db::PrepareText(std::string_view sql) {
  auto found = idle_.find(sql);
  if (found == idle_.end()) found = idle_.emplace(std::string(sql), Idle()).first;
  Idle& idle = found->second;
  if (!idle.empty()) {
    sqlite3_stmt* statement = idle.back();
    idle.pop_back();
    return Statement(this, statement, &idle);
  }
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v3(db_, found->first.c_str(), int(found->first.size()) + 1,
                                      SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (code != SQLITE_OK) return Error(code, "prepare a statement");
  all_.push_back(statement);
  return Statement(this, statement, &idle);
}

absl::Status Db::Exec(const char* sql) {
  const int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : Error(code, "run a statement");
}

absl::StatusOr<int64_t> Db::QueryInt(const char* sql) {
  LH_ASSIGN_OR_RETURN(Statement statement, Prepare(sql));
  LH_ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return MakeError(absl::StatusCode::kInternal, "STORE_ERROR", path_ + ": a query gave no row");
  return statement.Int(0);
}

absl::Status Db::CopyTo(const std::string& path) {
  sqlite3* handle = nullptr;
  int code = sqlite3_open_v2(path.c_str(), &handle,
                             SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
                             SeamVfsName());
  const std::unique_ptr<Db> copy(new Db(handle, path));
  if (code != SQLITE_OK) return copy->Error(code, "create " + path);
  sqlite3_backup* backup = sqlite3_backup_init(handle, "main", db_, "main");
  if (backup == nullptr) return copy->Error(sqlite3_errcode(handle), "begin the copy");
  // All pages in one step, from one snapshot: in smaller ones each commit of the writer would begin the copy again.
  code = sqlite3_backup_step(backup, -1);
  const int finished = sqlite3_backup_finish(backup);
  if (code == SQLITE_DONE) code = finished;
  return code == SQLITE_OK ? absl::OkStatus() : copy->Error(code, "copy the database");
}

absl::Status Db::Error(int code, const std::string& doing) const {
  const std::string text = db_ == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(db_);
  // Callers of the scheduler are told this: the folder is not their business.
  const std::string message = "cannot " + doing + " (" + path_.substr(path_.rfind('/') + 1) + "): " + text;
  switch (code & 0xff) {
    case SQLITE_FULL:
      return MakeError(absl::StatusCode::kResourceExhausted, "DISK_FULL", message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return MakeError(absl::StatusCode::kUnavailable, "STORE_BUSY", message);
    case SQLITE_IOERR:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return MakeError(absl::StatusCode::kUnavailable, "STORE_IO", message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return MakeError(absl::StatusCode::kDataLoss, "STORE_CORRUPT", message);
    case SQLITE_CONSTRAINT:
      return MakeError(absl::StatusCode::kAborted, "STORE_CONSTRAINT", message);
    default:
      return MakeError(absl::StatusCode::kInternal, "STORE_ERROR", message);
  }
}

absl::StatusOr<Transaction> Transaction::Begin(Db* db) {
  LH_RETURN_IF_ERROR(db->Exec("BEGIN IMMEDIATE"));
  return Transaction(db);
}

Transaction::~Transaction() {
  // An error may have rolled back already: then there is nothing to undo, and SQLite's refusal says just that.
  if (db_ != nullptr) db_->Exec("ROLLBACK").IgnoreError();
}

absl::Status Transaction::Commit() {
  LH_RETURN_IF_ERROR(db_->Exec("COMMIT"));
  db_ = nullptr;
  return absl::OkStatus();
}

}  // namespace longhaul::storage
