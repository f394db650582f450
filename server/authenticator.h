// Who calls: the one place where credentials become a Caller, for gRPC and for HTTP. Thread-safe.
//
// On a plaintext listener, which is on the loopback, a caller without a token is the local operator, unless tokens are
// required. Over TLS everybody shows a token or, workers, a client certificate; the loopback is no exception, because
// tunnels and proxies come from there, too.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/rate_limiter.h"
#include "server/core/access.h"
#include "server/request_stats.h"

namespace longhaul::server {

// What a connection and a request bring along.
struct Credentials {
  std::string host;         // the other end's address without its port
  std::string token;        // "" = none
  std::string certificate;  // common name of a verified client certificate, "" = none
  bool malformed = false;   // an authorization header that is none of ours
};

// "Bearer TOKEN", or "Basic BASE64" whose password is the token (browsers). Sets `token` or `malformed`.
void ReadAuthorization(const std::string& header, Credentials* credentials);

class Authenticator {
 public:
  struct Options {
    bool tls = false;
    bool require_token = false;
  };

  // Owns nothing. `tokens` is used by one thread at a time.
  Authenticator(Options options, TokenSource* tokens, const Clock* clock, RequestStats* stats)
      : options_(options),
        tokens_(tokens),
        clock_(clock),
        stats_(stats),
        failures_(limits::kMaxAuthFailuresPerSecond, limits::kMaxAuthFailureBurst, limits::kMaxCallersTracked),
        reads_(limits::kMaxTokenReadsPerSecond, limits::kMaxTokenReadBurst, 1) {}

  // A host (an IPv4 address, an IPv6 /64) whose credentials fail too often is told so, RESOURCE_EXHAUSTED
  // RATE_LIMITED, until it waits; what is valid passes from there all the same. Else UNAUTHENTICATED NO_CREDENTIALS,
  // TOKEN_INVALID (unknown, wrong, expired, revoked and held tokens alike: an answer tells nothing about a token),
  // CERTIFICATE_INVALID. UNAVAILABLE where tokens cannot be read.
  absl::StatusOr<Caller> Authenticate(const Credentials& credentials);

  // Whether the token that authenticated the caller may still be used: streams ask at each heartbeat. A certificate is
  // seen when a connection begins, and used for as long as that lasts: limits::kConnectionAgeMs.
  absl::Status Recheck(const Caller& caller);

 private:
  using Tokens = std::unordered_map<std::string, TokenRecord>;

  absl::StatusOr<Caller> FromToken(const Credentials& credentials);
  absl::StatusOr<Caller> FromCertificate(const Credentials& credentials);
  absl::StatusOr<std::shared_ptr<const Tokens>> Knowing(const std::string& id);
  // Counts a failure, and returns `status` or, past the host's limit, RATE_LIMITED.
  absl::Status Refuse(const Credentials& credentials, const char* cause, const absl::Status& status);
  // Not older than `most_age_ms`.
  absl::StatusOr<std::shared_ptr<const Tokens>> Fresh(int64_t most_age_ms = limits::kTokenRefreshMs);

  const Options options_;
  TokenSource* const tokens_;
  const Clock* const clock_;
  RequestStats* const stats_;
  RateLimiter failures_;  // by host
  RateLimiter reads_;     // of tokens that are not known yet, by anybody
  std::mutex mutex_;      // guards all below and tokens_
  std::shared_ptr<const Tokens> known_;
  int64_t known_change_ = 0;
  int64_t read_boot_nanos_ = 0;
};

}  // namespace longhaul::server
