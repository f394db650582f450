#include "base/tls_material.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace longhaul {
namespace {

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using BioPtr = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using X509Ptr = std::unique_ptr<X509, Deleter<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;

absl::Status Bad(const std::string& path, const std::string& what) {
  ERR_clear_error();
  return MakeError(absl::StatusCode::kInvalidArgument, "TLS_MATERIAL", path + " " + what);
}

BioPtr BioOf(const std::string& pem) { return BioPtr(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))); }

// Without it OpenSSL would ask the terminal.
int NoPassphrase(char*, int, int, void*) { return 0; }

int64_t MicrosOf(const ASN1_TIME* time) {
  std::tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return 0;
  return static_cast<int64_t>(timegm(&parts)) * 1'000'000;
}

// The first certificate, and that those behind it parse.
absl::StatusOr<X509Ptr> FirstCertificate(const std::string& path, const std::string& pem) {
  const BioPtr bio = BioOf(pem);
  X509Ptr first(PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr));
  if (first == nullptr) return Bad(path, "has no certificate in PEM form");
  while (true) {
    const X509Ptr next(PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr));
    if (next != nullptr) continue;
    const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
    ERR_clear_error();
    if (at_end) return first;
    return Bad(path, "has a certificate that does not parse");
  }
}

}  // namespace

absl::Status CheckCertificates(const std::string& name, const std::string& pem) {
  return FirstCertificate(name, pem).status();
}

absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsFiles& files, int64_t now_wall_micros) {
  TlsMaterial material;
  LH_ASSIGN_OR_RETURN(material.certificate_pem, ReadFile(files.certificate, limits::kMaxPemBytes));
  LH_ASSIGN_OR_RETURN(material.key_pem, ReadFile(files.key, limits::kMaxPemBytes));
  LH_ASSIGN_OR_RETURN(const X509Ptr certificate, FirstCertificate(files.certificate, material.certificate_pem));
  const KeyPtr key(PEM_read_bio_PrivateKey(BioOf(material.key_pem).get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) return Bad(files.key, "has no private key in PEM form without a passphrase");
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return Bad(files.key, "is not the key of the first certificate in " + files.certificate);
  }
  material.not_after_wall_micros = MicrosOf(X509_get0_notAfter(certificate.get()));
  if (material.not_after_wall_micros <= now_wall_micros) {
    return Bad(files.certificate, "expired at " + FormatTimestamp(material.not_after_wall_micros));
  }
  if (!files.client_ca.empty()) {
    LH_ASSIGN_OR_RETURN(material.client_ca_pem, ReadFile(files.client_ca, limits::kMaxPemBytes));
    LH_RETURN_IF_ERROR(FirstCertificate(files.client_ca, material.client_ca_pem).status());
  }
  return material;
}

absl::StatusOr<std::unique_ptr<TlsReloader>> TlsReloader::Open(TlsFiles files, const Clock* clock) {
  std::unique_ptr<TlsReloader> reloader(new TlsReloader(std::move(files), clock));
  LH_ASSIGN_OR_RETURN(reloader->seen_, reloader->Contents());
  LH_ASSIGN_OR_RETURN(TlsMaterial material, ReadTlsMaterial(reloader->files_, clock->WallMicros()));
  material.version = 1;
  reloader->counts_.not_after_wall_micros = material.not_after_wall_micros;
  reloader->current_ = std::make_shared<const TlsMaterial>(std::move(material));
  return reloader;
}

// A digest of everything in the files: their times are too coarse to tell two quick changes apart.
absl::StatusOr<std::string> TlsReloader::Contents() const {
  Sha256 hash;
  for (const std::string* path : {&files_.certificate, &files_.key, &files_.client_ca}) {
    if (path->empty()) continue;
    LH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(*path, limits::kMaxPemBytes));
    hash.Update(std::to_string(bytes.size()) + ":");
    hash.Update(bytes);
  }
  return hash.HexDigest();
}

std::shared_ptr<const TlsMaterial> TlsReloader::Current() {
  std::lock_guard lock(mutex_);
  const absl::StatusOr<std::string> contents = Contents();
  // A file that is away for a moment is a renewal under way.
  if (!contents.ok() || *contents == seen_) return current_;
  seen_ = *contents;
  absl::StatusOr<TlsMaterial> material = ReadTlsMaterial(files_, clock_->WallMicros());
  if (!material.ok()) {
    ++counts_.failures;
    spdlog::error("the certificate in use stays: {}", std::string(material.status().message()));
    return current_;
  }
  material->version = current_->version + 1;
  ++counts_.reloads;
  counts_.not_after_wall_micros = material->not_after_wall_micros;
  spdlog::info("{} is in use, valid until {}", files_.certificate, FormatTimestamp(material->not_after_wall_micros));
  current_ = std::make_shared<const TlsMaterial>(*std::move(material));
  return current_;
}

TlsReloader::Counts TlsReloader::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace longhaul
