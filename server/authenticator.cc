#include "server/authenticator.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "base/net_address.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace longhaul::server {
namespace {

std::optional<std::string> DecodeBase64(std::string_view text) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t value = kAlphabet.find(c);
    if (value == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return bytes;
}

// Case does not matter in a scheme's name. Takes it and the spaces behind it off.
bool TakeScheme(std::string_view scheme, std::string_view* header) {
  if (header->size() <= scheme.size() || (*header)[scheme.size()] != ' ') return false;
  const bool same = std::equal(scheme.begin(), scheme.end(), header->begin(),
                               [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b + ('a' - 'A') : b); });
  if (!same) return false;
  header->remove_prefix(scheme.size());
  while (!header->empty() && header->front() == ' ') header->remove_prefix(1);
  return true;
}

// One answer for everything that can be wrong with a token.
absl::Status TokenInvalid() {
  return MakeError(
      absl::StatusCode::kUnauthenticated, "TOKEN_INVALID",
      "the token is unknown, expired or revoked, or not confirmed since the scheduler's state was restored");
}

absl::Status RateLimited(const std::string& what, int64_t wait_nanos) {
  return MakeError(absl::StatusCode::kResourceExhausted, "RATE_LIMITED",
                   what + ": try again in " + std::to_string(wait_nanos / 1'000'000 + 1) + " ms");
}

// As a worker's id (DispatcherCore::CheckWorker).
bool IsPrintableWord(const std::string& text) {
  return !text.empty() && text.size() <= static_cast<size_t>(limits::kMaxWorkerIdBytes) &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
}

}  // namespace

void ReadAuthorization(const std::string& header, Credentials* credentials) {
  std::string_view rest = header;
  if (TakeScheme("bearer", &rest)) {
    credentials->token = std::string(rest);
  } else if (TakeScheme("basic", &rest)) {
    const std::optional<std::string> pair = DecodeBase64(rest);
    const size_t colon = pair.has_value() ? pair->find(':') : std::string::npos;
    if (colon != std::string::npos) credentials->token = pair->substr(colon + 1);
  }
  credentials->malformed = credentials->token.empty();
}

absl::Status Authenticator::Refuse(const Credentials& credentials, const char* cause, const absl::Status& status) {
  stats_->CountAuthFailure(cause);
  const int64_t wait_nanos = failures_.Take(HostGroup(credentials.host), clock_->BootNanos());
  if (wait_nanos == 0) return status;
  stats_->CountRateLimited();
  return RateLimited("too many calls from " + credentials.host + " show credentials that are not valid", wait_nanos);
}

absl::StatusOr<Caller> Authenticator::Authenticate(const Credentials& credentials) {
  if (credentials.malformed) {
    return Refuse(credentials, "AUTHORIZATION_MALFORMED",
                  MakeError(absl::StatusCode::kUnauthenticated, "NO_CREDENTIALS",
                            "the authorization header must be \"Bearer TOKEN\""));
  }
  if (!credentials.token.empty()) return FromToken(credentials);
  if (!credentials.certificate.empty() && !options_.require_token) return FromCertificate(credentials);
  if (options_.tls || options_.require_token) {
    return Refuse(credentials, "NO_CREDENTIALS",
                  MakeError(absl::StatusCode::kUnauthenticated, "NO_CREDENTIALS",
                            "this scheduler wants a token: an administrator makes one with "
                            "`longhauld token create`; LONGHAUL_TOKEN or --token-file passes it on"));
  }
  Caller caller;
  caller.name = "local";
  caller.host = credentials.host;
  caller.project = kDefaultProject;
  caller.all_projects = true;
  caller.scopes = kAllScopes;
  caller.local = true;
  return caller;
}

// Who was given a token a moment ago uses it now; who makes ids up must not have the database read for each. Where too
// many do, an id that is new waits for the next regular read, and gets the answer of any other that is not known: one
// of its own would tell apart which ids there are.
absl::StatusOr<std::shared_ptr<const Authenticator::Tokens>> Authenticator::Knowing(const std::string& id) {
  LH_ASSIGN_OR_RETURN(std::shared_ptr<const Tokens> tokens, Fresh());
  if (id.empty() || tokens->contains(id)) return tokens;
  return reads_.Take("", clock_->BootNanos()) == 0 ? Fresh(0) : tokens;
}

absl::StatusOr<Caller> Authenticator::FromToken(const Credentials& credentials) {
  const std::optional<std::string> id = TokenId(credentials.token);
  LH_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokens> tokens, Knowing(id.value_or("")));
  const auto found = id.has_value() ? tokens->find(*id) : tokens->end();
  const TokenRecord* record = found == tokens->end() ? nullptr : &found->second;
  const TokenVerdict verdict = CheckToken(record, credentials.token, clock_->WallMicros());
  if (verdict != TokenVerdict::kValid) {
    // The log is the administrator's: there it may be said which it was.
    spdlog::debug("{} from {}, token {}", Name(verdict), credentials.host, id.value_or("?"));
    return Refuse(credentials, Name(verdict), TokenInvalid());
  }
  Caller caller;
  caller.name = "token:" + record->name;
  caller.host = credentials.host;
  caller.all_projects = record->project == kAllProjects;
  caller.project = caller.all_projects ? kDefaultProject : record->project;
  caller.scopes = EffectiveScopes(record->scopes);
  caller.worker_id = record->worker_id;
  caller.token_id = record->id;
  // A worker that shows both is held to both.
  if (caller.Has(Scope::kWorker) && !credentials.certificate.empty()) {
    if (!caller.worker_id.empty() && caller.worker_id != credentials.certificate) {
      return Refuse(credentials, "CERTIFICATE_MISMATCH",
                    MakeError(absl::StatusCode::kUnauthenticated, "CERTIFICATE_INVALID",
                              "the client certificate and the token are of different workers"));
    }
    caller.worker_id = credentials.certificate;
  }
  return caller;
}

absl::StatusOr<Caller> Authenticator::FromCertificate(const Credentials& credentials) {
  if (!IsPrintableWord(credentials.certificate)) {
    return Refuse(credentials, "CERTIFICATE_NAME",
                  MakeError(absl::StatusCode::kUnauthenticated, "CERTIFICATE_INVALID",
                            "the common name of a worker's certificate must be the worker's id: 1 to " +
                                std::to_string(limits::kMaxWorkerIdBytes) + " printable characters without spaces"));
  }
  Caller caller;
  caller.name = "certificate:" + credentials.certificate;
  caller.host = credentials.host;
  caller.project = kDefaultProject;
  caller.all_projects = true;
  caller.scopes = static_cast<unsigned>(Scope::kWorker);
  caller.worker_id = credentials.certificate;
  return caller;
}

absl::Status Authenticator::Recheck(const Caller& caller) {
  if (caller.token_id.empty()) return absl::OkStatus();
  LH_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokens> tokens, Fresh());
  const auto found = tokens->find(caller.token_id);
  const TokenRecord* record = found == tokens->end() ? nullptr : &found->second;
  const TokenVerdict verdict = CheckStillValid(record, clock_->WallMicros());
  if (verdict == TokenVerdict::kValid) return absl::OkStatus();
  stats_->CountAuthFailure(Name(verdict));
  return TokenInvalid();
}

absl::StatusOr<std::shared_ptr<const Authenticator::Tokens>> Authenticator::Fresh(int64_t most_age_ms) {
  std::lock_guard lock(mutex_);
  const int64_t now = clock_->BootNanos();
  if (known_ != nullptr && now - read_boot_nanos_ < most_age_ms * 1'000'000) return known_;
  absl::StatusOr<std::vector<TokenRecord>> changed = tokens_->TokensChangedAfter(known_change_);
  if (!changed.ok()) {
    if (known_ == nullptr) return changed.status();
    // A disk that does not answer locks nobody out: what was known goes on until it does.
    spdlog::warn("tokens cannot be read: {}", std::string(changed.status().message()));
    read_boot_nanos_ = now;
    return known_;
  }
  read_boot_nanos_ = now;
  if (known_ != nullptr && changed->empty()) return known_;
  auto next = known_ == nullptr ? std::make_shared<Tokens>() : std::make_shared<Tokens>(*known_);
  for (TokenRecord& record : *changed) {
    known_change_ = std::max(known_change_, record.change);
    (*next)[record.id] = std::move(record);
  }
  known_ = std::move(next);
  return known_;
}

}  // namespace longhaul::server
