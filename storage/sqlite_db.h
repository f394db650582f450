// SQLite behind three handles: Db (a connection with its cache of prepared statements), Statement (one use of a
// prepared statement), Transaction (BEGIN IMMEDIATE, rolled back unless committed). SQLite's own header stays inside
// sqlite_db.cc. A Db and what comes from it belong to one thread at a time. A Db outlives its statements and
// transactions. Errors: RESOURCE_EXHAUSTED DISK_FULL, UNAVAILABLE STORE_BUSY or STORE_IO, DATA_LOSS STORE_CORRUPT,
// ABORTED STORE_CONSTRAINT, else INTERNAL STORE_ERROR; each names the file and SQLite's own text.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;
struct sqlite3_stmt;

namespace longhaul::storage {

class Db;

// Bind with ?1, ?2, ...; bound text must stay alive until the statement is gone. Columns count from 0. Errors of Bind
// are kept and come out of Step. Destroyed: the prepared statement is reset and goes back to its Db's cache.
class Statement {
 public:
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  Statement& Bind(int index, int64_t value);
  Statement& BindText(int index, std::string_view value);
  Statement& BindBlob(int index, std::string_view value);

  // True: a row is there.
  absl::StatusOr<bool> Step();
  // For statements without rows.
  absl::Status Run();

  int64_t Int(int column) const;
  bool IsNull(int column) const;
  // Valid until the next Step.
  std::string_view Bytes(int column) const;
  std::string Text(int column) const { return std::string(Bytes(column)); }

 private:
  friend class Db;
  Statement(Db* db, sqlite3_stmt* statement) : db_(db), statement_(statement) {}
  Db* db_;
  sqlite3_stmt* statement_;
  int bind_error_ = 0;
};

class Db {
 public:
  enum class Mode { kReadWrite, kReadOnly };
  // kReadWrite creates the file, sets WAL, synchronous=FULL, foreign keys and the busy timeout.
  static absl::StatusOr<std::unique_ptr<Db>> Open(const std::string& path, Mode mode);
  ~Db();
  Db(const Db&) = delete;
  Db& operator=(const Db&) = delete;

  // `sql` is a literal: it is the key of the cache.
  absl::StatusOr<Statement> Prepare(const char* sql);
  // Text made at run time, of which there are few different ones (List's filters).
  absl::StatusOr<Statement> PrepareText(const std::string& sql);
  absl::Status Exec(const char* sql);  // one or more statements without rows
  absl::StatusOr<int64_t> QueryInt(const char* sql);
  // A copy as of this moment, of which writers go on meanwhile; durable where it is OK. REQUIRES: `path` does not
  // exist.
  absl::Status CopyTo(const std::string& path);
  absl::Status Error(int code, const std::string& doing) const;

 private:
  friend class Statement;
  Db(sqlite3* db, std::string path) : db_(db), path_(std::move(path)) {}
  sqlite3* db_;
  std::string path_;
  std::multimap<std::string, sqlite3_stmt*, std::less<>> idle_;  // prepared, not in use
  std::map<sqlite3_stmt*, std::string> sql_of_;
};

class Transaction {
 public:
  static absl::StatusOr<Transaction> Begin(Db* db);
  Transaction(Transaction&& other) noexcept : db_(std::exchange(other.db_, nullptr)) {}
  Transaction& operator=(Transaction&&) = delete;
  ~Transaction();
  absl::Status Commit();

 private:
  explicit Transaction(Db* db) : db_(db) {}
  Db* db_;  // null once committed
};

}  // namespace longhaul::storage
