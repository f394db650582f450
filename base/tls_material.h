// A server's certificate, key and the authority of its clients, read from PEM files, checked, and read again when the
// files change: certificates are renewed without a restart.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"

namespace longhaul {

struct TlsFiles {
  std::string certificate;  // PEM, the server's own first, then the chain
  std::string key;          // PEM, of that certificate, without a passphrase
  std::string client_ca;    // PEM, "" = no client certificates
};

struct TlsMaterial {
  std::string certificate_pem;
  std::string key_pem;
  std::string client_ca_pem;
  int64_t not_after_wall_micros = 0;  // of the server's own certificate
  uint64_t version = 0;               // 1, 2, ...: grows with each change of the files' contents
};

// Reads and checks: certificates parse, the key belongs to the first of them, which has not expired. version is 0.
// INVALID_ARGUMENT TLS_MATERIAL names the file; errors of files as base/env.h.
absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsFiles& files, int64_t now_wall_micros);

// That `pem`, of the file or flag `name`, is one or more certificates. INVALID_ARGUMENT TLS_MATERIAL.
absl::Status CheckCertificates(const std::string& name, const std::string& pem);

// Thread-safe.
class TlsReloader {
 public:
  struct Counts {
    uint64_t reloads = 0;   // new contents in use
    uint64_t failures = 0;  // new contents refused; the ones before stay in use
    int64_t not_after_wall_micros = 0;
  };

  // Errors of ReadTlsMaterial. `clock` must outlive it.
  static absl::StatusOr<std::unique_ptr<TlsReloader>> Open(TlsFiles files, const Clock* clock);

  // Looks at the files, which is cheap beside the handshake that asks. Files that cannot be used (half of a renewal is
  // there, say) change nothing and are said in the log once.
  std::shared_ptr<const TlsMaterial> Current();
  Counts counts() const;

 private:
  TlsReloader(TlsFiles files, const Clock* clock) : files_(std::move(files)), clock_(clock) {}
  absl::StatusOr<std::string> Contents() const;

  const TlsFiles files_;
  const Clock* const clock_;
  mutable std::mutex mutex_;  // guards all below
  std::shared_ptr<const TlsMaterial> current_;
  std::string seen_;  // contents of the files when they were last looked at, good or not
  Counts counts_;
};

}  // namespace longhaul
