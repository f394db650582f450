// The dispatcher's thread: many callers, parked Syncs, answers after commits. No test sleeps: a hand-moved clock and
// Wake.
#include <atomic>
#include <functional>
#include <future>
#include <set>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/limits.h"
#include "gtest/gtest.h"
#include "server/dispatcher.h"
#include "server/dispatcher_stats.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fakes/fake_store.h"

namespace longhaul::server {
namespace {

// All of them in one folder. Asks something of the dispatcher whenever it is listed: its own thread may not do that.
class AskingBlobs final : public BlobIndex {
 public:
  AskingBlobs(FakeBlobs* blobs, std::function<void()> ask) : blobs_(blobs), ask_(std::move(ask)) {}
  absl::StatusOr<bool> Present(const BlobRef& blob) override { return blobs_->Present(blob); }
  absl::Status Remove(const BlobRef& blob) override { return blobs_->Remove(blob); }
  absl::StatusOr<std::vector<BlobRef>> List(const std::string& prefix) override {
    ask_();
    return prefix == "00" ? blobs_->List("") : std::vector<BlobRef>();
  }

 private:
  FakeBlobs* const blobs_;
  const std::function<void()> ask_;
};

// Keeps the dispatcher's thread, after its first commit that tells of an event, until it is let go.
class HoldingSink final : public EventSink {
 public:
  void OnEvent(const Job&, const JobEvent&) override {
    if (std::exchange(holds_, false)) {
      held.set_value();
      may_go_on.get_future().wait();
    }
  }
  void OnProgress(const std::string&, const MetricPoint&) override {}
  void OnJobDeleted(const std::string&) override {}
  void OnLogComplete(const std::string&, int) override {}

  std::promise<void> held;
  std::promise<void> may_go_on;

 private:
  bool holds_ = true;  // the dispatcher's thread's
};

class DispatcherThreadTest : public ::testing::Test {
 protected:
  using Answer = absl::StatusOr<SyncReply>;

  void SetUp() override { ASSERT_TRUE(dispatcher_.Start().ok()); }

  std::string Open(const std::string& worker) {
    const absl::StatusOr<SessionReply> reply = dispatcher_.OpenSession({TestWorker(worker), 1, {}});
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.ok() ? reply->session_id : "";
  }
  std::future<Answer> Sync(const std::string& session, int64_t number, std::vector<AttemptReport> attempts = {}) {
    auto promise = std::make_shared<std::promise<Answer>>();
    dispatcher_.Sync({session, number, std::move(attempts), 0, 0},
                     [promise](Answer answer) { promise->set_value(std::move(answer)); });
    return promise->get_future();
  }
  // Everything posted before has been committed and answered, or parked.
  void Flush() { dispatcher_.Workers(); }
  static bool Answered(const std::future<Answer>& future) {
    return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }

  FakeClock clock_;
  FakeStore store_;
  FakeBlobs blobs_;
  FakePlanner planner_;
  RecordingSink sink_;
  Dispatcher dispatcher_{Dispatcher::Options{60'000, 90'000, 10'000}, &store_, &blobs_, &clock_, &sink_, &planner_};
};

TEST_F(DispatcherThreadTest, BlobsAreCollectedUntilNoneIsLeft) {
  constexpr int kBlobs = 3 * limits::kMaxBlobsCollectedPerCommit + 7;
  std::vector<BlobRef> loose;
  for (int i = 0; i < kBlobs; ++i) loose.push_back(blobs_.Add("loose " + std::to_string(i)));
  ASSERT_TRUE(dispatcher_.RecordBlobs(loose).ok());
  EXPECT_EQ(dispatcher_.CollectBlobs().value_or(-1), 0);
  clock_.AdvanceMillis(limits::kBlobGraceHours * 3'600'000 + 1);
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(dispatcher_.CollectBlobs(stop.get_token()).value_or(-1), limits::kMaxBlobsCollectedPerCommit)
      << "a scheduler that stops waits for one step";
  EXPECT_EQ(dispatcher_.CollectBlobs().value_or(-1), kBlobs - limits::kMaxBlobsCollectedPerCommit);
  for (const BlobRef& blob : loose) EXPECT_FALSE(*blobs_.Present(blob));
}

TEST_F(DispatcherThreadTest, OneRequestIdFrom64ThreadsIsOneJob) {
  const BlobRef dataset = blobs_.Add("dataset");
  for (int round = 0; round < 5; ++round) {
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::set<std::string> ids;
    std::atomic<int> failed = 0;
    for (int i = 0; i < 64; ++i) {
      threads.emplace_back([&] {
        CreateInput input{TestJob(dataset), "body"};
        input.job.request_id = "round-" + std::to_string(round);
        const absl::StatusOr<Job> job = dispatcher_.Create(std::move(input));
        if (!job.ok()) {
          ++failed;
          return;
        }
        std::lock_guard lock(mutex);
        ids.insert(job->id);
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(failed, 0);
    EXPECT_EQ(ids.size(), 1u);
  }
  EXPECT_EQ(store_.LoadLiveJobs()->size(), 5u);
}

TEST_F(DispatcherThreadTest, CreatesShareCommits) {
  constexpr int kTogether = 128;
  const BlobRef dataset = blobs_.Add("dataset");
  HoldingSink sink;
  FakeStore store;
  Dispatcher dispatcher({60'000, 90'000, 10'000}, &store, &blobs_, &clock_, &sink, &planner_);
  ASSERT_TRUE(dispatcher.Start().ok());
  const auto create = [&] { EXPECT_TRUE(dispatcher.Create({TestJob(dataset), "b"}).ok()); };
  std::vector<std::thread> threads;
  threads.emplace_back(create);
  sink.held.get_future().wait();
  const int commits = store.commits();
  std::atomic<int> come = 0;
  for (int i = 0; i < kTogether; ++i) {
    threads.emplace_back([&] {
      ++come;
      create();
    });
  }
  while (come < kTogether) std::this_thread::yield();
  sink.may_go_on.set_value();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store.LoadLiveJobs()->size(), size_t{1} + kTogether);
  // One, but for those that came so far and no further before the thread was let go.
  EXPECT_LT(store.commits() - commits, kTogether / 2);
  EXPECT_EQ(dispatcher.Stats().created_total, uint64_t{1} + kTogether);
  // Positions are published with the pass that gave them.
  std::set<int> positions;
  const std::vector<Job> live = store.LoadLiveJobs().value();
  for (const Job& job : live) {
    const std::optional<WaitInfo> wait = dispatcher.WaitOf(job);
    ASSERT_TRUE(wait.has_value());
    positions.insert(wait->position);
  }
  EXPECT_EQ(positions.size(), size_t{1} + kTogether);
  EXPECT_EQ(*positions.begin(), 1);
  EXPECT_EQ(*positions.rbegin(), 1 + kTogether);
}

TEST_F(DispatcherThreadTest, FilesAreListedByWhoCollects) {
  std::set<std::string> shas;
  for (int i = 0; i < 3 * limits::kMaxBlobsCollectedPerCommit; ++i) {
    shas.insert(blobs_.Add("a file whose row a crash has lost, " + std::to_string(i)).sha256);
  }
  Dispatcher* asked = nullptr;
  AskingBlobs blobs(&blobs_, [&] { asked->Workers(); });
  FakeStore store;
  Dispatcher dispatcher({60'000, 90'000, 10'000}, &store, &blobs, &clock_, &sink_, &planner_);
  asked = &dispatcher;
  ASSERT_TRUE(dispatcher.Start().ok());
  dispatcher.Workers();  // its first turn, which sweeps, is over
  const int commits = store.commits();
  EXPECT_EQ(dispatcher.CollectBlobs().value_or(-1), 0);
  EXPECT_EQ(store.commits() - commits, 3) << "others have their turns between";
  for (const std::string& sha256 : shas) {
    EXPECT_TRUE(*store.HasBlob({sha256, blobs_.SizeOf(sha256)})) << "found, and given its grace";
  }
}

TEST_F(DispatcherThreadTest, AParkedSyncIsAnsweredByACommand) {
  const std::string session = Open("w1");
  std::future<Answer> parked = Sync(session, 1);
  Flush();
  EXPECT_FALSE(Answered(parked));
  const absl::StatusOr<Job> job = dispatcher_.Create({TestJob(blobs_.Add("dataset")), "b"});
  ASSERT_TRUE(job.ok());
  const Answer answer = parked.get();
  ASSERT_TRUE(answer.ok());
  ASSERT_EQ(answer->starts.size(), 1u);
  EXPECT_EQ(answer->starts[0].key.job_id, job->id);
  EXPECT_EQ(store_.GetJob(job->id)->lease_epoch, 1) << "committed before it was told";
}

TEST_F(DispatcherThreadTest, AParkedSyncIsAnsweredAfterItsHold) {
  const std::string session = Open("w1");
  std::future<Answer> parked = Sync(session, 1);
  Flush();
  clock_.AdvanceMillis(9'999);
  dispatcher_.Wake();
  Flush();
  EXPECT_FALSE(Answered(parked));
  clock_.AdvanceMillis(1);
  dispatcher_.Wake();
  EXPECT_TRUE(parked.get().ok());
}

// A stopped process, a machine that slept: the thread turns before anybody has read what workers sent meanwhile.
TEST_F(DispatcherThreadTest, AThreadThatStoodStillLosesNobody) {
  const std::string session = Open("w1");
  Flush();
  clock_.AdvanceMillis(3'600'000);
  dispatcher_.Wake();
  Flush();
  ASSERT_TRUE(dispatcher_.Workers().at(0).online);
  std::future<Answer> parked = Sync(session, 1);
  Flush();
  EXPECT_FALSE(Answered(parked)) << "its session is open";
  // Who is silent while the thread listens is lost after his time.
  for (int i = 0; i < 9; ++i) {
    EXPECT_TRUE(dispatcher_.Workers().at(0).online) << i;
    clock_.AdvanceMillis(10'000);
    dispatcher_.Wake();
    Flush();
  }
  EXPECT_FALSE(dispatcher_.Workers().at(0).online);
}

TEST_F(DispatcherThreadTest, ANewerSyncAnswersTheOlderOne) {
  const std::string session = Open("w1");
  std::future<Answer> older = Sync(session, 1);
  std::future<Answer> newer = Sync(session, 2);
  EXPECT_TRUE(older.get().ok());
  std::future<Answer> late = Sync(session, 1);
  EXPECT_TRUE(late.get().ok());
  Flush();
  EXPECT_FALSE(Answered(newer));
  dispatcher_.Stop();
  EXPECT_EQ(newer.get().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(DispatcherThreadTest, ANewSessionClosesTheOldOnesParkedSync) {
  const std::string session = Open("w1");
  std::future<Answer> parked = Sync(session, 1);
  Flush();
  Open("w1");
  EXPECT_EQ(ErrorReason(parked.get().status()), "SESSION_CLOSED");
  EXPECT_EQ(ErrorReason(Sync(session, 2).get().status()), "SESSION_CLOSED");
}

TEST_F(DispatcherThreadTest, AFailedCommitAnswersEveryCommandUnavailable) {
  const BlobRef dataset = blobs_.Add("dataset");
  const std::string session = Open("w1");
  store_.FailCommits(1);
  const absl::Status created = dispatcher_.Create({TestJob(dataset), "b"}).status();
  EXPECT_EQ(created.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(created), "STORE_UNAVAILABLE");
  EXPECT_TRUE(store_.LoadLiveJobs()->empty());
  clock_.AdvanceMillis(2'000);
  const absl::StatusOr<Job> job = dispatcher_.Create({TestJob(dataset), "b"});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(sink_.events(job->id).at(0).sequence, 1);
}

TEST_F(DispatcherThreadTest, EventsComeAfterTheirCommitDenseAndInOrder) {
  const std::string session = Open("w1");
  const absl::StatusOr<Job> job = dispatcher_.Create({TestJob(blobs_.Add("dataset")), "b"});
  AttemptReport report;
  report.key = {job->id, 1, 1};
  report.phase = AttemptPhase::kEnded;
  report.exit = ExitReason::kSucceeded;
  report.report_examples = 5;
  report.report_total_steps = 10;
  EXPECT_EQ(Sync(session, 1).get()->starts.size(), 1u);
  EXPECT_EQ(Sync(session, 2, {report}).get()->starts.size(), 1u);
  AttemptReport running;
  running.key = {job->id, 2, 2};
  running.phase = AttemptPhase::kRunning;
  running.progress = {{2, 1, "p", 10, 1}};
  std::future<Answer> parked = Sync(session, 3, {running});
  Flush();
  EXPECT_EQ(sink_.progress_count(job->id), 1u);
  ASSERT_TRUE(dispatcher_.Cancel(job->id).ok());
  EXPECT_EQ(parked.get()->stops.size(), 1u);
  const std::vector<JobEvent> told = sink_.events(job->id);
  const std::vector<JobEvent> stored = *store_.ListEvents(job->id, 0, 100);
  ASSERT_EQ(told.size(), stored.size());
  for (size_t i = 0; i < told.size(); ++i) {
    EXPECT_EQ(told[i].sequence, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(told[i].state, stored[i].state);
  }
}

TEST_F(DispatcherThreadTest, StopAnswersEverybody) {
  const BlobRef dataset = blobs_.Add("dataset");
  const std::string session = Open("w1");
  std::future<Answer> parked = Sync(session, 1);
  std::vector<std::thread> threads;
  std::atomic<bool> go_on = true;
  std::atomic<int> created = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      while (go_on) {
        const absl::Status status = dispatcher_.Create({TestJob(dataset), "b"}).status();
        if (status.ok()) {
          ++created;
          continue;
        }
        EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
        break;
      }
    });
  }
  while (created < 20) std::this_thread::yield();
  dispatcher_.Stop();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_.LoadLiveJobs()->size(), static_cast<size_t>(created)) << "told is stored, refused is not";
  EXPECT_EQ(dispatcher_.Create({TestJob(dataset), "b"}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(dispatcher_.Workers().empty());
  dispatcher_.Stop();
}

}  // namespace
}  // namespace longhaul::server
