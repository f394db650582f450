// Who may do what: scopes, callers, bearer tokens, the audit log's records. Values and pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace longhaul::server {

// Bits; a call that several scopes may make names them all.
enum class Scope : unsigned {
  kViewer = 1,
  kSubmitter = 2,
  kAdmin = 4,
  kWorker = 8,
};
constexpr unsigned operator|(Scope a, Scope b) { return static_cast<unsigned>(a) | static_cast<unsigned>(b); }
constexpr unsigned operator|(unsigned a, Scope b) { return a | static_cast<unsigned>(b); }
inline constexpr unsigned kAllScopes = 15;

// "viewer", "submitter,worker". ParseScopes: INVALID_ARGUMENT names `field`.
std::string ScopeNames(unsigned scopes);
absl::StatusOr<unsigned> ParseScopes(const std::string& field, std::string_view text);
// What holding these scopes allows: a submitter may also view, an administrator may also view and submit.
unsigned EffectiveScopes(unsigned scopes);

inline constexpr char kDefaultProject[] = "default";
inline constexpr char kAllProjects[] = "*";  // of a token
// 1 to limits::kMaxProjectBytes letters, digits, '.', '_' and '-'. INVALID_ARGUMENT names `field`.
absl::Status CheckProject(const std::string& field, const std::string& project);

// One authenticated caller. Every handler gets one from server/authenticator.h and nowhere else.
struct Caller {
  std::string name;     // "local", "token:ci", "certificate:gpu-1": the audit log, limits and sessions go by it
  std::string host;     // the other end's address without its port
  std::string project;  // what "" in a request means
  bool all_projects = false;
  unsigned scopes = 0;    // effective ones
  std::string worker_id;  // scope worker: the one worker that it may be; "" = any that nobody else owns
  std::string token_id;   // "" = no token
  bool local = false;     // the operator on a plaintext loopback
  std::string session;    // scope worker: a session of its own that the call showed, for limits; "" = none

  bool HasAny(unsigned wanted) const { return (scopes & wanted) != 0; }
  bool Has(Scope scope) const { return HasAny(static_cast<unsigned>(scope)); }
  bool MaySee(const std::string& of_project) const { return all_projects || of_project == project; }
};

// The project that a request means: its own where it names one that the caller may use, else the caller's.
// PERMISSION_DENIED OTHER_PROJECT.
absl::StatusOr<std::string> ProjectOf(const Caller& caller, const std::string& asked);

// ---- Bearer tokens ----
// The text is "lht_<id>_<secret>": the id finds the row, of the whole text only the SHA-256 is stored. The secret has
// 300 bits from the operating system's generator, so that a plain hash is enough.

struct TokenRecord {
  std::string id;
  std::string name;  // what the administrator calls it; several tokens may share it, so that one can replace another
  unsigned scopes = 0;
  std::string project;    // kAllProjects = all
  std::string worker_id;  // scope worker; "" = any
  std::string text_sha256;
  int64_t create_wall_micros = 0;
  int64_t expire_wall_micros = 0;  // 0 = never
  int64_t revoke_wall_micros = 0;  // 0 = not revoked
  int64_t change = 0;              // grows with each change of any token
  bool held = false;               // of a restored backup, and not confirmed since: it may have been revoked meanwhile
};

struct NewToken {
  std::string text;
  std::string id;
  std::string text_sha256;
};
NewToken MakeToken();
// The id inside a token's text; none where it has not the form of one.
std::optional<std::string> TokenId(std::string_view text);

enum class TokenVerdict { kValid, kUnknown, kWrong, kExpired, kRevoked, kHeld };
const char* Name(TokenVerdict verdict);  // "TOKEN_UNKNOWN", for metrics and logs; callers are never told which
// `record` null = there is none of that id. Takes the same time whatever is wrong.
TokenVerdict CheckToken(const TokenRecord* record, std::string_view text, int64_t now_wall_micros);
// Whether the token may still be used by who has shown it before.
TokenVerdict CheckStillValid(const TokenRecord* record, int64_t now_wall_micros);

// Where tokens are kept. One thread at a time.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  // In the order of their changes.
  virtual absl::StatusOr<std::vector<TokenRecord>> TokensChangedAfter(int64_t change) = 0;
};

// Everything that `longhauld token create` takes. INVALID_ARGUMENT names the flag.
absl::Status CheckTokenRecord(const TokenRecord& record);

// ---- The audit log ----

// Who did what, when, and what came of it: a row for every audited call (server/rpc/method_table.h). Strings are cut to
// limits::kMaxAuditFieldBytes.
struct AuditRecord {
  int64_t number = 0;  // 1, 2, ...; given by the store
  int64_t wall_micros = 0;
  std::string caller;
  std::string host;
  std::string method;
  std::string project;
  std::string target;  // a job, a worker, a blob, a token
  std::string code;    // "OK", "NOT_FOUND"
  std::string reason;  // ErrorInfo's
};

// A record on its way through one call. A command of the dispatcher completes it and writes it in the transaction of
// what it records, so that nothing is done without its record and nothing recorded that was not.
struct Audit {
  AuditRecord record;
  // Asked once where the call was refused, from any thread: whether there is room for its row. Null = there is.
  std::function<bool()> take_refused_row;
  bool skip = false;      // the call turned out to change nothing (validate_only), or to be one of many alike
  bool recorded = false;  // durable
};

// Fills in the outcome.
void SetOutcome(const absl::Status& status, int64_t now_wall_micros, AuditRecord* record);

}  // namespace longhaul::server
