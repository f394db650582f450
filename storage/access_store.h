// Tokens and the audit log of a state folder, beside the dispatcher's store: for the scheduler's own look at tokens,
// and for `longhauld token` and `longhauld audit`, which work whether a scheduler runs on the folder or not. One thread
// at a time. Errors of SQLite as storage/sqlite_db.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/access.h"
#include "storage/sqlite_db.h"

namespace longhaul::storage {

// One row, on any connection; within the transaction that is open there, if one is.
absl::Status InsertAudit(Db* db, const server::AuditRecord& record);
// By number.
absl::StatusOr<std::vector<server::AuditRecord>> QueryAudit(Db* db, int64_t after_number, int most);

// On a backup's database: the tokens that it has work on it only once they have been confirmed, because one of them may
// be revoked in the original later.
absl::Status HoldTokens(Db* db);

class AccessStore final : public server::TokenSource {
 public:
  // For the process that holds the state folder: reads only. REQUIRES: OpenJobStore has brought the schema up to date.
  static absl::StatusOr<std::unique_ptr<AccessStore>> OpenToRead(const std::string& state_dir);
  // For the commands. Where no scheduler runs on the folder, makes what is absent and migrates, under the folder's lock
  // and no longer; where one runs, shares the database with it. FAILED_PRECONDITION SCHEMA_MISMATCH where that one is
  // of another version.
  static absl::StatusOr<std::unique_ptr<AccessStore>> OpenToWrite(const std::string& state_dir);

  absl::StatusOr<std::vector<server::TokenRecord>> TokensChangedAfter(int64_t change) override;
  absl::StatusOr<std::vector<server::TokenRecord>> ListTokens();  // by time of creation

  // Durable, with its audit record. RESOURCE_EXHAUSTED TOO_MANY_TOKENS past limits::kMaxTokens that still work.
  // Forgets tokens that ended limits::kTokenKeepDays ago.
  absl::Status CreateToken(const server::TokenRecord& token, const server::AuditRecord& audit);
  // Of a revoked one OK. NOT_FOUND TOKEN_NOT_FOUND.
  absl::Status RevokeToken(const std::string& id, int64_t now_wall_micros, const server::AuditRecord& audit);
  // Held tokens work again; of others OK, and a revoked one stays so. All or none; NOT_FOUND TOKEN_NOT_FOUND.
  absl::Status ConfirmTokens(const std::vector<std::string>& ids, const std::vector<server::AuditRecord>& audits);

  absl::StatusOr<std::vector<server::AuditRecord>> ListAudit(int64_t after_number, int most);

 private:
  explicit AccessStore(std::unique_ptr<Db> db) : db_(std::move(db)) {}
  const std::unique_ptr<Db> db_;
};

}  // namespace longhaul::storage
