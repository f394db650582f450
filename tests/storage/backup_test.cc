#include "storage/backup.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <functional>
#include <thread>

#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/codec.h"
#include "server/dispatcher_core.h"
#include "storage/access_store.h"
#include "storage/check_state.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fakes/power_cut_disk.h"
#include "tests/storage/kept_folder.h"
#include "tests/storage/temp_dir.h"

namespace longhaul::storage {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using namespace server;  // NOLINT: the domain's values are this file's subject

constexpr const char* kFailpoints[] = {"backup_before_mark", "backup_after_mark", "backup_before_database",
                                       "backup_after_database"};

class BackupTest : public ::testing::Test {
 protected:
  void TearDown() override { DisarmFailpoints(); }
  static void ExpectWhole(const std::string& folder) {
    const auto report = CheckState(folder, {.hash_blobs = true});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_THAT(report->problems, IsEmpty());
    EXPECT_EQ(report->unrecorded_blobs, 0);
  }

  // Opening a backup makes it a state folder: tests look at a copy.
  std::string CopyOf(const std::string& folder) {
    const std::string copy = JoinPath(dir_.path(), "copy" + std::to_string(copies_++));
    std::filesystem::copy(folder, copy, std::filesystem::copy_options::recursive);
    return copy;
  }

  TempDir dir_;
  int copies_ = 0;
  const std::string state_ = JoinPath(dir_.path(), "state");
  const std::string backup_ = JoinPath(dir_.path(), "backup");
};

TEST_F(BackupTest, WritesOverNothingButABackupOfThisState) {
  MakeKeptFolder(state_);
  const std::string other = JoinPath(dir_.path(), "other");
  MakeKeptFolder(other);
  ASSERT_TRUE(BackupState(other, backup_).ok());
  EXPECT_EQ(ErrorReason(BackupState(state_, backup_).status()), "BAD_DESTINATION") << "another scheduler's backup";
  EXPECT_TRUE(BackupState(other, backup_).ok()) << "its own is brought up to date";

  const std::string foreign = JoinPath(dir_.path(), "adapter");
  ASSERT_TRUE(CreateDirs(foreign).ok());
  ASSERT_TRUE(WriteFileAtomic(JoinPath(foreign, "state.db"), "a text").ok());
  EXPECT_EQ(ErrorReason(BackupState(state_, foreign).status()), "BAD_DESTINATION");
  EXPECT_EQ(*ReadFile(JoinPath(foreign, "state.db"), 100), "a text");
  EXPECT_THAT(*ListDir(foreign), ElementsAre("state.db"));

  const std::string empty = JoinPath(dir_.path(), "empty");
  ASSERT_TRUE(CreateDirs(empty).ok());
  EXPECT_TRUE(BackupState(state_, empty).ok());
}

// A wrong "restore", backup and state changed about, and a test machine's copy of a backup.
TEST_F(BackupTest, AStateFolderIsNoDestinationAndACopyIsAStateOfItsOwn) {
  MakeKeptFolder(state_);
  ASSERT_TRUE(BackupState(state_, backup_).ok());
  EXPECT_EQ(ErrorReason(BackupState(backup_, state_).status()), "SCHEMA_TOO_OLD") << "nothing has run on a backup";
  const std::string copy = CopyOf(backup_);
  EXPECT_TRUE((*OpenJobStore(copy))->GetJob("ftjob-kept10").ok());
  EXPECT_EQ(ErrorReason(BackupState(copy, state_).status()), "BAD_DESTINATION");
  EXPECT_EQ(ErrorReason(BackupState(copy, backup_).status()), "BAD_DESTINATION");
  EXPECT_EQ(ErrorReason(BackupState(state_, copy).status()), "BAD_DESTINATION");
  EXPECT_TRUE(BackupState(state_, backup_).ok());
  // What a crash before the mark leaves is no obstacle.
  const std::string half = JoinPath(dir_.path(), "half");
  ASSERT_TRUE(CreateDirs(half).ok());
  ASSERT_TRUE(WriteFileAtomic(JoinPath(half, "lock"), "").ok());
  ASSERT_TRUE(WriteFileAtomic(JoinPath(half, "backup-of.tmp-1-1"), "x").ok());
  EXPECT_TRUE(BackupState(state_, half).ok());
}

TEST_F(BackupTest, SaysWhatTheOriginalSays) {
  MakeKeptFolder(state_);
  ASSERT_TRUE(CreateDirs(JoinPath(state_, "logs/ftjob-kept10")).ok());
  ASSERT_TRUE(WriteFileAtomic(JoinPath(state_, "logs/ftjob-kept10/1.log"), "a line\n").ok());
  const auto report = BackupState(state_, backup_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->jobs, 12);
  EXPECT_EQ(report->blobs_copied, static_cast<int64_t>(MakeKeptState().contents.size()));
  EXPECT_EQ(report->blobs_kept, 0);
  EXPECT_THAT(report->lost, IsEmpty());
  ExpectWhole(backup_);
  EXPECT_EQ(*ReadFile(JoinPath(backup_, "logs/ftjob-kept10/1.log"), 100), "a line\n");
  const auto store = OpenJobStore(backup_);
  ASSERT_TRUE(store.ok()) << store.status();
  for (const KeptJob& kept : MakeKeptState().jobs) {
    Job expected = kept.job;
    if (!IsTerminal(expected.state)) {
      expected.lease_epoch += limits::kBackupEpochStep;
      expected.attempts += limits::kBackupAttemptStep;
    }
    EXPECT_EQ(EncodeJob(*(*store)->GetJob(expected.id)), EncodeJob(expected)) << expected.id;
    EXPECT_EQ((*store)->ListEvents(expected.id, 0, 10)->size(), 3u);
    EXPECT_EQ((*store)->ListMetrics(expected.id, 0, 1'000)->size(), kept.metrics.size());
  }
  EXPECT_EQ((*store)->ListWorkers()->size(), 2u);
}

// Revoked after the backup was taken: on the backup it must not come back to life by itself.
TEST_F(BackupTest, TokensAreHeldUntilTheyAreConfirmed) {
  MakeKeptFolder(state_);
  const auto token = [](const std::string& id) {
    TokenRecord record;
    record.id = id;
    record.name = id;
    record.scopes = 1;
    record.project = "p";
    record.create_wall_micros = kKeptWallMicros;
    return record;
  };
  const AuditRecord audit{0, kKeptWallMicros, "os:root", "here", "token", "p", "", "OK", ""};
  std::vector<std::string> before;
  {
    const auto access = AccessStore::OpenToWrite(state_);
    ASSERT_TRUE(access.ok()) << access.status();
    const std::vector<TokenRecord> kept_before = *(*access)->ListTokens();
    for (const TokenRecord& kept : kept_before) before.push_back(kept.id);
    ASSERT_TRUE((*access)->CreateToken(token("kept"), audit).ok());
    ASSERT_TRUE((*access)->CreateToken(token("leaked"), audit).ok());
    ASSERT_TRUE((*access)->CreateToken(token("ended"), audit).ok());
    ASSERT_TRUE((*access)->RevokeToken("ended", kKeptWallMicros, audit).ok());
    ASSERT_TRUE(BackupState(state_, backup_).ok());
    ASSERT_TRUE((*access)->RevokeToken("leaked", kKeptWallMicros, audit).ok());
    const std::vector<TokenRecord> originals = *(*access)->ListTokens();
    for (const TokenRecord& original : originals) EXPECT_FALSE(original.held) << original.id;
  }
  const auto restored = AccessStore::OpenToWrite(backup_);
  ASSERT_TRUE(restored.ok()) << restored.status();
  const auto verdict = [&](const std::string& id) {
    const std::vector<TokenRecord> tokens = *(*restored)->ListTokens();
    const auto found =
        std::find_if(tokens.begin(), tokens.end(), [&](const TokenRecord& record) { return record.id == id; });
    return CheckStillValid(found == tokens.end() ? nullptr : &*found, kKeptWallMicros);
  };
  EXPECT_EQ(verdict("kept"), TokenVerdict::kHeld);
  EXPECT_EQ(verdict("leaked"), TokenVerdict::kHeld);
  EXPECT_EQ(verdict("ended"), TokenVerdict::kRevoked);
  ASSERT_TRUE((*restored)->CreateToken(token("new"), audit).ok());
  EXPECT_EQ(verdict("new"), TokenVerdict::kValid);
  const int64_t seen = (*restored)->TokensChangedAfter(0)->back().change;
  const absl::Status unknown = (*restored)->ConfirmTokens({"kept", "nobody"}, {});
  EXPECT_EQ(ErrorReason(unknown), "TOKEN_NOT_FOUND");
  EXPECT_EQ(verdict("kept"), TokenVerdict::kHeld) << "all or none";
  ASSERT_TRUE((*restored)->ConfirmTokens({"kept", "ended", "new"}, {audit}).ok());
  EXPECT_EQ(verdict("kept"), TokenVerdict::kValid);
  EXPECT_EQ(verdict("leaked"), TokenVerdict::kHeld);
  EXPECT_EQ(verdict("ended"), TokenVerdict::kRevoked);
  // A scheduler that runs on it hears of it.
  const std::vector<TokenRecord> changed = *(*restored)->TokensChangedAfter(seen);
  EXPECT_TRUE(std::any_of(changed.begin(), changed.end(),
                          [](const TokenRecord& record) { return record.id == "kept" && !record.held; }));
  for (const std::string& id : before) EXPECT_NE(verdict(id), TokenVerdict::kValid) << id;
  ExpectWhole(backup_);
}

TEST_F(BackupTest, TheNextOneCopiesWhatIsNewAndRemovesWhatIsGone) {
  MakeKeptFolder(state_);
  ASSERT_TRUE(BackupState(state_, backup_).ok());
  {
    const auto store = OpenJobStore(state_);
    const auto tx = (*store)->Begin();
    ASSERT_TRUE((*tx)->DeleteJob("ftjob-kept10", 0).ok());
    ASSERT_TRUE((*tx)->DropUnreferencedBlobs(kKeptWallMicros + 1, 100).ok());
    PutBlobFile(state_, "new");
    ASSERT_TRUE((*tx)->PutBlob({Sha256Hex("new"), 3}, kKeptWallMicros).ok());
    ASSERT_TRUE((*tx)->Commit().ok());
  }
  const auto report = BackupState(state_, backup_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->jobs, 11);
  EXPECT_EQ(report->blobs_copied, 1);
  EXPECT_GT(report->blobs_kept, 5);
  EXPECT_EQ(report->blobs_removed, 5) << "artifact, card, two checkpoints, and the one of nobody";
  ExpectWhole(backup_);
}

// A writer goes on: each backup has every job that was acknowledged before it began, with its dataset.
TEST_F(BackupTest, ConsistentWhileTheSchedulerWrites) {
  std::atomic<int> acknowledged = 0;
  std::atomic<bool> stop = false;
  std::jthread writer([&] {
    const auto store = OpenJobStore(state_);
    ASSERT_TRUE(store.ok());
    for (int number = 1; !stop; ++number) {
      const std::string content = "dataset of " + std::to_string(number) + std::string(2'000, '.');
      PutBlobFile(state_, content);
      const auto tx = (*store)->Begin();
      Job job;
      job.id = "ftjob-" + std::to_string(number);
      job.project = "p";
      job.create_number = static_cast<uint64_t>(number);
      job.inputs = {{Sha256Hex(content), static_cast<int64_t>(content.size())}};
      job.state = JobState::kQueued;
      job.sequence = 1;
      JobEvent event;
      event.sequence = 1;
      event.state = JobState::kQueued;
      const bool written = (*tx)->PutBlob(job.inputs[0], 1).ok() && (*tx)->PutJob(job).ok() &&
                           (*tx)->AddEvent(job.id, event).ok() && (*tx)->Commit().ok();
      ASSERT_TRUE(written);
      acknowledged = number;
    }
  });
  for (int round = 0; round < 4; ++round) {
    while (acknowledged < 20 * (round + 1)) std::this_thread::yield();
    const int before = acknowledged;
    const auto report = BackupState(state_, backup_);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_GE(report->jobs, before);
    EXPECT_THAT(report->lost, IsEmpty());
    ExpectWhole(backup_);
  }
  stop = true;
}

// A checkpoint of the copied database is overtaken and collected before its turn comes.
TEST_F(BackupTest, WhatIsOvertakenMeanwhileIsNotMissed) {
  MakeKeptFolder(state_);
  const std::string id = "ftjob-kept10";
  const auto commit = [&](StoreTransaction& tx, int64_t step) {
    const std::string content = "checkpoint of step " + std::to_string(step);
    PutBlobFile(state_, content);
    Checkpoint checkpoint;
    checkpoint.step = step;
    checkpoint.files = {{"state", {Sha256Hex(content), static_cast<int64_t>(content.size())}}};
    EXPECT_TRUE(tx.PutBlob(checkpoint.files[0].blob, kKeptWallMicros).ok());
    EXPECT_TRUE(tx.PutCheckpoint(id, checkpoint).ok());
    return checkpoint.files[0].blob;
  };
  const auto store = OpenJobStore(state_);
  const auto write = [&](const std::function<void(StoreTransaction&)>& body) {
    const auto tx = (*store)->Begin();
    body(**tx);
    ASSERT_TRUE((*tx)->Commit().ok());
  };
  const auto blobs = BlobStore::Open(state_);
  // The backup stands where its first look is over, and where its database is copied, until it is let go.
  for (const char* place : {"backup_before_database", "backup_after_database"}) ArmFailpoint(place, "sleep:600000");
  const auto let_go = [](const char* place) { ArmFailpoint(place, "sleep:0"); };
  std::jthread scheduler([&] {
    BlobRef overtaken;
    while (FailpointHits("backup_before_database") == 0) std::this_thread::yield();
    write([&](StoreTransaction& tx) { overtaken = commit(tx, 5'000); });
    let_go("backup_before_database");
    while (FailpointHits("backup_after_database") == 0) std::this_thread::yield();
    write([&](StoreTransaction& tx) {
      commit(tx, 5'020);
      EXPECT_TRUE(tx.DeleteCheckpoint(id, 5'000, 0).ok());
      EXPECT_TRUE(tx.DropUnreferencedBlobs(kKeptWallMicros + 1, 100).ok());
    });
    EXPECT_TRUE((*blobs)->Remove(overtaken).ok());
    let_go("backup_after_database");
  });
  const auto report = BackupState(state_, backup_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->lost, IsEmpty());
  scheduler.join();
  ExpectWhole(backup_);
  const auto checkpoints = (*OpenJobStore(CopyOf(backup_)))->ListCheckpoints(id);
  EXPECT_EQ(checkpoints->back().step, 5'020);
}

TEST_F(BackupTest, WhatTheOriginalHasLostIsNamed) {
  MakeKeptFolder(state_);
  const std::string sha256 = Sha256Hex("artifact");
  ASSERT_TRUE(RemoveFile(state_ + "/blobs/" + sha256.substr(0, 2) + "/" + sha256).ok());
  const std::string rotten = Sha256Hex("card");
  ASSERT_TRUE(WriteFileAtomic(state_ + "/blobs/" + rotten.substr(0, 2) + "/" + rotten, "CARD").ok());
  const auto report = BackupState(state_, backup_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->lost, ::testing::UnorderedElementsAre(sha256, rotten));
  EXPECT_EQ(report->jobs, 12) << "all else is there";
}

TEST_F(BackupTest, AFailureLeavesTheBackupBefore) {
  MakeKeptFolder(state_);
  ASSERT_TRUE(BackupState(state_, backup_).ok());
  {
    const auto store = OpenJobStore(state_);
    const auto tx = (*store)->Begin();
    ASSERT_TRUE((*tx)->DeleteJob("ftjob-kept10", 0).ok());
    ASSERT_TRUE((*tx)->Commit().ok());
  }
  for (const char* failpoint : kFailpoints) {
    ArmFailpoint(failpoint, "error");
    EXPECT_FALSE(BackupState(state_, backup_).ok());
    DisarmFailpoints();
    ExpectWhole(backup_);
    EXPECT_TRUE((*OpenJobStore(CopyOf(backup_)))->GetJob("ftjob-kept10").ok()) << failpoint;
  }
  ASSERT_TRUE(BackupState(state_, backup_).ok());
  EXPECT_FALSE((*OpenJobStore(CopyOf(backup_)))->GetJob("ftjob-kept10").ok());
}

// Killed, not failed: nothing is put away, and the lock is the kernel's to give back. Before the mark the folder is
// anybody's, after it only this state's.
TEST_F(BackupTest, AKilledFirstOneIsFinishedByTheNext) {
  MakeKeptFolder(state_);
  const std::string other = JoinPath(dir_.path(), "other");
  MakeKeptFolder(other);
  for (const char* failpoint : kFailpoints) {
    SCOPED_TRACE(failpoint);
    const std::string folder = JoinPath(dir_.path(), failpoint);
    const auto killed = [&] {
      ArmFailpoint(failpoint, "crash");
      BackupState(state_, folder).IgnoreError();
    };
    EXPECT_EXIT(killed(), ::testing::KilledBySignal(SIGKILL), "");
    const bool marked = FileExists(JoinPath(folder, "backup-of"));
    EXPECT_EQ(marked, std::string(failpoint) != "backup_before_mark");
    EXPECT_FALSE(FileExists(JoinPath(folder, "state.db"))) << "half of one is none";
    if (marked) {
      EXPECT_EQ(ErrorReason(BackupState(other, folder).status()), "BAD_DESTINATION");
    }
    const auto report = BackupState(state_, folder);
    ASSERT_TRUE(report.ok()) << report.status();
    ExpectWhole(folder);
  }
}

// The first round is not cut and counts the changes of a backup; the others are spread over all of them, and one falls
// before each of the last ones, where the new database takes the name.
TEST_F(BackupTest, PowerCutsLeaveOneOrTheOther) {
  MakeKeptFolder(state_);
  constexpr int kSpread = 20;
  constexpr int kLast = 12;
  int64_t changes = 0;
  int cut_off = 0;
  int replaced = 0;
  for (int round = 0; round <= kSpread + kLast; ++round) {
    const std::string before = JoinPath(dir_.path(), "backup" + std::to_string(round));
    const std::string after = before + "after";
    ASSERT_TRUE(BackupState(state_, before).ok());
    {
      const auto store = OpenJobStore(state_);
      const auto tx = (*store)->Begin();
      ASSERT_TRUE((*tx)->PutRequestKey({"p", "cut", std::to_string(round), "ftjob-x", 1}).ok());
      ASSERT_TRUE((*tx)->Commit().ok());
    }
    const int64_t spread = changes * (round - 1) / kSpread;
    const int64_t cut = round == 0 ? -1 : round <= kSpread ? spread : changes - kLast + (round - kSpread);
    SCOPED_TRACE("cut after " + std::to_string(cut) + " changes of " + std::to_string(changes));
    bool done = false;
    {
      PowerCutDisk disk(before);
      disk.CutAfter(cut);
      done = BackupState(state_, before).ok();
      if (round == 0) changes = disk.changes();
      disk.Restore(after, static_cast<uint64_t>(round));
    }
    ExpectWhole(after);
    const auto store = OpenJobStore(after);
    ASSERT_TRUE(store.ok()) << store.status();
    const auto key = (*store)->GetRequestKey("p", "cut");
    const bool is_new = key->has_value() && (*key)->body_sha256 == std::to_string(round);
    EXPECT_TRUE(is_new || !done) << "a backup that was reported is there";
    ASSERT_TRUE(done || round > 0);
    cut_off += !done;
    replaced += is_new;
  }
  ASSERT_GT(changes, kSpread + kLast);
  EXPECT_GE(cut_off, kSpread);
  EXPECT_GT(replaced, 0);
  EXPECT_LT(replaced, kSpread);
}

TEST_F(BackupTest, PoorDestinations) {
  EXPECT_EQ(ErrorReason(BackupState(state_, backup_).status()), "NO_DATABASE");
  EXPECT_FALSE(FileExists(backup_));
  MakeKeptFolder(state_);
  EXPECT_EQ(ErrorReason(BackupState(state_, state_).status()), "BAD_DESTINATION");
  EXPECT_EQ(ErrorReason(BackupState(state_, JoinPath(state_, "blobs/backup")).status()), "BAD_DESTINATION");
  EXPECT_EQ(ErrorReason(BackupState(state_, dir_.path()).status()), "BAD_DESTINATION");
  ASSERT_TRUE(BackupState(state_, backup_).ok());
  const auto another = FileLock::Acquire(JoinPath(backup_, "lock"));
  ASSERT_TRUE(another.ok());
  EXPECT_EQ(ErrorReason(BackupState(state_, backup_).status()), "LOCKED") << "one backup at a time";
  ASSERT_TRUE(WriteFileAtomic(JoinPath(backup_, "state.db-wal"), "left by a crash").ok());
  EXPECT_EQ(ErrorReason(BackupState(state_, backup_).status()), "BAD_DESTINATION");
}

// A worker goes on after the backup: attempt 2 begins, commits and ends. A scheduler on the backup believes none of it,
// and what it gives out is above all of that.
TEST_F(BackupTest, ARestoredSchedulerFencesWhatCameAfter) {
  FakeClock clock;
  FakePlanner planner;
  const Dispatcher::Options times{60'000, 90'000, 10'000};
  const auto run = [&](const std::string& folder, const std::function<void(DispatcherCore&, BlobStore&)>& body) {
    const auto store = OpenJobStore(folder);
    BlobStore::Options options;
    options.min_free_bytes = 0;
    const auto blobs = BlobStore::Open(folder, options);
    ASSERT_TRUE(store.ok() && blobs.ok());
    DispatcherCore core(times, store->get(), blobs->get(), &clock, &planner);
    ASSERT_TRUE(core.Load().ok());
    body(core, **blobs);
  };
  const auto settle = [](DispatcherCore& core) {
    for (int i = 0; i < 4; ++i) {
      core.Tick();
      ASSERT_TRUE(core.CommitBatch().ok());
    }
  };
  const Worker worker = TestWorker("w1");
  ASSERT_TRUE(CreateDirs(state_).ok());
  PutBlobFile(state_, "dataset");
  PutBlobFile(state_, "checkpoint");
  const BlobRef checkpoint_blob{Sha256Hex("checkpoint"), 10};
  std::string id;
  AttemptKey running;
  run(state_, [&](DispatcherCore& core, BlobStore&) {
    id = core.Create({TestJob({Sha256Hex("dataset"), 7}), "body"})->id;
    std::string session = core.OpenSession({worker, 1, {}})->session_id;
    settle(core);
    const SyncReply validate = core.MakeReply("w1", 1);
    ASSERT_EQ(validate.starts.size(), 1u);
    AttemptReport report;
    report.key = validate.starts[0].key;
    report.phase = AttemptPhase::kEnded;
    report.exit = ExitReason::kSucceeded;
    report.report_examples = 1;
    ASSERT_TRUE(core.Sync({session, 2, {report}, 0, 0}).ok());
    settle(core);
    running = core.MakeReply("w1", 2).starts.at(0).key;
    const auto backup = BackupState(state_, backup_);
    ASSERT_TRUE(backup.ok()) << backup.status();
    Checkpoint checkpoint;
    checkpoint.step = 5;
    checkpoint.files = {{"adapter.bin", checkpoint_blob}};
    ASSERT_TRUE(core.CommitCheckpoint(session, running, checkpoint).ok());
    settle(core);
  });
  PutBlobFile(backup_, "checkpoint");
  run(backup_, [&](DispatcherCore& core, BlobStore&) {
    settle(core);
    EXPECT_GT(core.jobs().at(id).job.lease_epoch, running.lease_epoch + 1000);
    EXPECT_EQ(core.jobs().at(id).job.failed_attempts, 0) << "not the job's fault";
    AttemptReport report;
    report.key = running;
    report.phase = AttemptPhase::kRunning;
    const auto session = core.OpenSession({worker, 1, {report}});
    ASSERT_TRUE(session.ok());
    settle(core);
    EXPECT_EQ(session->fenced.size(), 1u) << "the worker is told to end it";
    Checkpoint late;
    late.step = 9;
    late.files = {{"adapter.bin", checkpoint_blob}};
    EXPECT_EQ(ErrorReason(core.CommitCheckpoint(session->session_id, running, late)), "LEASE_FENCED");
    ASSERT_TRUE(core.Sync({session->session_id, 1, {}, 0, 0}).ok());
    settle(core);
    const SyncReply reply = core.MakeReply("w1", 1);
    ASSERT_EQ(reply.starts.size(), 1u);
    EXPECT_GT(reply.starts[0].key.attempt, running.attempt + 50);
    EXPECT_GT(reply.starts[0].key.lease_epoch, running.lease_epoch + 1000);
  });
}

}  // namespace
}  // namespace longhaul::storage
