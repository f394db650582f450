// Users, workers, trainers, crashes, lost messages and full disks by a seed; the invariants are checked after every
// event. A failing seed prints itself and its last events; set kOnlySeed to replay it.
#include <deque>
#include <map>
#include <set>

#include "base/random.h"
#include "tests/server/dispatcher/core_harness.h"

namespace longhaul::server {
namespace {

constexpr int kSeeds = 300;
constexpr int kEvents = 200;
constexpr int64_t kOnlySeed = -1;

// A trainer as it really is on a worker, whatever the scheduler believes.
struct Trainer {
  StartCommand start;
  int64_t step = 0;
  bool ended = false;
  ExitReason exit = ExitReason::kNone;
  Reason failure = Reason::kNone;
  bool finalizing = false;
  bool checkpoint_asked = false;
  int64_t lease_until_boot_nanos = 0;
};

struct Agent {
  Worker worker;
  std::string session;
  int64_t sync_number = 0;
  bool up = true;
  std::map<std::pair<std::string, int>, Trainer> trainers;
};

class Simulation : public CoreHarness {
 public:
  explicit Simulation(uint64_t seed) : seed_(seed) {
    for (int i = 0; i < 3; ++i) {
      Agent agent;
      agent.worker = TestWorker("w" + std::to_string(i), int64_t{3 + i} << 30, 2 + i);
      agents_.push_back(agent);
    }
    options.preempt_min_run_ms = 20'000;  // so that it happens within a run
    Restart();
  }

  void Run() {
    for (event_ = 0; event_ < kEvents && !::testing::Test::HasFailure(); ++event_) {
      OneEvent();
      CheckInvariants();
    }
    Finish();
    CheckInvariants();
    preemptions_ = static_cast<int>(core->Stats().preemptions_total);
    if (::testing::Test::HasFailure()) {
      std::string trace;
      for (const std::string& line : trace_) trace += "  " + line + "\n";
      ADD_FAILURE() << "seed " << seed_ << ", event " << event_ << "\n" << trace;
    }
  }

  int preemptions() const { return preemptions_; }  // since the last restart

 private:
  uint64_t Draw(uint64_t n) { return CounterBits(seed_, ++draws_) % n; }
  bool Chance(uint64_t percent) { return Draw(100) < percent; }
  void Note(const std::string& line) {
    trace_.push_back(line);
    if (trace_.size() > 25) trace_.pop_front();
  }
  Agent& AnyAgent() { return agents_[Draw(agents_.size())]; }
  std::string AnyJob() { return ids_.empty() ? std::string("ftjob-none") : ids_[Draw(ids_.size())]; }

  void OneEvent() {
    if (Chance(3)) store.FailCommits(1 + static_cast<int>(Draw(2)));
    switch (Draw(16)) {
      case 0:
      case 1:
        return CreateJob();
      case 2:
        return UserRequest();
      case 3:
        return Pass(1 + Draw(5'000));
      case 4:
        return Pass(Chance(20) ? 91'000 : 1 + Draw(40'000));
      case 5:
        if (Chance(20)) {
          Note("scheduler restarts");
          Restart();
        }
        return;
      case 6:
        return ToggleAgent();
      case 7: {
        Agent& agent = AnyAgent();
        const bool draining = Chance(30);
        Note("drain " + agent.worker.id + (draining ? " on" : " off"));
        return Do(core->SetDraining(agent.worker.id, draining)).status().IgnoreError();
      }
      case 8:
        return StaleWrite();
      case 9:
      case 10:
        return Work();
      default:
        return SyncAgent(AnyAgent());
    }
  }

  void CreateJob() {
    if (ids_.size() >= 12) return;
    Job job = TestJob(blobs.Add("dataset"), 1 + static_cast<int>(Draw(3)));
    job.train_shape.sequence_length = 100'000 + static_cast<int64_t>(Draw(1'500'000));
    job.backoff_seconds = static_cast<int64_t>(Draw(3)) * 5;
    job.priority = static_cast<PriorityClass>(1 + Draw(3));
    job.request_id = "r" + std::to_string(ids_.size());
    const absl::StatusOr<Job> created = Do(core->Create({job, "body" + job.request_id}));
    Note("create: " + (created.ok() ? created->id : std::string(created.status().message())));
    if (!created.ok()) return;
    acknowledged_.insert(created->id);
    ids_.push_back(created->id);
    EXPECT_EQ(Do(core->Create({job, "body" + job.request_id})).value_or(*created).id, created->id);
  }

  void UserRequest() {
    const std::string id = AnyJob();
    const int which = static_cast<int>(Draw(3));
    const absl::StatusOr<Job> job = Do(which == 0 ? core->Cancel(id) : which == 1 ? core->Pause(id) : core->Resume(id));
    Note(std::string(which == 0   ? "cancel "
                     : which == 1 ? "pause "
                                  : "resume ") +
         id + ": " + (job.ok() ? Name(job->state) : std::string(job.status().message())));
    if (job.ok() && which == 0) cancelled_.insert(id);
  }

  void Pass(int64_t ms) {
    Note("time +" + std::to_string(ms));
    clock.AdvanceMillis(ms);
    Settle().IgnoreError();
  }

  void ToggleAgent() {
    Agent& agent = AnyAgent();
    if (agent.up && Chance(60)) {
      agent.up = false;
      agent.session.clear();
      Note(agent.worker.id + " goes down" + (Chance(50) ? " with its trainers" : ""));
      if (Chance(50)) {
        for (auto& [key, trainer] : agent.trainers) {
          if (!trainer.ended) trainer = Ended(trainer, ExitReason::kCrashed);
        }
      }
    } else if (!agent.up) {
      agent.up = true;
      if (Chance(10)) agent.trainers.clear();  // its disk was lost
      Note(agent.worker.id + " comes up");
    }
  }

  static Trainer Ended(Trainer trainer, ExitReason exit, Reason failure = Reason::kNone) {
    trainer.ended = true;
    trainer.exit = exit;
    trainer.failure = failure;
    return trainer;
  }

  AttemptReport ReportOf(const Trainer& trainer) {
    if (trainer.ended && trainer.start.kind == AttemptKind::kValidate && trainer.exit == ExitReason::kSucceeded) {
      AttemptReport report = Validated(trainer.start.key);
      report.report_longest_tokens = 1 << 30;
      return report;
    }
    if (trainer.ended && trainer.exit == ExitReason::kFailed) return Failed(trainer.start.key, trainer.failure);
    if (trainer.ended) return Report(trainer.start.key, AttemptPhase::kEnded, trainer.exit);
    if (trainer.finalizing) return Report(trainer.start.key, AttemptPhase::kFinalizing, ExitReason::kSucceeded);
    if (trainer.step == 0) return Report(trainer.start.key, AttemptPhase::kStarting);
    return Running(trainer.start.key, 1, trainer.step);
  }

  void SyncAgent(Agent& agent) {
    if (!agent.up) return;
    std::vector<AttemptReport> reports;
    for (const auto& [key, trainer] : agent.trainers) reports.push_back(ReportOf(trainer));
    if (agent.session.empty()) {
      const absl::StatusOr<SessionReply> reply = Do(core->OpenSession({agent.worker, 1, reports}));
      Note(agent.worker.id + " opens: " + (reply.ok() ? "ok" : std::string(reply.status().message())));
      if (!reply.ok() || Chance(10)) return;  // the answer may be lost
      agent.session = reply->session_id;
      agent.sync_number = 0;
      for (const AttemptKey& key : reply->fenced) agent.trainers.erase({key.job_id, key.attempt});
      return;
    }
    const int64_t sent = clock.BootNanos();
    if (!Chance(5)) ++agent.sync_number;  // else the same number once more
    const absl::StatusOr<std::string> worker = Do(core->Sync({agent.session, agent.sync_number, reports, 0, 0}));
    if (!worker.ok()) {
      Note(agent.worker.id + " sync: " + std::string(worker.status().message()));
      if (ErrorReason(worker.status()) == "SESSION_CLOSED") agent.session.clear();
      return;
    }
    const SyncReply reply = core->MakeReply(*worker, agent.sync_number);
    Note(agent.worker.id + " syncs: " + std::to_string(reply.starts.size()) + " starts, " +
         std::to_string(reply.stops.size()) + " stops");
    if (Chance(8)) return Note("  its answer is lost");
    Obey(agent, reply, sent + reply.lease_ms * 1'000'000);
  }

  void Obey(Agent& agent, const SyncReply& reply, int64_t lease_until) {
    for (const AttemptKey& key : reply.acknowledged) {
      const auto found = agent.trainers.find({key.job_id, key.attempt});
      if (found != agent.trainers.end() && found->second.ended) agent.trainers.erase(found);
    }
    for (const StartCommand& start : reply.starts) {
      const auto [at, added] = agent.trainers.try_emplace({start.key.job_id, start.key.attempt});
      if (!added) continue;
      at->second.start = start;
      at->second.lease_until_boot_nanos = lease_until;
      if (start.resume_from.has_value()) at->second.step = start.resume_from->step;
    }
    for (const AttemptKey& key : reply.leases) {
      const auto found = agent.trainers.find({key.job_id, key.attempt});
      if (found != agent.trainers.end() && found->second.start.key.lease_epoch == key.lease_epoch) {
        found->second.lease_until_boot_nanos = std::max(found->second.lease_until_boot_nanos, lease_until);
      }
    }
    for (const StopCommand& stop : reply.stops) {
      const auto found = agent.trainers.find({stop.key.job_id, stop.key.attempt});
      if (found == agent.trainers.end() || found->second.start.key.lease_epoch != stop.key.lease_epoch) continue;
      Trainer& trainer = found->second;
      if (stop.mode == StopMode::kFenced) {
        agent.trainers.erase(found);
      } else if (!trainer.ended && stop.mode == StopMode::kCancel) {
        trainer = Ended(trainer, ExitReason::kCancelled);
      } else if (!trainer.ended) {
        trainer.checkpoint_asked = true;
      }
    }
  }

  // One trainer does something.
  void Work() {
    Agent& agent = AnyAgent();
    if (!agent.up || agent.session.empty() || agent.trainers.empty()) return;
    auto at = agent.trainers.begin();
    std::advance(at, Draw(agent.trainers.size()));
    Trainer& trainer = at->second;
    const AttemptKey key = trainer.start.key;
    const bool holds = clock.BootNanos() >= trainer.lease_until_boot_nanos;
    if (trainer.ended || holds) return;
    if (Chance(6)) {
      Note("trainer of " + key.job_id + " dies");
      trainer = Ended(trainer, Chance(50) ? ExitReason::kCrashed : ExitReason::kFailed,
                      Chance(30) ? Reason::kNonFiniteLoss : Reason::kInternal);
      return;
    }
    if (trainer.start.kind == AttemptKind::kValidate) {
      trainer = Ended(trainer, ExitReason::kSucceeded);
      return;
    }
    if (trainer.finalizing) {
      const absl::Status status = CommitArtifact(agent.session, key);
      Note("artifact of " + key.job_id + ": " + std::string(status.message()));
      NoteWrite(status, key);
      if (status.ok()) trainer = Ended(trainer, ExitReason::kSucceeded);
      return;
    }
    trainer.step += 1 + static_cast<int64_t>(Draw(10));
    if (trainer.checkpoint_asked || Chance(40)) {
      const absl::Status status = CommitCheckpoint(agent.session, key, trainer.step);
      Note("checkpoint " + std::to_string(trainer.step) + " of " + key.job_id + ": " + std::string(status.message()));
      NoteWrite(status, key);
      if (status.ok() && trainer.checkpoint_asked) trainer = Ended(trainer, ExitReason::kCheckpointed);
    }
    if (!trainer.ended && trainer.step > 40) trainer.finalizing = true;
  }

  // A write that was accepted is under the newest epoch that was ever given out for the job.
  void NoteWrite(const absl::Status& status, const AttemptKey& key) {
    if (status.ok()) {
      EXPECT_EQ(key.lease_epoch, epochs_[key.job_id]) << key.job_id;
    }
  }

  // Some attempt of the past writes with the newest session of its worker.
  void StaleWrite() {
    for (const Agent& agent : agents_) {
      if (agent.session.empty()) continue;
      const std::string id = AnyJob();
      const absl::StatusOr<Job> job = store.GetJob(id);
      if (!job.ok() || job->lease_epoch < 2) continue;
      const AttemptKey key{id, static_cast<int>(Draw(static_cast<uint64_t>(job->attempts))) + 1,
                           1 + static_cast<int64_t>(Draw(static_cast<uint64_t>(job->lease_epoch - 1)))};
      EXPECT_FALSE(CommitCheckpoint(agent.session, key, 99).ok());
      EXPECT_FALSE(CommitArtifact(agent.session, key).ok());
    }
  }

  void CheckInvariants() {
    // Memory is never promised twice: holds stay within each worker, whatever has been lost.
    for (const auto& [id, record] : core->workers()) {
      int64_t host_bytes = 0;
      int threads = 0;
      for (const auto& [key, hold] : record.holds) {
        host_bytes += hold.host_bytes;
        threads += hold.cpu_threads;
        EXPECT_TRUE(hold.fenced || core->jobs().contains(hold.key.job_id)) << hold.key.job_id;
      }
      EXPECT_LE(host_bytes, record.worker->host_bytes_total) << id;
      EXPECT_LE(threads, record.worker->cpu_threads_total) << id;
    }
    std::map<std::string, int> current;
    for (const auto& [id, record] : core->workers()) {
      for (const auto& [key, hold] : record.holds) {
        if (!hold.fenced) ++current[hold.key.job_id];
      }
    }
    for (const std::string& id : ids_) {
      const absl::StatusOr<Job> job = store.GetJob(id);
      ASSERT_TRUE(job.ok()) << "an acknowledged job is lost: " << id;
      EXPECT_LE(current[id], 1) << id << " has two live leases";
      if (HasOpenAttempt(*job)) {
        EXPECT_EQ(current[id], 1) << id << " " << Name(job->state);
      }
      EXPECT_GE(job->lease_epoch, epochs_[id]) << id;
      epochs_[id] = job->lease_epoch;
      // Memory says what the store says.
      const auto live = core->jobs().find(id);
      if (live != core->jobs().end()) {
        EXPECT_EQ(live->second.job.state, job->state) << id;
        EXPECT_EQ(live->second.job.sequence, job->sequence) << id;
        EXPECT_EQ(live->second.job.lease_epoch, job->lease_epoch) << id;
      } else {
        EXPECT_TRUE(IsTerminal(job->state)) << id;
      }
      CheckEvents(*job);
      const bool leased = IsActive(job->state) && job->state != JobState::kValidating;
      EXPECT_EQ(leased || job->state == JobState::kValidating, IsActive(job->state));
      EXPECT_TRUE(!leased || HasOpenAttempt(*job)) << id << " " << Name(job->state);
      EXPECT_TRUE(IsActive(job->state) || !HasOpenAttempt(*job)) << id << " " << Name(job->state);
    }
    // No two trainers of a job within their leases, by the clock that they watch themselves.
    std::map<std::string, int> training;
    for (const Agent& agent : agents_) {
      for (const auto& [key, trainer] : agent.trainers) {
        const bool live = !trainer.ended && clock.BootNanos() < trainer.lease_until_boot_nanos;
        if (live && trainer.start.kind == AttemptKind::kTrain) ++training[key.first];
      }
    }
    for (const auto& [id, count] : training) EXPECT_LE(count, 1) << id << " trains twice";
  }

  void CheckEvents(const Job& job) {
    const std::vector<JobEvent> events = *store.ListEvents(job.id, 0, 10'000);
    ASSERT_EQ(static_cast<int64_t>(events.size()), job.sequence) << job.id;
    JobState state = JobState::kValidating;
    for (size_t i = 0; i < events.size(); ++i) {
      ASSERT_EQ(events[i].sequence, static_cast<int64_t>(i) + 1);
      if (events[i].type != EventType::kState) continue;
      ASSERT_EQ(events[i].from_state, state) << job.id << " event " << i + 1;
      state = events[i].state;
      EXPECT_TRUE(!IsTerminal(state) || i + 1 == events.size()) << job.id << ": something follows its terminal event";
    }
    EXPECT_EQ(state, job.state) << job.id;
  }

  // Peace: everything is up and nothing fails. Every job comes to its end, and every worker's memory back.
  void Finish() {
    Note("-- peace --");
    store.FailCommits(0);
    clock.AdvanceMillis(2'000);
    for (Agent& agent : agents_) {
      agent.up = true;
      Do(core->SetDraining(agent.worker.id, false)).status().IgnoreError();
    }
    for (const std::string& id : ids_) Do(core->Resume(id)).status().IgnoreError();
    for (int round = 0; round < 600 && !::testing::Test::HasFailure(); ++round) {
      bool all_done = true;
      for (const std::string& id : ids_) all_done = all_done && IsTerminal(State(id));
      for (Agent& agent : agents_) all_done = all_done && agent.trainers.empty();
      if (all_done) break;
      clock.AdvanceMillis(1'000);
      Settle().IgnoreError();
      for (Agent& agent : agents_) {
        SyncAgent(agent);
        for (auto& [key, trainer] : agent.trainers) {
          if (!trainer.ended && trainer.start.kind == AttemptKind::kTrain && trainer.step < 41) trainer.step = 41;
        }
      }
      CheckInvariants();  // also learns the epochs that the workers write under
      for (int i = 0; i < 6; ++i) Work();
    }
    for (const std::string& id : ids_) {
      EXPECT_TRUE(IsTerminal(State(id))) << id << " is " << Name(State(id)) << ": " << Get(id).reason_detail;
      if (cancelled_.contains(id)) {
        EXPECT_NE(State(id), JobState::kQueued);
      }
    }
    for (int i = 0; i < 5; ++i) {
      for (Agent& agent : agents_) SyncAgent(agent);
    }
    for (const auto& [id, record] : core->workers()) {
      for (const auto& [key, hold] : record.holds) ADD_FAILURE() << id << " still holds " << key.first;
    }
    EXPECT_EQ(core->Stats().internal_errors_total, 0u) << core->Stats().last_internal_error;
  }

  const uint64_t seed_;
  uint64_t draws_ = 0;
  int event_ = 0;
  std::vector<Agent> agents_;
  std::vector<std::string> ids_;
  std::set<std::string> acknowledged_;
  std::set<std::string> cancelled_;
  std::map<std::string, int64_t> epochs_;
  std::deque<std::string> trace_;
  int preemptions_ = 0;
};

TEST(SimulationTest, ManySeeds) {
  if (kOnlySeed >= 0) {
    Simulation(static_cast<uint64_t>(kOnlySeed)).Run();
    return;
  }
  int preemptions = 0;
  for (uint64_t seed = 1; seed <= kSeeds && !HasFailure(); ++seed) {
    Simulation simulation(seed);
    simulation.Run();
    preemptions += simulation.preemptions();
  }
  EXPECT_GT(preemptions, 0) << "else it is not tested";
}

}  // namespace
}  // namespace longhaul::server
