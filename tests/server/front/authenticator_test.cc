#include "server/authenticator.h"

#include <atomic>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/limits.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

class FakeTokens final : public TokenSource {
 public:
  absl::StatusOr<std::vector<TokenRecord>> TokensChangedAfter(int64_t change) override {
    ++reads;
    if (broken) return MakeError(absl::StatusCode::kUnavailable, "STORE_IO", "the disk does not answer");
    std::vector<TokenRecord> changed;
    for (const TokenRecord& record : records) {
      if (record.change > change) changed.push_back(record);
    }
    return changed;
  }

  // Returns the text.
  std::string Add(const std::string& name, unsigned scopes, const std::string& project) {
    const NewToken token = MakeToken();
    TokenRecord record;
    record.id = token.id;
    record.name = name;
    record.scopes = scopes;
    record.project = project;
    record.text_sha256 = token.text_sha256;
    record.change = ++changes;
    records.push_back(record);
    return token.text;
  }
  TokenRecord& Change() {
    records.back().change = ++changes;
    return records.back();
  }

  std::vector<TokenRecord> records;
  int64_t changes = 0;
  bool broken = false;
  std::atomic<int> reads{0};
};

class AuthenticatorTest : public ::testing::Test {
 protected:
  void Start(bool tls, bool require_token) {
    authenticator_.emplace(Authenticator::Options{tls, require_token}, &tokens_, &clock_, &stats_);
  }
  absl::StatusOr<Caller> With(const std::string& token, const std::string& certificate = "") {
    Credentials credentials;
    credentials.host = "10.0.0.1";
    credentials.token = token;
    credentials.certificate = certificate;
    return authenticator_->Authenticate(credentials);
  }
  // The reason, and what was counted for it.
  std::string RefusalOf(const absl::StatusOr<Caller>& caller) {
    EXPECT_FALSE(caller.ok());
    EXPECT_EQ(caller.status().code(), absl::StatusCode::kUnauthenticated) << caller.status();
    return ErrorReason(caller.status());
  }
  uint64_t Counted(const std::string& cause) { return stats_.Read().auth_failures[cause]; }

  FakeClock clock_;
  FakeTokens tokens_;
  RequestStats stats_;
  std::optional<Authenticator> authenticator_;
};

TEST_F(AuthenticatorTest, OnAPlaintextLoopbackTheCallerIsTheOperator) {
  Start(false, false);
  const auto caller = With("");
  ASSERT_TRUE(caller.ok());
  EXPECT_EQ(caller->name, "local");
  EXPECT_TRUE(caller->local);
  EXPECT_TRUE(caller->Has(Scope::kAdmin) && caller->Has(Scope::kWorker));
  EXPECT_TRUE(caller->all_projects);
  EXPECT_EQ(caller->project, "default");
}

TEST_F(AuthenticatorTest, OverTlsAndWhereTokensAreRequiredNobodyIs) {
  Start(true, false);
  EXPECT_EQ(RefusalOf(With("")), "NO_CREDENTIALS");
  Start(false, true);
  EXPECT_EQ(RefusalOf(With("")), "NO_CREDENTIALS");
  EXPECT_EQ(Counted("NO_CREDENTIALS"), 2u);
}

TEST_F(AuthenticatorTest, ATokenSaysWhoWhatAndWhere) {
  Start(true, false);
  const std::string ci = tokens_.Add("ci", static_cast<unsigned>(Scope::kSubmitter), "research");
  const auto caller = With(ci);
  ASSERT_TRUE(caller.ok()) << caller.status();
  EXPECT_EQ(caller->name, "token:ci");
  EXPECT_EQ(caller->host, "10.0.0.1");
  EXPECT_EQ(caller->project, "research");
  EXPECT_FALSE(caller->all_projects || caller->local);
  EXPECT_TRUE(caller->Has(Scope::kSubmitter) && caller->Has(Scope::kViewer));
  EXPECT_FALSE(caller->Has(Scope::kAdmin) || caller->Has(Scope::kWorker));
  const auto everywhere = With(tokens_.Add("ops", static_cast<unsigned>(Scope::kAdmin), kAllProjects));
  ASSERT_TRUE(everywhere.ok());
  EXPECT_TRUE(everywhere->all_projects);
  EXPECT_EQ(everywhere->project, "default");
}

TEST_F(AuthenticatorTest, WrongExpiredRevokedAndHeldTokensGetTheSameAnswer) {
  Start(true, false);
  const std::string good = tokens_.Add("ci", static_cast<unsigned>(Scope::kViewer), "research");
  ASSERT_TRUE(With(good).ok());
  std::vector<absl::Status> answers;
  answers.push_back(With(MakeToken().text).status());
  answers.push_back(With("lht_nonsense").status());
  answers.push_back(With(good.substr(0, 17) + MakeToken().text.substr(17)).status());
  tokens_.Change().expire_wall_micros = clock_.WallMicros() + 1;
  clock_.AdvanceMillis(limits::kTokenRefreshMs);
  answers.push_back(With(good).status());
  tokens_.Change().revoke_wall_micros = 1;
  clock_.AdvanceMillis(limits::kTokenRefreshMs);
  answers.push_back(With(good).status());
  TokenRecord& restored = tokens_.Change();
  restored.expire_wall_micros = 0;
  restored.revoke_wall_micros = 0;
  restored.held = true;
  clock_.AdvanceMillis(limits::kTokenRefreshMs);
  answers.push_back(With(good).status());
  tokens_.Change().held = false;
  clock_.AdvanceMillis(limits::kTokenRefreshMs);
  EXPECT_TRUE(With(good).ok()) << "confirmed";
  for (const absl::Status& answer : answers) EXPECT_EQ(answer, answers[0]);
  EXPECT_EQ(ErrorReason(answers[0]), "TOKEN_INVALID");
  // The metrics tell them apart.
  EXPECT_EQ(Counted("TOKEN_UNKNOWN"), 2u);
  EXPECT_EQ(Counted("TOKEN_WRONG"), 1u);
  EXPECT_EQ(Counted("TOKEN_EXPIRED"), 1u);
  EXPECT_EQ(Counted("TOKEN_REVOKED"), 1u);
  EXPECT_EQ(Counted("TOKEN_HELD"), 1u);
}

TEST_F(AuthenticatorTest, ANewTokenWorksAtOnceAndARevokedOneForAtMostTheRefreshTime) {
  Start(true, false);
  const std::string first = tokens_.Add("a", static_cast<unsigned>(Scope::kViewer), "p");
  ASSERT_TRUE(With(first).ok());
  ASSERT_TRUE(With(tokens_.Add("b", static_cast<unsigned>(Scope::kViewer), "p")).ok());
  const auto caller = With(first);
  tokens_.records.front().revoke_wall_micros = 1;
  tokens_.records.front().change = ++tokens_.changes;
  clock_.AdvanceMillis(limits::kTokenRefreshMs - 1);
  EXPECT_TRUE(With(first).ok());
  EXPECT_TRUE(authenticator_->Recheck(*caller).ok());
  clock_.AdvanceMillis(1);
  EXPECT_EQ(RefusalOf(With(first)), "TOKEN_INVALID");
  EXPECT_EQ(ErrorReason(authenticator_->Recheck(*caller)), "TOKEN_INVALID");
}

TEST_F(AuthenticatorTest, KnownTokensAreReadOnceASecondHoweverManyCallsThereAre) {
  Start(true, false);
  const std::string token = tokens_.Add("a", static_cast<unsigned>(Scope::kViewer), "p");
  ASSERT_TRUE(With(token).ok());
  const int reads = tokens_.reads;
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(With(token).ok());
  for (int i = 0; i < 1000; ++i) ASSERT_FALSE(With("not a token").ok());
  EXPECT_EQ(tokens_.reads, reads);
}

TEST_F(AuthenticatorTest, TokensThatNobodyKnowsReadTheDatabaseTenTimesASecond) {
  Start(true, false);
  const std::string known = tokens_.Add("a", static_cast<unsigned>(Scope::kViewer), "p");
  ASSERT_TRUE(With(known).ok());
  const int before = tokens_.reads;
  const std::string wrong = known.substr(0, known.size() - 1) + (known.back() == 'a' ? 'b' : 'a');
  for (int i = 0; i < 2000; ++i) {
    // From so many hosts that none fails too often.
    Credentials credentials;
    credentials.host = "10.0." + std::to_string(i / 250) + "." + std::to_string(i % 250);
    credentials.token = MakeToken().text;
    const absl::Status unknown = authenticator_->Authenticate(credentials).status();
    credentials.token = wrong;
    EXPECT_EQ(unknown, authenticator_->Authenticate(credentials).status()) << "which ids there are is not told";
    EXPECT_EQ(ErrorReason(unknown), "TOKEN_INVALID");
    EXPECT_TRUE(With(known).ok()) << "who is known is none the worse";
    clock_.AdvanceMillis(1);
  }
  EXPECT_LE(tokens_.reads - before, limits::kMaxTokenReadBurst + 2 * limits::kMaxTokenReadsPerSecond + 2);
  // A new token is known with the next regular read.
  const std::string fresh = tokens_.Add("b", static_cast<unsigned>(Scope::kViewer), "p");
  clock_.AdvanceMillis(limits::kTokenRefreshMs);
  EXPECT_TRUE(With(fresh).ok());
}

TEST_F(AuthenticatorTest, AHostThatFailsTooOftenIsToldSoAndNoOther) {
  Start(true, false);
  const std::string known = tokens_.Add("a", static_cast<unsigned>(Scope::kViewer), "p");
  ASSERT_TRUE(With(known).ok());
  const auto from = [&](const std::string& host, const std::string& token) {
    Credentials credentials;
    credentials.host = host;
    credentials.token = token;
    return ErrorReason(authenticator_->Authenticate(credentials).status());
  };
  int told = 0;
  for (int i = 0; i < 1000; ++i) told += from("2001:db8::" + std::to_string(i), "no token") == "TOKEN_INVALID" ? 1 : 0;
  EXPECT_EQ(told, limits::kMaxAuthFailureBurst) << "one network, one limit";
  EXPECT_EQ(from("2001:db8::1", ""), "RATE_LIMITED");
  EXPECT_EQ(from("2001:db8::1", known), "");
  EXPECT_EQ(from("2001:db8:0:1::1", "no token"), "TOKEN_INVALID");
  clock_.AdvanceMillis(100);
  EXPECT_EQ(from("2001:db8::1", "no token"), "TOKEN_INVALID");
}

TEST_F(AuthenticatorTest, ADiskThatDoesNotAnswerLocksNobodyOutWhoWasIn) {
  Start(true, false);
  tokens_.broken = true;
  const std::string token = tokens_.Add("a", static_cast<unsigned>(Scope::kViewer), "p");
  EXPECT_EQ(With(token).status().code(), absl::StatusCode::kUnavailable);
  tokens_.broken = false;
  ASSERT_TRUE(With(token).ok());
  tokens_.broken = true;
  clock_.AdvanceMillis(10 * limits::kTokenRefreshMs);
  EXPECT_TRUE(With(token).ok());
}

TEST_F(AuthenticatorTest, ACertificateIsOneWorkerAndNothingElse) {
  Start(true, false);
  const auto caller = With("", "gpu-1");
  ASSERT_TRUE(caller.ok());
  EXPECT_EQ(caller->name, "certificate:gpu-1");
  EXPECT_EQ(caller->worker_id, "gpu-1");
  EXPECT_EQ(caller->scopes, static_cast<unsigned>(Scope::kWorker));
  for (const char* name : {" ", "gpu 1", "gpu\n1", "\xc3\xa4"}) {
    EXPECT_EQ(RefusalOf(With("", name)), "CERTIFICATE_INVALID") << name;
  }
  Start(true, true);
  EXPECT_EQ(RefusalOf(With("", "gpu-1")), "NO_CREDENTIALS")
      << "a certificate alone is not enough where tokens are required";
}

TEST_F(AuthenticatorTest, AWorkerThatShowsBothIsHeldToBoth) {
  Start(true, true);
  const std::string fleet = tokens_.Add("fleet", static_cast<unsigned>(Scope::kWorker), kAllProjects);
  EXPECT_EQ(With(fleet)->worker_id, "");
  EXPECT_EQ(With(fleet, "gpu-1")->worker_id, "gpu-1");
  const std::string one = tokens_.Add("one", static_cast<unsigned>(Scope::kWorker), kAllProjects);
  tokens_.Change().worker_id = "gpu-2";
  EXPECT_EQ(With(one)->worker_id, "gpu-2");
  EXPECT_EQ(With(one, "gpu-2")->worker_id, "gpu-2");
  EXPECT_EQ(RefusalOf(With(one, "gpu-1")), "CERTIFICATE_INVALID");
  // A person's token is not the worker's that lends the connection.
  EXPECT_EQ(With(tokens_.Add("ops", static_cast<unsigned>(Scope::kViewer), "p"), "gpu-1")->worker_id, "");
}

TEST_F(AuthenticatorTest, AuthenticatesFromManyThreadsAtOnce) {
  Start(true, false);
  const std::string token = tokens_.Add("a", static_cast<unsigned>(Scope::kViewer), "p");
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int j = 0; j < 500; ++j) {
        if (i == 0) clock_.AdvanceMillis(limits::kTokenRefreshMs);
        if (!With(token).ok() || With(MakeToken().text).ok()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(AuthorizationTest, BearerAndBasicAndNothingElse) {
  const auto read = [](const std::string& header) {
    Credentials credentials;
    ReadAuthorization(header, &credentials);
    EXPECT_EQ(credentials.malformed, credentials.token.empty()) << header;
    return credentials.token;
  };
  EXPECT_EQ(read("Bearer abc"), "abc");
  EXPECT_EQ(read("bEaReR   abc"), "abc");
  EXPECT_EQ(read("Basic bWU6bGh0X2E="), "lht_a");  // "me:lht_a"
  EXPECT_EQ(read("basic OmFiYzpk"), "abc:d");      // ":abc:d"
  for (const char* header : {"", "Bearer", "Bearer ", "abc", "Basic", "Basic bWU=", "Basic !!", "Digest abc",
                             "Bearerabc", "Basic bWU6", "Negotiate Bearer abc"}) {
    EXPECT_EQ(read(header), "") << header;
  }
}

}  // namespace
}  // namespace longhaul::server
