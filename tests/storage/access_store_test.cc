#include "storage/access_store.h"

#include <csignal>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "gtest/gtest.h"
#include "storage/job_store.h"
#include "storage/migrations.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

using namespace server;  // NOLINT: the domain's values are this file's subject

constexpr int64_t kNow = 1'700'000'000'000'000;
constexpr int64_t kDayMicros = int64_t{24} * 3600 * 1'000'000;

TokenRecord Token(const std::string& id, int64_t create_wall_micros = kNow) {
  TokenRecord token;
  token.id = id;
  token.name = "name-" + id;
  token.scopes = 3;
  token.project = "research";
  token.worker_id = "w";
  token.text_sha256 = std::string(64, 'a');
  token.create_wall_micros = create_wall_micros;
  token.expire_wall_micros = create_wall_micros + kDayMicros;
  return token;
}

AuditRecord Record(const std::string& target) {
  return {0, kNow, "os:root", "here", "token create", "p", target, "OK", ""};
}

std::unique_ptr<AccessStore> MustOpen(const std::string& dir) {
  auto store = AccessStore::OpenToWrite(dir);
  LH_CHECK(store.ok(), std::string(store.status().message()));
  return *std::move(store);
}

TEST(AccessStoreTest, TokensAreKeptWithTheirRecords) {
  const TempDir dir;
  ASSERT_TRUE(MustOpen(dir.path())->CreateToken(Token("aaa"), Record("aaa")).ok());
  ASSERT_TRUE(MustOpen(dir.path())->CreateToken(Token("bbb", kNow + 1), Record("bbb")).ok());
  const auto store = MustOpen(dir.path());
  const auto tokens = store->ListTokens();
  ASSERT_EQ(tokens->size(), 2u);
  const TokenRecord& first = tokens->at(0);
  EXPECT_EQ(first.id, "aaa");
  EXPECT_EQ(first.name, "name-aaa");
  EXPECT_EQ(first.scopes, 3u);
  EXPECT_EQ(first.project, "research");
  EXPECT_EQ(first.worker_id, "w");
  EXPECT_EQ(first.text_sha256, std::string(64, 'a'));
  EXPECT_EQ(first.create_wall_micros, kNow);
  EXPECT_EQ(first.expire_wall_micros, kNow + kDayMicros);
  EXPECT_EQ(first.revoke_wall_micros, 0);
  const auto audit = store->ListAudit(0, 10);
  ASSERT_EQ(audit->size(), 2u);
  EXPECT_EQ(audit->at(1).target, "bbb");
}

// Killed at the commit: neither the token nor its record is there, and the folder is whole.
TEST(AccessStoreTest, AKilledCommitLeavesNothing) {
  const TempDir dir;
  ASSERT_TRUE(MustOpen(dir.path())->CreateToken(Token("aaa"), Record("aaa")).ok());
  const auto killed = [&](auto change) {
    ArmFailpoint("access_commit", "crash");
    change(MustOpen(dir.path()).get());
  };
  EXPECT_EXIT(killed([](AccessStore* store) { (void)store->CreateToken(Token("bbb"), Record("bbb")); }),
              ::testing::KilledBySignal(SIGKILL), "");
  EXPECT_EXIT(killed([](AccessStore* store) { (void)store->RevokeToken("aaa", kNow + 1, Record("aaa")); }),
              ::testing::KilledBySignal(SIGKILL), "");
  const auto store = MustOpen(dir.path());
  ASSERT_EQ(store->ListTokens()->size(), 1u);
  EXPECT_EQ(store->ListTokens()->at(0).revoke_wall_micros, 0);
  EXPECT_EQ(store->ListAudit(0, 10)->size(), 1u);
  EXPECT_TRUE(store->CreateToken(Token("bbb"), Record("bbb")).ok());
}

TEST(AccessStoreTest, ReadersTakeWhatHasChanged) {
  const TempDir dir;
  const auto store = MustOpen(dir.path());
  ASSERT_TRUE(store->CreateToken(Token("aaa"), Record("aaa")).ok());
  ASSERT_TRUE(store->CreateToken(Token("bbb"), Record("bbb")).ok());
  const auto all = store->TokensChangedAfter(0);
  ASSERT_EQ(all->size(), 2u);
  EXPECT_TRUE(store->TokensChangedAfter(all->at(1).change)->empty());
  ASSERT_TRUE(store->RevokeToken("aaa", kNow + 5, Record("aaa")).ok());
  const auto changed = store->TokensChangedAfter(all->at(1).change);
  ASSERT_EQ(changed->size(), 1u);
  EXPECT_EQ(changed->at(0).id, "aaa");
  EXPECT_EQ(changed->at(0).revoke_wall_micros, kNow + 5);
  ASSERT_TRUE(store->RevokeToken("aaa", kNow + 9, Record("aaa")).ok()) << "revoked already";
  EXPECT_EQ(store->ListTokens()->at(0).revoke_wall_micros, kNow + 5);
  const absl::Status unknown = store->RevokeToken("zzz", kNow, Record("zzz"));
  EXPECT_EQ(ErrorReason(unknown), "TOKEN_NOT_FOUND");
  EXPECT_EQ(store->ListAudit(0, 10)->size(), 4u) << "a refused command leaves no row";
}

TEST(AccessStoreTest, EndedTokensAreForgottenInTimeAndNoChangeNumberComesTwice) {
  const TempDir dir;
  const auto store = MustOpen(dir.path());
  ASSERT_TRUE(store->CreateToken(Token("aaa"), Record("aaa")).ok());
  ASSERT_TRUE(store->CreateToken(Token("bbb"), Record("bbb")).ok());
  const int64_t seen = store->TokensChangedAfter(0)->back().change;
  // Both have ended long ago. The newer change stays, so that the next one's number is new to every reader.
  const int64_t later = kNow + (limits::kTokenKeepDays + 2) * kDayMicros;
  ASSERT_TRUE(store->CreateToken(Token("ccc", later), Record("ccc")).ok());
  const auto tokens = store->ListTokens();
  ASSERT_EQ(tokens->size(), 2u);
  EXPECT_EQ(tokens->at(0).id, "bbb");
  const auto changed = store->TokensChangedAfter(seen);
  ASSERT_EQ(changed->size(), 1u);
  EXPECT_EQ(changed->at(0).id, "ccc");
}

TEST(AccessStoreTest, ThereIsALimitOfTokensThatWork) {
  const TempDir dir;
  const auto store = MustOpen(dir.path());
  auto db = Db::Open(JoinPath(dir.path(), "state.db"), Db::Mode::kReadWrite);
  const std::string fill =
      "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<" + std::to_string(limits::kMaxTokens) +
      ") INSERT INTO tokens SELECT 'id' || i, 'n', 1, 'p', '', 'h', " + std::to_string(kNow) + ", 0, 0, i FROM n";
  ASSERT_TRUE((*db)->Exec(fill.c_str()).ok());
  EXPECT_EQ(ErrorReason(store->CreateToken(Token("aaa"), Record("aaa"))), "TOO_MANY_TOKENS");
  ASSERT_TRUE(store->RevokeToken("id7", kNow, Record("id7")).ok());
  EXPECT_TRUE(store->CreateToken(Token("aaa"), Record("aaa")).ok());
}

TEST(AccessStoreTest, SharesAFolderWithARunningScheduler) {
  const TempDir dir;
  const auto jobs = OpenJobStore(dir.path());
  ASSERT_TRUE(jobs.ok());
  const auto reader = AccessStore::OpenToRead(dir.path());
  ASSERT_TRUE(reader.ok()) << reader.status();
  // The scheduler commits all the while.
  std::thread scheduler([&] {
    for (int i = 0; i < 50; ++i) {
      auto transaction = (*jobs)->Begin();
      ASSERT_TRUE(transaction.ok()) << transaction.status();
      ASSERT_TRUE((*transaction)->AddAudit(Record("job")).ok());
      ASSERT_TRUE((*transaction)->Commit().ok());
    }
  });
  for (int i = 0; i < 20; ++i) {
    const absl::Status created = MustOpen(dir.path())->CreateToken(Token("t" + std::to_string(i)), Record("token"));
    ASSERT_TRUE(created.ok()) << created;
  }
  scheduler.join();
  EXPECT_EQ((*reader)->TokensChangedAfter(0)->size(), 20u);
  EXPECT_EQ((*jobs)->ListAudit(0, 100)->size(), 70u);
}

TEST(AccessStoreTest, RefusesTheFolderOfASchedulerOfAnotherSchema) {
  const TempDir dir;
  const auto jobs = OpenJobStore(dir.path());
  auto db = Db::Open(JoinPath(dir.path(), "state.db"), Db::Mode::kReadWrite);
  ASSERT_TRUE((*db)->Exec("PRAGMA user_version=999").ok());
  EXPECT_EQ(ErrorReason(AccessStore::OpenToWrite(dir.path()).status()), "SCHEMA_MISMATCH");
}

TEST(AccessStoreTest, TheDatabaseItselfKeepsTheAuditLog) {
  const TempDir dir;
  const auto store = MustOpen(dir.path());
  AuditRecord now = Record("aaa");
  now.wall_micros = RealClock().WallMicros();
  ASSERT_TRUE(store->CreateToken(Token("aaa"), now).ok());
  auto db = Db::Open(JoinPath(dir.path(), "state.db"), Db::Mode::kReadWrite);
  for (const char* sql : {"UPDATE audit SET caller='somebody else'", "DELETE FROM audit"}) {
    const absl::Status refused = (*db)->Exec(sql);
    EXPECT_NE(std::string(refused.message()).find("append-only"), std::string::npos) << sql << ": " << refused;
  }
  EXPECT_EQ(store->ListAudit(0, 10)->at(0).caller, "os:root");
}

}  // namespace
}  // namespace longhaul::storage
