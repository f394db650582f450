#include "server/core/access.h"

#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

constexpr int64_t kWallNow = 1'700'000'000'000'000;

TokenRecord RecordOf(const NewToken& token) {
  TokenRecord record;
  record.id = token.id;
  record.name = "ci";
  record.scopes = static_cast<unsigned>(Scope::kSubmitter);
  record.project = "research";
  record.text_sha256 = token.text_sha256;
  return record;
}

TEST(ScopesTest, NamesAndBitsAreTheSameThing) {
  for (unsigned scopes = 1; scopes <= kAllScopes; ++scopes) {
    const auto parsed = ParseScopes("--scope", ScopeNames(scopes));
    ASSERT_TRUE(parsed.ok()) << scopes;
    EXPECT_EQ(*parsed, scopes);
  }
  for (const char* text : {"", "root", "viewer,", ",viewer", "viewer submitter", "VIEWER", "viewer,,worker"}) {
    const auto parsed = ParseScopes("--scope", text);
    EXPECT_EQ(ErrorReason(parsed.status()), "INVALID_FIELD") << text;
  }
}

TEST(ScopesTest, AnAdministratorMaySubmitAndASubmitterMayView) {
  EXPECT_EQ(EffectiveScopes(static_cast<unsigned>(Scope::kAdmin)), Scope::kAdmin | Scope::kSubmitter | Scope::kViewer);
  EXPECT_EQ(EffectiveScopes(static_cast<unsigned>(Scope::kSubmitter)), Scope::kSubmitter | Scope::kViewer);
  EXPECT_EQ(EffectiveScopes(static_cast<unsigned>(Scope::kViewer)), static_cast<unsigned>(Scope::kViewer));
  EXPECT_EQ(EffectiveScopes(static_cast<unsigned>(Scope::kWorker)), static_cast<unsigned>(Scope::kWorker));
}

TEST(TokenTest, TextsAreDifferentAndNameTheirRow) {
  std::set<std::string> texts;
  for (int i = 0; i < 1000; ++i) {
    const NewToken token = MakeToken();
    EXPECT_TRUE(texts.insert(token.text).second);
    EXPECT_EQ(TokenId(token.text), token.id);
    EXPECT_EQ(token.text_sha256, Sha256Hex(token.text));
    EXPECT_EQ(token.text.find(token.text_sha256), std::string::npos);
  }
}

TEST(TokenTest, OnlyWholeTokensHaveAnId) {
  const std::string good = MakeToken().text;
  for (const std::string& text :
       {std::string(), good.substr(1), good + "a", good.substr(0, good.size() - 1), "LHT" + good.substr(3),
        good.substr(0, 5) + "!" + good.substr(6), good.substr(0, good.size() - 1) + "\n", std::string(good.size(), 'a'),
        std::string(good.size(), '\0')}) {
    EXPECT_FALSE(TokenId(text).has_value()) << text;
  }
}

TEST(TokenTest, EveryVerdict) {
  const NewToken token = MakeToken();
  TokenRecord record = RecordOf(token);
  EXPECT_EQ(CheckToken(&record, token.text, kWallNow), TokenVerdict::kValid);
  EXPECT_EQ(CheckToken(nullptr, token.text, kWallNow), TokenVerdict::kUnknown);
  // The id is public: with another secret it opens nothing.
  EXPECT_EQ(CheckToken(&record, "lht_" + token.id + MakeToken().text.substr(16), kWallNow), TokenVerdict::kWrong);
  EXPECT_EQ(CheckToken(&record, token.text_sha256, kWallNow), TokenVerdict::kWrong) << "the stored hash is no token";
  record.expire_wall_micros = kWallNow + 1;
  EXPECT_EQ(CheckToken(&record, token.text, kWallNow), TokenVerdict::kValid);
  EXPECT_EQ(CheckToken(&record, token.text, kWallNow + 1), TokenVerdict::kExpired);
  record.revoke_wall_micros = kWallNow - 5;
  EXPECT_EQ(CheckToken(&record, token.text, kWallNow), TokenVerdict::kRevoked);
}

TEST(TokenTest, ARecordIsCheckedBeforeItIsMade) {
  const TokenRecord good = RecordOf(MakeToken());
  EXPECT_TRUE(CheckTokenRecord(good).ok());
  const auto field_of = [&](const std::function<void(TokenRecord&)>& change) {
    TokenRecord record = good;
    change(record);
    const auto violations = ErrorViolations(CheckTokenRecord(record));
    return violations.empty() ? "" : violations[0].field;
  };
  EXPECT_EQ(field_of([](TokenRecord& r) { r.name = ""; }), "--name");
  EXPECT_EQ(field_of([](TokenRecord& r) { r.name = "two words"; }), "--name");
  EXPECT_EQ(field_of([](TokenRecord& r) { r.name = std::string(limits::kMaxTokenNameBytes + 1, 'a'); }), "--name");
  EXPECT_EQ(field_of([](TokenRecord& r) { r.scopes = 0; }), "--scope");
  EXPECT_EQ(field_of([](TokenRecord& r) { r.project = "../etc"; }), "--project");
  EXPECT_EQ(field_of([](TokenRecord& r) { r.scopes = static_cast<unsigned>(Scope::kAdmin); }), "--project");
  EXPECT_EQ(field_of([](TokenRecord& r) { r.scopes = static_cast<unsigned>(Scope::kWorker); }), "--project");
  EXPECT_EQ(field_of([](TokenRecord& r) { r.worker_id = "gpu-1"; }), "--worker-id");
  EXPECT_EQ(field_of([](TokenRecord& r) {
              r.scopes = static_cast<unsigned>(Scope::kWorker);
              r.project = kAllProjects;
              r.worker_id = "gpu-1";
            }),
            "");
}

TEST(CallerTest, ProjectsNeedTheRight) {
  Caller caller;
  caller.project = "mine";
  caller.scopes = kAllScopes;  // scopes give no project
  EXPECT_EQ(*ProjectOf(caller, ""), "mine");
  EXPECT_EQ(*ProjectOf(caller, "mine"), "mine");
  EXPECT_EQ(ErrorReason(ProjectOf(caller, "theirs").status()), "OTHER_PROJECT");
  EXPECT_FALSE(caller.MaySee("theirs"));
  caller.all_projects = true;
  EXPECT_EQ(*ProjectOf(caller, "theirs"), "theirs");
  EXPECT_EQ(*ProjectOf(caller, ""), "mine");
  EXPECT_TRUE(caller.MaySee("theirs"));
  for (const char* bad : {"*", "a/b", "a b", "\n", "-\xff"}) {
    EXPECT_EQ(ErrorReason(ProjectOf(caller, bad).status()), "INVALID_FIELD") << bad;
  }
}

TEST(AuditTest, OutcomesAreCutToTheLimit) {
  AuditRecord record;
  record.target = std::string(10'000, 'x');
  SetOutcome(MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "there is no job"), kWallNow, &record);
  EXPECT_EQ(record.code, "NOT_FOUND");
  EXPECT_EQ(record.reason, "JOB_NOT_FOUND");
  EXPECT_EQ(record.wall_micros, kWallNow);
  EXPECT_EQ(record.target.size(), static_cast<size_t>(limits::kMaxAuditFieldBytes));
  SetOutcome(absl::OkStatus(), kWallNow, &record);
  EXPECT_EQ(record.code, "OK");
  EXPECT_EQ(record.reason, "");
}

}  // namespace
}  // namespace longhaul::server
