#include "server/access_commands.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <ostream>
#include <vector>

#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "server/core/access.h"
#include "storage/access_store.h"

namespace longhaul::server {
namespace {

constexpr int64_t kSecondMicros = 1'000'000;
constexpr int64_t kDayMicros = 24 * 3600 * kSecondMicros;

// Who runs the command, as the operating system has it.
AuditRecord AuditOf(const char* method, const Clock& clock) {
  AuditRecord record;
  const uid_t uid = ::getuid();
  const passwd* entry = ::getpwuid(uid);
  record.caller = "os:" + (entry == nullptr ? std::to_string(uid) : std::string(entry->pw_name));
  record.host = HostName();
  record.method = method;
  SetOutcome(absl::OkStatus(), clock.WallMicros(), &record);
  return record;
}

const char* StateOf(const TokenRecord& token, int64_t now_wall_micros) {
  switch (CheckStillValid(&token, now_wall_micros)) {
    case TokenVerdict::kValid:
      return "valid";
    case TokenVerdict::kExpired:
      return "expired";
    case TokenVerdict::kHeld:
      return "held";
    default:
      return "revoked";
  }
}

std::string TimeOr(int64_t wall_micros, const char* otherwise) {
  return wall_micros == 0 ? otherwise : FormatTimestamp(wall_micros);
}

void PrintTable(const std::vector<std::vector<std::string>>& rows, std::ostream& out) {
  std::vector<size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i) out << row[i] << std::string(widths[i] + 2 - row[i].size(), ' ');
    out << row.back() << "\n";
  }
}

// One line; a string that is no UTF-8 (it was cut) loses what is not.
void PrintJson(const nlohmann::ordered_json& json, std::ostream& out) {
  out << json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
}

void PrintTokens(const std::vector<TokenRecord>& tokens, bool json, int64_t now_wall_micros, std::ostream& out) {
  std::vector<std::vector<std::string>> rows = {
      {"ID", "NAME", "SCOPES", "PROJECT", "WORKER", "CREATED", "EXPIRES", "STATE"}};
  for (const TokenRecord& token : tokens) {
    const std::string scopes = ScopeNames(token.scopes);
    const char* state = StateOf(token, now_wall_micros);
    rows.push_back({token.id, token.name, scopes, token.project, token.worker_id.empty() ? "-" : token.worker_id,
                    FormatTimestamp(token.create_wall_micros), TimeOr(token.expire_wall_micros, "never"), state});
    if (!json) continue;
    PrintJson({{"id", token.id},
               {"name", token.name},
               {"scopes", scopes},
               {"project", token.project},
               {"worker_id", token.worker_id},
               {"created", FormatTimestamp(token.create_wall_micros)},
               {"expires", TimeOr(token.expire_wall_micros, "")},
               {"revoked", TimeOr(token.revoke_wall_micros, "")},
               {"state", state}},
              out);
  }
  if (!json) PrintTable(rows, out);
}

absl::Status CreateToken(const std::string& state_dir, TokenRecord token, const std::string& lifetime,
                         const Clock& clock, std::ostream& out, std::ostream& err) {
  LH_ASSIGN_OR_RETURN(const int64_t lifetime_micros, ParseLifetime(lifetime));
  LH_RETURN_IF_ERROR(CheckTokenRecord(token));
  const NewToken made = MakeToken();
  token.id = made.id;
  token.text_sha256 = made.text_sha256;
  token.create_wall_micros = clock.WallMicros();
  token.expire_wall_micros = lifetime_micros == 0 ? 0 : token.create_wall_micros + lifetime_micros;
  AuditRecord audit = AuditOf("token create", clock);
  audit.project = token.project;
  audit.target = token.id;
  const bool made_folder = !FileExists(JoinPath(state_dir, "state.db"));
  LH_ASSIGN_OR_RETURN(const auto store, storage::AccessStore::OpenToWrite(state_dir));
  LH_RETURN_IF_ERROR(store->CreateToken(token, audit));
  if (made_folder) err << "made a new state folder, " << state_dir << ": only a scheduler on it knows the token\n";
  out << made.text << "\n";
  err << "token " << token.id << " (" << token.name << ": " << ScopeNames(token.scopes) << ", project " << token.project
      << ") expires " << TimeOr(token.expire_wall_micros, "never")
      << ". It is shown this once: only its hash is stored.\n";
  return absl::OkStatus();
}

// For what makes nothing: a mistyped folder is said, not made.
absl::StatusOr<std::unique_ptr<storage::AccessStore>> OpenExisting(const std::string& state_dir) {
  if (FileExists(JoinPath(state_dir, "state.db"))) return storage::AccessStore::OpenToWrite(state_dir);
  return MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
                   state_dir + " is no scheduler's state folder: it has no state.db");
}

absl::Status RevokeToken(const std::string& state_dir, const std::string& id, const Clock& clock, std::ostream& err) {
  AuditRecord audit = AuditOf("token revoke", clock);
  audit.target = id;
  LH_ASSIGN_OR_RETURN(const auto store, OpenExisting(state_dir));
  LH_RETURN_IF_ERROR(store->RevokeToken(id, clock.WallMicros(), audit));
  err << "token " << id << " is revoked; a running scheduler refuses it within "
      << FormatDuration(static_cast<double>(limits::kTokenRefreshMs) / 1000) << "\n";
  return absl::OkStatus();
}

absl::Status ConfirmTokens(const std::string& state_dir, std::vector<std::string> ids, bool all, const Clock& clock,
                           std::ostream& err) {
  if (all != ids.empty()) return InvalidField("ID", "must name tokens, or --all takes every one that is held");
  LH_ASSIGN_OR_RETURN(const auto store, OpenExisting(state_dir));
  LH_ASSIGN_OR_RETURN(const std::vector<TokenRecord> tokens, store->ListTokens());
  for (const TokenRecord& token : tokens) {
    const bool named = std::find(ids.begin(), ids.end(), token.id) != ids.end();
    if (CheckStillValid(&token, clock.WallMicros()) == TokenVerdict::kHeld) {
      if (all) ids.push_back(token.id);
    } else if (named) {
      return InvalidField("ID", token.id + " is not held: `longhauld token list` says what it is");
    }
  }
  std::vector<AuditRecord> audits;
  for (const std::string& id : ids) {
    audits.push_back(AuditOf("token confirm", clock));
    audits.back().target = id;
  }
  LH_RETURN_IF_ERROR(store->ConfirmTokens(ids, audits));
  err << ids.size() << (ids.size() == 1 ? " token is confirmed" : " tokens are confirmed") << "\n";
  return absl::OkStatus();
}

absl::Status PrintAudit(const std::string& state_dir, int64_t after_number, int limit, std::ostream& out) {
  LH_ASSIGN_OR_RETURN(const auto store, OpenExisting(state_dir));
  LH_ASSIGN_OR_RETURN(const std::vector<AuditRecord> records, store->ListAudit(after_number, limit));
  for (const AuditRecord& record : records) {
    PrintJson({{"number", record.number},
               {"time", FormatTimestamp(record.wall_micros)},
               {"caller", record.caller},
               {"host", record.host},
               {"method", record.method},
               {"project", record.project},
               {"target", record.target},
               {"code", record.code},
               {"reason", record.reason}},
              out);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> ParseLifetime(const std::string& text) {
  if (text == "never") return 0;
  int64_t count = 0;
  const char* end = text.data() + text.size();
  const auto [unit, error] = std::from_chars(text.data(), end, count);
  int64_t unit_micros = 0;
  if (error == std::errc{} && end - unit == 1) {
    switch (*unit) {
      case 'd':
        unit_micros = kDayMicros;
        break;
      case 'h':
        unit_micros = 3600 * kSecondMicros;
        break;
      case 'm':
        unit_micros = 60 * kSecondMicros;
        break;
      case 's':
        unit_micros = kSecondMicros;
        break;
    }
  }
  const int64_t most_micros = limits::kMaxTokenDays * kDayMicros;
  if (unit_micros == 0 || count < 1 || count > most_micros / unit_micros) {
    return InvalidField("--expires-in", "is \"" + text + "\"; must be like 90d, 12h, 30m or 45s, at most " +
                                            std::to_string(limits::kMaxTokenDays) + "d, or never");
  }
  return count * unit_micros;
}

AccessCommands::AccessCommands(CLI::App* app, const std::string* state_dir) : state_dir_(state_dir) {
  AddTokenCommands(app);
  AddAuditCommand(app);
}

void AccessCommands::AddTokenCommands(CLI::App* app) {
  CLI::App* token = app->add_subcommand("token", "Bearer tokens of this state folder");
  token->require_subcommand(1);
  CLI::App* create = token->add_subcommand("create", "Make a token; prints it, this once");
  create->add_option("--name", name_, "Whose it is, for lists and the audit log")->required();
  create->add_option("--scope", scopes_, "Of viewer, submitter, admin and worker, with commas")->required();
  create->add_option("--project", project_,
                     "The project it is for, or '*'; by default \"default\", of an "
                     "administrator or a worker '*'");
  create->add_option("--worker-id", worker_id_, "Scope worker: the one worker it is for; by default any");
  lifetime_ = std::to_string(limits::kDefaultTokenDays) + "d";
  create->add_option("--expires-in", lifetime_, "90d, 12h, 30m, 45s or never")->capture_default_str();
  create->callback([this] {
    run_ = [this](const Clock& clock, std::ostream& out, std::ostream& err) -> absl::Status {
      TokenRecord record;
      record.name = name_;
      LH_ASSIGN_OR_RETURN(record.scopes, ParseScopes("--scope", scopes_));
      const bool everywhere = (record.scopes & (Scope::kAdmin | Scope::kWorker)) != 0;
      record.project = !project_.empty() ? project_ : everywhere ? kAllProjects : kDefaultProject;
      record.worker_id = worker_id_;
      return CreateToken(*state_dir_, std::move(record), lifetime_, clock, out, err);
    };
  });
  CLI::App* list = token->add_subcommand("list", "Tokens, without what is secret of them");
  list->add_flag("--json", json_, "One JSON object a line");
  list->callback([this] {
    run_ = [this](const Clock& clock, std::ostream& out, std::ostream&) -> absl::Status {
      LH_ASSIGN_OR_RETURN(const auto store, OpenExisting(*state_dir_));
      LH_ASSIGN_OR_RETURN(const std::vector<TokenRecord> tokens, store->ListTokens());
      PrintTokens(tokens, json_, clock.WallMicros(), out);
      return absl::OkStatus();
    };
  });
  CLI::App* confirm = token->add_subcommand(
      "confirm", "Let tokens work again that a restored backup holds: check first that none was revoked since");
  confirm->add_option("ID", ids_, "As `token list` shows them, with the state \"held\"");
  confirm->add_flag("--all", all_, "Every token that is held");
  confirm->callback([this] {
    run_ = [this](const Clock& clock, std::ostream&, std::ostream& err) {
      return ConfirmTokens(*state_dir_, ids_, all_, clock, err);
    };
  });
  CLI::App* revoke = token->add_subcommand("revoke", "End a token");
  revoke->add_option("ID", id_, "As `token list` shows it")->required();
  revoke->callback([this] {
    run_ = [this](const Clock& clock, std::ostream&, std::ostream& err) {
      return RevokeToken(*state_dir_, id_, clock, err);
    };
  });
}

void AccessCommands::AddAuditCommand(CLI::App* app) {
  CLI::App* audit = app->add_subcommand("audit", "Who changed what, when, and what came of it: one JSON object a line");
  audit->add_option("--after", after_number_, "Records behind this number")->capture_default_str();
  limit_ = limits::kMaxAuditPage;
  audit->add_option("--limit", limit_, "So many at most")
      ->check(CLI::Range(1, limits::kMaxAuditPage))
      ->capture_default_str();
  audit->callback([this] {
    run_ = [this](const Clock&, std::ostream& out, std::ostream&) {
      return PrintAudit(*state_dir_, after_number_, limit_, out);
    };
  });
}

}  // namespace longhaul::server
