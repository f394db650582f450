#include "server/core/access.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/random.h"
#include "base/secret.h"
#include "base/status_macros.h"

namespace longhaul::server {
namespace {

struct NamedScope {
  const char* name;
  Scope scope;
};
constexpr NamedScope kScopes[] = {
    {"viewer", Scope::kViewer}, {"submitter", Scope::kSubmitter}, {"admin", Scope::kAdmin}, {"worker", Scope::kWorker}};

constexpr std::string_view kTokenPrefix = "lht_";
constexpr size_t kTokenIdBytes = 12;
constexpr size_t kTokenSecretBytes = 60;

bool IsBase32(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '2' && c <= '7'); });
}

bool IsNameCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

bool IsPlainName(const std::string& text, int most_bytes) {
  return !text.empty() && text.size() <= static_cast<size_t>(most_bytes) &&
         std::all_of(text.begin(), text.end(), IsNameCharacter);
}

std::string NameRule(int most_bytes) {
  return "must be 1 to " + std::to_string(most_bytes) + " letters, digits, '.', '_' and '-'";
}

}  // namespace

std::string ScopeNames(unsigned scopes) {
  std::string text;
  for (const NamedScope& named : kScopes) {
    if ((scopes & static_cast<unsigned>(named.scope)) == 0) continue;
    text += (text.empty() ? "" : ",") + std::string(named.name);
  }
  return text;
}

absl::StatusOr<unsigned> ParseScopes(const std::string& field, std::string_view text) {
  unsigned scopes = 0;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view word = text.substr(at, comma - at);
    const auto* found =
        std::find_if(std::begin(kScopes), std::end(kScopes), [&](const auto& named) { return word == named.name; });
    if (found == std::end(kScopes)) {
      return InvalidField(field, "is \"" + std::string(text) + "\"; must be of " + ScopeNames(kAllScopes));
    }
    scopes = scopes | found->scope;
    at = comma + 1;
  }
  return scopes;
}

unsigned EffectiveScopes(unsigned scopes) {
  if ((scopes & static_cast<unsigned>(Scope::kAdmin)) != 0) scopes = scopes | Scope::kSubmitter;
  if ((scopes & static_cast<unsigned>(Scope::kSubmitter)) != 0) scopes = scopes | Scope::kViewer;
  return scopes;
}

absl::Status CheckProject(const std::string& field, const std::string& project) {
  if (IsPlainName(project, limits::kMaxProjectBytes)) return absl::OkStatus();
  return InvalidField(
      field, "is \"" + project.substr(0, limits::kMaxProjectBytes) + "\"; " + NameRule(limits::kMaxProjectBytes));
}

absl::StatusOr<std::string> ProjectOf(const Caller& caller, const std::string& asked) {
  if (asked.empty() || asked == caller.project) return caller.project;
  LH_RETURN_IF_ERROR(CheckProject("project", asked));
  if (caller.all_projects) return asked;
  return MakeError(absl::StatusCode::kPermissionDenied, "OTHER_PROJECT",
                   (asked == "-" ? "every project is asked for" : "the project is " + asked) +
                       "; these credentials are for " + caller.project,
                   {{"project", "is " + asked + "; may be " + caller.project}});
}

NewToken MakeToken() {
  NewToken token;
  token.id = RandomId().substr(0, kTokenIdBytes);
  token.text = std::string(kTokenPrefix) + token.id + "_" + RandomId() + RandomId() + RandomId();
  token.text_sha256 = Sha256Hex(token.text);
  return token;
}

std::optional<std::string> TokenId(std::string_view text) {
  if (text.size() != kTokenPrefix.size() + kTokenIdBytes + 1 + kTokenSecretBytes) return std::nullopt;
  if (!text.starts_with(kTokenPrefix)) return std::nullopt;
  text.remove_prefix(kTokenPrefix.size());
  const std::string_view id = text.substr(0, kTokenIdBytes);
  if (text[kTokenIdBytes] != '_' || !IsBase32(id) || !IsBase32(text.substr(kTokenIdBytes + 1))) return std::nullopt;
  return std::string(id);
}

const char* Name(TokenVerdict verdict) {
  switch (verdict) {
    case TokenVerdict::kValid:
      return "TOKEN_VALID";
    case TokenVerdict::kUnknown:
      return "TOKEN_UNKNOWN";
    case TokenVerdict::kWrong:
      return "TOKEN_WRONG";
    case TokenVerdict::kExpired:
      return "TOKEN_EXPIRED";
    case TokenVerdict::kRevoked:
      return "TOKEN_REVOKED";
    case TokenVerdict::kHeld:
      return "TOKEN_HELD";
  }
  return "?";
}

TokenVerdict CheckToken(const TokenRecord* record, std::string_view text, int64_t now_wall_micros) {
  // Of an unknown id the text is hashed and compared all the same.
  static const std::string kNobodys(64, '0');
  const bool right = SecretsEqual(Sha256Hex(text), record == nullptr ? kNobodys : record->text_sha256);
  if (record == nullptr) return TokenVerdict::kUnknown;
  if (!right) return TokenVerdict::kWrong;
  return CheckStillValid(record, now_wall_micros);
}

TokenVerdict CheckStillValid(const TokenRecord* record, int64_t now_wall_micros) {
  if (record == nullptr) return TokenVerdict::kUnknown;
  if (record->revoke_wall_micros != 0) return TokenVerdict::kRevoked;
  if (record->expire_wall_micros != 0 && record->expire_wall_micros <= now_wall_micros) return TokenVerdict::kExpired;
  if (record->held) return TokenVerdict::kHeld;
  return TokenVerdict::kValid;
}

absl::Status CheckTokenRecord(const TokenRecord& record) {
  if (!IsPlainName(record.name, limits::kMaxTokenNameBytes)) {
    return InvalidField("--name", "is \"" + record.name.substr(0, limits::kMaxTokenNameBytes) + "\"; " +
                                      NameRule(limits::kMaxTokenNameBytes));
  }
  if (record.scopes == 0 || record.scopes > kAllScopes) return InvalidField("--scope", "names no scope");
  const bool worker = (record.scopes & static_cast<unsigned>(Scope::kWorker)) != 0;
  const bool admin = (record.scopes & static_cast<unsigned>(Scope::kAdmin)) != 0;
  if (record.project != kAllProjects) {
    LH_RETURN_IF_ERROR(CheckProject("--project", record.project));
    if (admin || worker) {
      return InvalidField("--project", "is " + record.project + "; " + (admin ? "an administrator" : "a worker") +
                                           " serves every project: leave it out");
    }
  }
  if (!record.worker_id.empty() && !worker) return InvalidField("--worker-id", "goes with the scope worker alone");
  if (record.worker_id.size() > static_cast<size_t>(limits::kMaxWorkerIdBytes)) {
    return InvalidField("--worker-id",
                        "is too long; at most " + std::to_string(limits::kMaxWorkerIdBytes) + " characters");
  }
  return absl::OkStatus();
}

void SetOutcome(const absl::Status& status, int64_t now_wall_micros, AuditRecord* record) {
  record->wall_micros = now_wall_micros;
  record->code = absl::StatusCodeToString(status.code());
  record->reason = ErrorReason(status);
  for (std::string* text :
       {&record->caller, &record->host, &record->method, &record->project, &record->target, &record->reason}) {
    if (text->size() > static_cast<size_t>(limits::kMaxAuditFieldBytes)) text->resize(limits::kMaxAuditFieldBytes);
  }
}

}  // namespace longhaul::server
