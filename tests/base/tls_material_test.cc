#include "base/tls_material.h"

#include <filesystem>

#include "base/env.h"
#include "base/error.h"
#include "gtest/gtest.h"
#include "tests/base/test_support.h"
#include "tests/fakes/test_certificates.h"

namespace longhaul {
namespace {

constexpr int64_t kDayMicros = int64_t{24} * 3600 * 1'000'000;

void Copy(const std::string& from, const std::string& to) {
  std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing);
}

class TlsMaterialTest : public ::testing::Test {
 protected:
  TlsMaterialTest() : authority_(dir_.path(), "first") {
    const CertificateFiles issued = authority_.IssueServer("one");
    files_ = {dir_.File("use.pem"), dir_.File("use.key"), ""};
    Copy(issued.certificate, files_.certificate);
    Copy(issued.key, files_.key);
  }

  void ExpectBad(const TlsFiles& files, const std::string& part) {
    const auto material = ReadTlsMaterial(files, clock_.WallMicros());
    ASSERT_FALSE(material.ok());
    EXPECT_EQ(ErrorReason(material.status()), "TLS_MATERIAL") << material.status();
    EXPECT_NE(std::string(material.status().message()).find(part), std::string::npos) << material.status();
  }

  TempDir dir_;
  RealClock clock_;
  TestAuthority authority_;
  TlsFiles files_;
};

TEST_F(TlsMaterialTest, ReadsWhatFits) {
  files_.client_ca = authority_.ca_file();
  const auto material = ReadTlsMaterial(files_, clock_.WallMicros());
  ASSERT_TRUE(material.ok()) << material.status();
  EXPECT_EQ(material->certificate_pem, *ReadFile(files_.certificate, 1 << 20));
  EXPECT_EQ(material->key_pem, *ReadFile(files_.key, 1 << 20));
  EXPECT_EQ(material->client_ca_pem, *ReadFile(authority_.ca_file(), 1 << 20));
  EXPECT_GT(material->not_after_wall_micros, clock_.WallMicros() + kDayMicros);
  EXPECT_LT(material->not_after_wall_micros, clock_.WallMicros() + 3 * kDayMicros);
}

TEST_F(TlsMaterialTest, SaysWhichFileIsWrong) {
  EXPECT_EQ(ReadTlsMaterial({dir_.File("absent"), files_.key, ""}, 0).status().code(), absl::StatusCode::kNotFound);
  ExpectBad({files_.key, files_.key, ""}, "use.key has no certificate");
  ExpectBad({files_.certificate, files_.certificate, ""}, "use.pem has no private key");
  ExpectBad({files_.certificate, authority_.IssueServer("two").key, ""}, "is not the key of the first certificate");
  ExpectBad({files_.certificate, files_.key, files_.key}, "has no certificate");
  const std::string damaged = dir_.File("damaged.pem");
  const std::string good = *ReadFile(files_.certificate, 1 << 20);
  ASSERT_TRUE(WriteFileAtomic(damaged, good + good.substr(0, good.size() / 2) + "\n-----END CERTIFICATE-----\n").ok());
  ExpectBad({damaged, files_.key, ""}, "does not parse");
}

TEST_F(TlsMaterialTest, RefusesAKeyWithAPassphraseInsteadOfAskingForIt) {
  const std::string locked = dir_.File("locked.key");
  RunOpenssl("ec -aes256 -passout pass:secret -in " + files_.key + " -out " + locked);
  ExpectBad({files_.certificate, locked, ""}, "without a passphrase");
}

TEST_F(TlsMaterialTest, RefusesAnExpiredCertificate) {
  const auto material = ReadTlsMaterial(files_, clock_.WallMicros() + 3 * kDayMicros);
  EXPECT_NE(std::string(material.status().message()).find("expired at"), std::string::npos) << material.status();
}

TEST_F(TlsMaterialTest, ReloadsWhatHasChangedAndIsWhole) {
  const auto reloader = TlsReloader::Open(files_, &clock_);
  ASSERT_TRUE(reloader.ok()) << reloader.status();
  const auto first = (*reloader)->Current();
  EXPECT_EQ(first->version, 1u);
  EXPECT_EQ((*reloader)->Current(), first) << "nothing has changed";

  // A renewal, one file after the other, as programs that renew certificates do it.
  const CertificateFiles next = authority_.IssueServer("two");
  Copy(next.certificate, files_.certificate);
  EXPECT_EQ((*reloader)->Current(), first) << "half of a renewal";
  EXPECT_EQ((*reloader)->Current(), first);
  EXPECT_EQ((*reloader)->counts().failures, 1u) << "said once, however often it is looked at";
  Copy(next.key, files_.key);
  const auto second = (*reloader)->Current();
  EXPECT_EQ(second->version, 2u);
  EXPECT_EQ(second->certificate_pem, *ReadFile(next.certificate, 1 << 20));
  EXPECT_EQ((*reloader)->counts().reloads, 1u);

  ASSERT_TRUE(RemoveFile(files_.certificate).ok());
  EXPECT_EQ((*reloader)->Current(), second) << "a file that is away for a moment";
  ASSERT_TRUE(WriteFileAtomic(files_.certificate, "noise").ok());
  EXPECT_EQ((*reloader)->Current(), second);
  Copy(next.certificate, files_.certificate);
  EXPECT_EQ((*reloader)->Current()->certificate_pem, second->certificate_pem);
}

}  // namespace
}  // namespace longhaul
