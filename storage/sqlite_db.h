// SQLite behind three handles: Db (a connection with its cache of prepared statements), Statement (one use of a
// prepared statement), Transaction (BEGIN IMMEDIATE, rolled back unless committed). SQLite's own header stays inside
// sqlite_db.cc. A Db and what comes from it belong to one thread at a time. A Db outlives its statements and
// transactions. Errors: RESOURCE_EXHAUSTED DISK_FULL, UNAVAILABLE STORE_BUSY or STORE_IO, DATA_LOSS STORE_CORRUPT,
// ABORTED STORE_CONSTRAINT, else INTERNAL STORE_ERROR; each names the file and SQLite's own text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

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
  Statement(Db* db, sqlite3_stmt* statement, std::vector<sqlite3_stmt*>* idle)
      : db_(db), statement_(statement), idle_(idle) {}
  Db* db_;
  sqlite3_stmt* statement_;
  std::vector<sqlite3_stmt*>* idle_;  // of its Db: where it goes back to
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
  absl::StatusOr<Statement> PrepareText(std::string_view sql);
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
  struct TextHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  // The prepared statements of one text that are not in use.
  using Idle = std::vector<sqlite3_stmt*>;
  std::unordered_map<std::string, Idle, TextHash, std::equal_to<>> idle_;  // never erased: statements point at theirs
  std::vector<sqlite3_stmt*> all_;
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
