// The dispatcher's state machine on a fake store and clock, without a thread, and an agent that a test plays by hand.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "gtest/gtest.h"
#include "server/dispatcher_core.h"
#include "tests/fakes/fake_server_parts.h"
#include "tests/fakes/fake_store.h"

namespace longhaul::server {

inline const Dispatcher::Options kTestOptions{60'000, 90'000, 10'000};

class CoreHarness {
 public:
  CoreHarness() { Restart(); }

  // The scheduler dies and starts again on the same store.
  void Restart() {
    core = std::make_unique<DispatcherCore>(options, &store, &blobs, &clock, &planner);
    const absl::Status status = core->Load();
    EXPECT_TRUE(status.ok()) << status;
    Settle().IgnoreError();  // a test may have told the store to fail
  }

  // Tick and commit until nothing is due now. Returns the first commit's status.
  absl::Status Settle() {
    core->Tick();
    const absl::Status first = core->CommitBatch();
    Collect();
    for (int i = 0; first.ok() && i < 10 && core->NextTimerBootNanos() <= clock.BootNanos(); ++i) {
      core->Tick();
      if (!core->CommitBatch().ok()) break;  // a test made it fail; it is due again after the store's rest
      Collect();
    }
    return first;
  }
  void Advance(int64_t ms) {
    clock.AdvanceMillis(ms);
    EXPECT_TRUE(Settle().ok());
  }
  // One command with its commit, and what follows from it.
  template <class R>
  R Do(R result) {
    const absl::Status committed = Settle();
    if (!committed.ok()) return R(committed);
    return result;
  }

  std::string Create(int cpu_threads = 1) {
    const absl::StatusOr<Job> job = Do(core->Create({TestJob(blobs.Add("dataset"), cpu_threads), "body"}));
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? job->id : "";
  }
  // As the API shows it: what a waiting job waits for is not in the store.
  Job Get(const std::string& id) {
    absl::StatusOr<Job> job = store.GetJob(id);
    EXPECT_TRUE(job.ok()) << job.status();
    if (!job.ok()) return Job();
    if (const std::optional<WaitInfo> wait = WaitOf(*job); wait.has_value()) {
      job->reason = wait->reason;
      job->reason_detail = wait->detail;
    }
    return *job;
  }
  std::optional<WaitInfo> WaitOf(const Job& job) const {
    if (!Waits(job)) return std::nullopt;
    return core->TellWaits()->Find(job.create_number);
  }
  int Position(const std::string& id) {
    const std::optional<WaitInfo> wait = WaitOf(Get(id));
    return wait.has_value() ? wait->position : 0;
  }
  JobState State(const std::string& id) { return Get(id).state; }

  // ---- The agent ----
  std::string Open(const Worker& worker, std::vector<AttemptReport> attempts = {},
                   std::vector<AttemptKey>* fenced = nullptr) {
    const absl::StatusOr<SessionReply> reply = Do(core->OpenSession({worker, 1, std::move(attempts)}));
    EXPECT_TRUE(reply.ok()) << reply.status();
    if (!reply.ok()) return "";
    if (fenced != nullptr) *fenced = reply->fenced;
    sync_number = 0;
    return reply->session_id;
  }
  absl::StatusOr<SyncReply> Sync(const std::string& session, std::vector<AttemptReport> attempts = {}) {
    return SyncNumbered(session, ++sync_number, std::move(attempts));
  }
  absl::StatusOr<SyncReply> SyncNumbered(const std::string& session, int64_t number,
                                         std::vector<AttemptReport> attempts = {}) {
    attempts.insert(attempts.end(), others.begin(), others.end());
    const absl::StatusOr<std::string> worker = Do(core->Sync({session, number, std::move(attempts), 0, 0}));
    if (!worker.ok()) return worker.status();
    return core->MakeReply(*worker, number);
  }

  static AttemptReport Report(const AttemptKey& key, AttemptPhase phase, ExitReason exit = ExitReason::kNone) {
    AttemptReport report;
    report.key = key;
    report.phase = phase;
    report.exit = exit;
    return report;
  }
  static AttemptReport Running(const AttemptKey& key, int64_t from = 0, int64_t to = 0) {
    AttemptReport report = Report(key, AttemptPhase::kRunning);
    for (int64_t step = from; step > 0 && step <= to; ++step) {
      report.progress.push_back({key.attempt, step, "step " + std::to_string(step), step * 100, 0.5});
    }
    return report;
  }
  static AttemptReport Validated(const AttemptKey& key, int64_t examples = 10) {
    AttemptReport report = Report(key, AttemptPhase::kEnded, ExitReason::kSucceeded);
    report.data_report = "report";
    report.report_examples = examples;
    report.report_longest_tokens = 300;
    report.report_total_steps = 60;
    report.report_tokens = 3000;
    return report;
  }
  static AttemptReport Failed(const AttemptKey& key, Reason reason) {
    AttemptReport report = Report(key, AttemptPhase::kEnded, ExitReason::kFailed);
    report.exit_failure = {reason, "it failed", false, "tail"};
    report.device_at_fault = reason == Reason::kDeviceFault;
    return report;
  }

  // The validation of `id`, from its start command to its report. Returns what the next answer says.
  absl::StatusOr<SyncReply> Validate(const std::string& session, const std::string& id) {
    const absl::StatusOr<SyncReply> reply = Sync(session);
    EXPECT_TRUE(reply.ok()) << reply.status();
    const std::optional<AttemptKey> key = StartOf(*reply, id);
    EXPECT_TRUE(key.has_value()) << "no start for " << id;
    if (!key.has_value()) return reply;
    return Sync(session, {Validated(*key)});
  }
  // A job that runs on the worker; its key.
  AttemptKey RunningJob(const std::string& session, std::string* id, int cpu_threads = 1) {
    *id = Create(cpu_threads);
    const absl::StatusOr<SyncReply> reply = Validate(session, *id);
    const std::optional<AttemptKey> key = StartOf(*reply, *id);
    EXPECT_TRUE(key.has_value()) << Get(*id).reason_detail;
    EXPECT_TRUE(Sync(session, {Running(*key)}).ok());
    EXPECT_EQ(State(*id), JobState::kRunning);
    return *key;
  }
  static std::optional<AttemptKey> StartOf(const SyncReply& reply, const std::string& id) {
    for (const StartCommand& start : reply.starts) {
      if (start.key.job_id == id) return start.key;
    }
    return std::nullopt;
  }
  static std::optional<StopMode> StopOf(const SyncReply& reply, const AttemptKey& key) {
    for (const StopCommand& stop : reply.stops) {
      if (stop.key.job_id == key.job_id && stop.key.attempt == key.attempt && stop.key.lease_epoch == key.lease_epoch) {
        return stop.mode;
      }
    }
    return std::nullopt;
  }
  Checkpoint MakeCheckpoint(int64_t step, std::optional<double> eval_loss = std::nullopt) {
    Checkpoint checkpoint;
    checkpoint.step = step;
    checkpoint.eval_loss = eval_loss;
    checkpoint.plan_signature = "sig";
    checkpoint.files = {{"adapter.bin", blobs.Add("checkpoint " + std::to_string(step))}};
    return checkpoint;
  }
  absl::Status CommitCheckpoint(const std::string& session, const AttemptKey& key, int64_t step,
                                std::optional<double> eval_loss = std::nullopt) {
    return Do(core->CommitCheckpoint(session, key, MakeCheckpoint(step, eval_loss)));
  }
  absl::Status CommitArtifact(const std::string& session, const AttemptKey& key) {
    return Do(core->CommitArtifact(session, key, {{"adapter_model.safetensors", blobs.Add("adapter")}}, "result"));
  }
  std::vector<int64_t> CheckpointSteps(const std::string& id) {
    std::vector<int64_t> steps;
    const std::vector<Checkpoint> checkpoints = store.ListCheckpoints(id).value();
    for (const Checkpoint& checkpoint : checkpoints) steps.push_back(checkpoint.step);
    return steps;
  }
  // "QUEUED STARTING RUNNING": the states of its events.
  std::string StateStory(const std::string& id) {
    std::string story;
    const std::vector<JobEvent> events = store.ListEvents(id, 0, 1000).value();
    for (const JobEvent& event : events) {
      if (event.type != EventType::kState) continue;
      story += (story.empty() ? "" : " ") + std::string(Name(event.state));
    }
    return story;
  }

  Dispatcher::Options options = kTestOptions;  // of the next Restart
  FakeClock clock;
  FakeStore store;
  FakeBlobs blobs;
  FakePlanner planner;
  std::unique_ptr<DispatcherCore> core;
  std::vector<Effect> effects;
  int64_t sync_number = 0;
  std::vector<AttemptReport> others;  // what every Sync names beside what it is about

 private:
  void Collect() {
    for (Effect& effect : core->TakeEffects()) effects.push_back(std::move(effect));
  }
};

class DispatcherCoreTest : public ::testing::Test, protected CoreHarness {};

}  // namespace longhaul::server
