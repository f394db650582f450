#include "storage/access_store.h"

#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "storage/migrations.h"
#include "storage/state_id.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

constexpr int64_t kDayMicros = int64_t{24} * 3600 * 1'000'000;

absl::StatusOr<std::vector<TokenRecord>> ReadTokens(Statement query) {
  std::vector<TokenRecord> tokens;
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return tokens;
    TokenRecord token;
    token.id = query.Text(0);
    token.name = query.Text(1);
    token.scopes = static_cast<unsigned>(query.Int(2));
    token.project = query.Text(3);
    token.worker_id = query.Text(4);
    token.text_sha256 = query.Text(5);
    token.create_wall_micros = query.Int(6);
    token.expire_wall_micros = query.Int(7);
    token.revoke_wall_micros = query.Int(8);
    token.change = query.Int(9);
    token.held = query.Int(10) != 0;
    tokens.push_back(std::move(token));
  }
}

absl::Status Commit(Transaction* transaction) {
  LH_RETURN_IF_ERROR(Failpoint("access_commit"));
  return transaction->Commit();
}

// Not the newest change: its number must not be given again, because readers have seen it.
absl::Status ForgetEnded(Db* db, int64_t before_wall_micros) {
  LH_ASSIGN_OR_RETURN(Statement statement,
                      db->Prepare("DELETE FROM tokens WHERE change<(SELECT MAX(change) FROM tokens) AND "
                                  "((revoke_wall_micros BETWEEN 1 AND ?1) OR (expire_wall_micros BETWEEN 1 AND ?1))"));
  return statement.Bind(1, before_wall_micros).Run();
}

absl::Status CheckRoom(Db* db, int64_t now_wall_micros) {
  LH_ASSIGN_OR_RETURN(Statement count, db->Prepare("SELECT COUNT(*) FROM tokens WHERE revoke_wall_micros=0 AND "
                                                   "(expire_wall_micros=0 OR expire_wall_micros>?1)"));
  LH_RETURN_IF_ERROR(count.Bind(1, now_wall_micros).Step().status());
  if (count.Int(0) < limits::kMaxTokens) return absl::OkStatus();
  return MakeError(absl::StatusCode::kResourceExhausted, "TOO_MANY_TOKENS",
                   "there are " + std::to_string(count.Int(0)) + " tokens, the most that there may be: revoke some");
}

absl::Status CheckKnown(Db* db, const std::string& id) {
  LH_ASSIGN_OR_RETURN(Statement known, db->Prepare("SELECT 1 FROM tokens WHERE id=?1"));
  LH_ASSIGN_OR_RETURN(const bool exists, known.BindText(1, id).Step());
  if (exists) return absl::OkStatus();
  return MakeError(absl::StatusCode::kNotFound, "TOKEN_NOT_FOUND",
                   "there is no token \"" + id + "\"; `longhauld token list` shows the ids");
}

}  // namespace

absl::Status HoldTokens(Db* db) {
  return db->Exec(
      "INSERT OR REPLACE INTO totals SELECT 'held_token_change', change FROM tokens ORDER BY change DESC LIMIT 1");
}

absl::Status InsertAudit(Db* db, const AuditRecord& record) {
  LH_ASSIGN_OR_RETURN(Statement insert,
                      db->Prepare("INSERT INTO audit(wall_micros, caller, host, method, project, target, code, reason) "
                                  "VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"));
  insert.Bind(1, record.wall_micros).BindText(2, record.caller).BindText(3, record.host).BindText(4, record.method);
  insert.BindText(5, record.project).BindText(6, record.target).BindText(7, record.code).BindText(8, record.reason);
  return insert.Run();
}

absl::StatusOr<std::vector<AuditRecord>> QueryAudit(Db* db, int64_t after_number, int most) {
  LH_ASSIGN_OR_RETURN(Statement query,
                      db->Prepare("SELECT number, wall_micros, caller, host, method, project, target, code, reason "
                                  "FROM audit WHERE number>?1 ORDER BY number LIMIT ?2"));
  query.Bind(1, after_number).Bind(2, most);
  std::vector<AuditRecord> records;
  while (true) {
    LH_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return records;
    records.push_back({query.Int(0), query.Int(1), query.Text(2), query.Text(3), query.Text(4), query.Text(5),
                       query.Text(6), query.Text(7), query.Text(8)});
  }
}

absl::StatusOr<std::unique_ptr<AccessStore>> AccessStore::OpenToRead(const std::string& state_dir) {
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Db> db, Db::Open(JoinPath(state_dir, "state.db"), Db::Mode::kReadOnly));
  return std::unique_ptr<AccessStore>(new AccessStore(std::move(db)));
}

absl::StatusOr<std::unique_ptr<AccessStore>> AccessStore::OpenToWrite(const std::string& state_dir) {
  LH_RETURN_IF_ERROR(CreateDirs(state_dir));
  absl::StatusOr<FileLock> lock = FileLock::Acquire(JoinPath(state_dir, "lock"));
  const bool shared = ErrorReason(lock.status()) == "LOCKED";
  if (!lock.ok() && !shared) return Annotate(lock.status(), "the state folder " + state_dir);
  if (!shared) LH_RETURN_IF_ERROR(OwnStateFolder(state_dir));
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Db> db, Db::Open(JoinPath(state_dir, "state.db"), Db::Mode::kReadWrite));
  if (!shared) {
    const absl::Status migrated = Migrate(db.get());
    if (!migrated.ok()) return Annotate(migrated, "the state folder " + state_dir);
    return std::unique_ptr<AccessStore>(new AccessStore(std::move(db)));
  }
  LH_ASSIGN_OR_RETURN(const int64_t version, db->QueryInt("PRAGMA user_version"));
  if (version != SchemaVersion()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "SCHEMA_MISMATCH",
                     "the scheduler that runs on " + state_dir + " has schema " + std::to_string(version) +
                         ", this build has " + std::to_string(SchemaVersion()) + ": use the same build");
  }
  return std::unique_ptr<AccessStore>(new AccessStore(std::move(db)));
}

absl::StatusOr<std::vector<TokenRecord>> AccessStore::TokensChangedAfter(int64_t change) {
  LH_ASSIGN_OR_RETURN(Statement query,
                      db_->Prepare("SELECT id, name, scopes, project, worker_id, text_sha256, create_wall_micros, "
                                   "expire_wall_micros, revoke_wall_micros, change, "
                                   "change<=IFNULL((SELECT value FROM totals WHERE name='held_token_change'), 0) "
                                   "FROM tokens WHERE change>?1 ORDER BY change"));
  query.Bind(1, change);
  return ReadTokens(std::move(query));
}

absl::StatusOr<std::vector<TokenRecord>> AccessStore::ListTokens() {
  LH_ASSIGN_OR_RETURN(Statement query,
                      db_->Prepare("SELECT id, name, scopes, project, worker_id, text_sha256, create_wall_micros, "
                                   "expire_wall_micros, revoke_wall_micros, change, "
                                   "change<=IFNULL((SELECT value FROM totals WHERE name='held_token_change'), 0) "
                                   "FROM tokens ORDER BY create_wall_micros, id"));
  return ReadTokens(std::move(query));
}

absl::Status AccessStore::CreateToken(const TokenRecord& token, const AuditRecord& audit) {
  LH_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(db_.get()));
  LH_RETURN_IF_ERROR(ForgetEnded(db_.get(), token.create_wall_micros - limits::kTokenKeepDays * kDayMicros));
  LH_RETURN_IF_ERROR(CheckRoom(db_.get(), token.create_wall_micros));
  {
    LH_ASSIGN_OR_RETURN(
        Statement insert,
        db_->Prepare("INSERT INTO tokens(id, name, scopes, project, worker_id, text_sha256, create_wall_micros, "
                     "expire_wall_micros, revoke_wall_micros, change) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, "
                     "(SELECT IFNULL(MAX(change), 0)+1 FROM tokens))"));
    insert.BindText(1, token.id).BindText(2, token.name).Bind(3, token.scopes).BindText(4, token.project);
    insert.BindText(5, token.worker_id).BindText(6, token.text_sha256).Bind(7, token.create_wall_micros);
    LH_RETURN_IF_ERROR(insert.Bind(8, token.expire_wall_micros).Run());
  }
  LH_RETURN_IF_ERROR(InsertAudit(db_.get(), audit));
  return Commit(&transaction);
}

absl::Status AccessStore::RevokeToken(const std::string& id, int64_t now_wall_micros, const AuditRecord& audit) {
  LH_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(db_.get()));
  LH_RETURN_IF_ERROR(CheckKnown(db_.get(), id));
  {
    LH_ASSIGN_OR_RETURN(Statement update,
                        db_->Prepare("UPDATE tokens SET revoke_wall_micros=?2, "
                                     "change=(SELECT MAX(change)+1 FROM tokens) WHERE id=?1 AND revoke_wall_micros=0"));
    LH_RETURN_IF_ERROR(update.BindText(1, id).Bind(2, now_wall_micros).Run());
  }
  LH_RETURN_IF_ERROR(InsertAudit(db_.get(), audit));
  return Commit(&transaction);
}

absl::Status AccessStore::ConfirmTokens(const std::vector<std::string>& ids, const std::vector<AuditRecord>& audits) {
  LH_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(db_.get()));
  for (const std::string& id : ids) {
    LH_RETURN_IF_ERROR(CheckKnown(db_.get(), id));
    LH_ASSIGN_OR_RETURN(Statement update,
                        db_->Prepare("UPDATE tokens SET change=(SELECT MAX(change)+1 FROM tokens) WHERE id=?1 AND "
                                     "change<=(SELECT value FROM totals WHERE name='held_token_change')"));
    LH_RETURN_IF_ERROR(update.BindText(1, id).Run());
  }
  for (const AuditRecord& audit : audits) LH_RETURN_IF_ERROR(InsertAudit(db_.get(), audit));
  return Commit(&transaction);
}

absl::StatusOr<std::vector<AuditRecord>> AccessStore::ListAudit(int64_t after_number, int most) {
  return QueryAudit(db_.get(), after_number, most);
}

}  // namespace longhaul::storage
