// Certificates for tests, made by the openssl program: an authority, and what it signs. Elliptic keys, because they are
// made at once.
#pragma once

#include <cstdlib>
#include <string>

#include "base/check.h"
#include "base/env.h"

namespace longhaul {

inline void RunOpenssl(const std::string& arguments) {
  const std::string command = "openssl " + arguments + " >/dev/null 2>&1 </dev/null";
  LH_CHECK(std::system(command.c_str()) == 0, command);
}

struct CertificateFiles {
  std::string certificate;
  std::string key;
};

class TestAuthority {
 public:
  // Files go to `dir`, their names begin with `name`.
  TestAuthority(const std::string& dir, const std::string& name) : dir_(dir), name_(name) {
    RunOpenssl("req -x509 " + NewKey(Path("ca.key")) + " -out " + Path("ca.pem") + " -days 2 -subj '/CN=" + name + "'");
  }

  std::string ca_file() const { return Path("ca.pem"); }

  // For servers on this machine: 127.0.0.1 and localhost. `label` names the files.
  CertificateFiles IssueServer(const std::string& label) const {
    return Issue(label, label, "-addext 'subjectAltName=IP:127.0.0.1,DNS:localhost'");
  }
  CertificateFiles IssueClient(const std::string& label, const std::string& common_name) const {
    return Issue(label, common_name, "-addext 'extendedKeyUsage=clientAuth'");
  }

 private:
  static std::string NewKey(const std::string& path) {
    return "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout " + path;
  }
  std::string Path(const std::string& file) const { return JoinPath(dir_, name_ + "-" + file); }

  CertificateFiles Issue(const std::string& label, const std::string& common_name, const std::string& options) const {
    const std::string request = Path(label + ".csr");
    const CertificateFiles files{Path(label + ".pem"), Path(label + ".key")};
    RunOpenssl("req " + NewKey(files.key) + " -out " + request + " -subj '/CN=" + common_name + "' " + options);
    RunOpenssl("x509 -req -in " + request + " -CA " + ca_file() + " -CAkey " + Path("ca.key") +
               " -CAcreateserial -copy_extensions copy -days 2 -out " + files.certificate);
    return files;
  }

  const std::string dir_;
  const std::string name_;
};

}  // namespace longhaul
