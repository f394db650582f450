// The dispatcher's state machine without its thread: commands change memory and write to one store transaction; a batch
// is committed or undone as a whole (API.md section 6). dispatcher.cc runs it on its thread; tests run it directly.
//
//   core.Create(...); core.Sync(...); core.Tick();   // any number, each kept or undone alone
//   absl::Status status = core.CommitBatch();        // not OK: nothing of the batch has happened
//   for (effect : core.TakeEffects()) ...            // only then: publish, wake, answer
//
// Memory is changed in place and an undo log keeps what was there before, so that a command and a batch can be taken
// back. Not thread-safe.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/random.h"
#include "server/core/demands.h"
#include "server/core/explain.h"
#include "server/core/scheduler_table.h"
#include "server/core/store.h"
#include "server/core/usage.h"
#include "server/dispatcher.h"
#include "server/dispatcher_stats.h"

namespace longhaul::server {

inline constexpr int kWorkerProtocolVersion = 1;

// So often, within the time after which a silent worker is lost, the dispatcher shows itself that it hears at all.
inline constexpr int64_t kListensPerLostTime = 8;

// What a worker may still run for us, and what it is told about it. One for every attempt that was placed there until
// its end is reported, or until a new session shows that it is gone. Its memory is counted all that time.
struct Hold {
  AttemptKey key;
  AttemptKind kind = AttemptKind::kNone;
  std::string device_id;
  int64_t device_bytes = 0;
  int64_t host_bytes = 0;
  int64_t disk_bytes = 0;
  int cpu_threads = 0;
  bool fenced = false;     // its epoch is over: the worker is told to stop it at once
  bool offered = false;    // a StartCommand for it may have reached the worker
  bool confirmed = false;  // the worker has reported it
  bool given = true;       // false: its worker has named it, and the store knows of no such attempt there
  int unlisted = 0;        // Syncs in a row that have not named it since
  std::optional<StopMode> stop;
  int64_t start_sent_in = 0;  // sync_number of the last answer that carried it; 0 = none in this session
  int64_t stop_sent_in = 0;
  std::shared_ptr<const std::string> memory_plan_json;  // kTrain, while it may have to be sent
  AttemptPhase phase = AttemptPhase::kStarting;
  int64_t host_bytes_peak = 0;
  int64_t device_bytes_peak = 0;
  int64_t last_step = 0;              // of its progress
  int64_t last_step_wall_micros = 0;  // when it was last told, by the trainer's clock
  double step_seconds = 0;            // the last one measured; 0 = none
  int64_t checkpoint_step = 0;
  int64_t checkpoint_boot_nanos = 0;
  int64_t heard_boot_nanos = -1;  // when it was given, or last named alive; -1 = not in this process
  // Told already: reports repeat them. None = of before this process, and not read yet.
  std::optional<std::set<std::string>> warnings = std::set<std::string>();
};

// Measured peak over planned bytes, minus 1; none where nothing was measured, or nothing planned.
std::optional<double> ErrorRatio(int64_t bytes_peak, int64_t bytes_planned);

// How often a device was at fault of late.
struct DeviceFaults {
  // When, and whose attempt it was; within limits::kDeviceFaultWindowMs, at most limits::kDeviceFaultsOfAJob of a job.
  std::vector<std::pair<int64_t, std::string>> counted;
  int64_t rest_until_boot_nanos = 0;  // given to nobody until then; 0 = it does not rest
};

struct WorkerRecord {
  std::shared_ptr<const Worker> worker;  // the inventory; shared, because Sync copies records into the undo log
  bool online = false;
  bool leaving = false;           // shuts down by its own word
  bool leaving_answered = false;  // an answer has told it that we know
  std::string session_id;
  std::string opening;      // of the last session; in memory only, for no call outlives the process it was sent to
  int64_t sync_number = 0;  // highest seen
  int64_t last_sync_boot_nanos = 0;  // plus the time since in which nobody could be heard
  int64_t last_sync_wall_micros = 0;
  uint64_t registered = 0;                            // order of OpenSession
  int64_t host_bytes_available = 0;                   // as it last said; 0 = it did not
  int64_t disk_bytes_available = 0;                   // the same
  std::map<std::pair<std::string, int>, Hold> holds;  // by job, attempt
  std::map<std::string, DeviceFaults> faults;         // by device id
  std::vector<AttemptKey> acknowledged;               // for the next answer
  // Let go of lately, and the highest number then: Syncs that were long on their way may still name them.
  std::map<std::pair<std::string, int>, int64_t> gone;
};

struct JobRecord {
  Job job;
  std::vector<std::pair<int64_t, std::optional<double>>> checkpoints;  // step, eval_loss; by step
  std::vector<MetricPoint> pending_metrics;
  int64_t pending_since_boot_nanos = 0;
  std::shared_ptr<const JobDemands> demands;
  uint64_t demands_fleet = 0;  // the fleet they are of
  int64_t state_since_boot_nanos = 0;
};

struct EventEffect {
  Job job;
  JobEvent event;
};
struct ProgressEffect {
  std::string job_id;
  MetricPoint point;
};
struct DeletedEffect {
  std::string job_id;
};
struct LogCompleteEffect {
  std::string job_id;
  int attempt = 0;
};
using Effect = std::variant<EventEffect, ProgressEffect, DeletedEffect, LogCompleteEffect>;

// Blobs on disk that the store does not know, in the folder-th of 256 folders: files whose row a crash has lost. Looks
// at every file of the folder, of which there may be tens of thousands: any thread but the dispatcher's.
absl::StatusOr<std::vector<BlobRef>> UnknownBlobs(BlobIndex* blobs, Store* store, int folder);
constexpr int kBlobFolders = 256;

class DispatcherCore {
 public:
  // Owns nothing. `planner` null: MemoryPlanner().
  DispatcherCore(Dispatcher::Options options, Store* store, BlobIndex* blobs, const Clock* clock,
                 const Planner* planner);

  // Reads live jobs and workers. Every lease gets a full worker_lost_ms from now, limits::kStartGraceMs at least. Once,
  // before anything else.
  absl::Status Load();

  // ---- Commands (contracts in dispatcher.h) ----
  absl::StatusOr<Job> Create(CreateInput input);
  absl::StatusOr<Job> Cancel(const std::string& id);
  absl::StatusOr<Job> Pause(const std::string& id);
  absl::StatusOr<Job> Resume(const std::string& id);
  absl::Status Delete(const std::string& id);
  absl::Status SetDraining(const std::string& worker_id, bool draining);
  absl::StatusOr<SessionReply> OpenSession(SessionInput input);
  absl::StatusOr<std::string> Sync(
      const SyncInput& input);  // the worker's id; ask Urgent and MakeReply after the commit
  absl::Status CommitCheckpoint(const std::string& session_id, const AttemptKey& key, Checkpoint checkpoint);
  absl::Status CommitArtifact(const std::string& session_id, const AttemptKey& key, std::vector<NamedBlob> files,
                              std::string result);
  absl::Status RecordBlobs(const std::vector<BlobRef>& blobs, const std::string& project = "");
  absl::Status AddAudit(const AuditRecord& record);
  // `unknown` is what UnknownBlobs has found, at most limits::kMaxBlobsCollectedPerCommit of it.
  absl::StatusOr<int> CollectBlobs(const std::vector<BlobRef>& unknown = {});
  absl::Status ForgetDeletedJobs(const std::vector<std::string>& ids);
  absl::Status CheckFence(const std::string& session_id, const AttemptKey& key);
  // What the clock asks for: lost workers, recoveries, deadlines, metrics, expired keys, and a scheduling pass when
  // anything has changed.
  void Tick();

  // For so long until now no mail was applied, because the process stood still or a turn took that long: it is taken
  // off every worker's silence, and whoever has not been heard of since gets limits::kStartGraceMs. Before Tick.
  void NoteDeaf(int64_t nanos);
  // No two Ticks are further apart while there are workers, unless we are deaf.
  int64_t listen_nanos() const { return options_.worker_lost_ms * 1'000'000 / kListensPerLostTime; }

  // ---- The batch ----
  // Commits what commands wrote (nothing written: no transaction). On failure memory is as before the batch and every
  // command of it is to be answered with the returned UNAVAILABLE.
  absl::Status CommitBatch();
  std::vector<Effect> TakeEffects() { return std::exchange(committed_effects_, {}); }

  // ---- After the commit ----
  // Workers of whom Urgent or SessionOpen may say something else than when this was last asked.
  std::set<std::string> TakeStirred() { return std::exchange(stirred_workers_, {}); }
  // A command that this session's answers have not carried yet, or an end to acknowledge.
  bool Urgent(const std::string& worker_id) const;
  // Everything that the worker has to know now; remembers that `sync_number` carried it.
  SyncReply MakeReply(const std::string& worker_id, int64_t sync_number);
  // The leases alone, for a Sync that a newer one has overtaken.
  SyncReply MakeLeases(const std::string& worker_id) const;
  bool SessionOpen(const std::string& session_id) const { return sessions_.contains(session_id); }
  int64_t hold_ms() const;
  // When Tick has something to do next, by the boot clock; the maximum where never.
  int64_t NextTimerBootNanos() const;

  std::vector<WorkerView> Workers(const std::string& only = "") const;
  FleetView Fleet() const;
  DispatcherStats Stats() const;
  // Why and until when jobs wait, by a pass that starts nothing: Tick's own passes do not work that out. Outside of a
  // batch. Stats counts by the last one.
  std::shared_ptr<const WaitTable> TellWaits();
  // By what TellWaits said, now or earlier; empty where that did not know of the job.
  absl::StatusOr<std::optional<Explanation>> ExplainWait(const std::string& id, const WaitTable& told);
  absl::StatusOr<std::optional<Explanation>> ExplainWait(const std::string& id) {
    return ExplainWait(id, *TellWaits());
  }
  absl::StatusOr<StartForecast> ForecastStart(Job job);  // by a pass of its own
  // Changes when Fleet, and when TellWaits, may have.
  std::pair<uint64_t, uint64_t> ViewVersion() const {
    return {next_registration_, stats_.scheduler_cycle_seconds.count + stats_.failed_commits_total};
  }

  // For invariants in tests.
  size_t table_names() const { return table_.names(); }
  const std::map<std::string, JobRecord>& jobs() const { return jobs_; }
  const std::map<std::string, WorkerRecord>& workers() const { return workers_; }

 private:
  // ---- Undo (dispatcher_core.cc) ----
  struct Undo {
    std::map<std::string, std::optional<JobRecord>> jobs;
    std::map<std::string, std::optional<WorkerRecord>> workers;
    std::map<std::string, std::optional<std::string>> sessions;
    std::set<std::string> dirty;  // jobs whose row has to be written
    size_t effects = 0;
    size_t on_commit = 0;
    size_t keys = 0;
  };
  template <class F>
  auto Command(F body) -> decltype(body());
  void BeginCommand();
  void EndCommand(bool keep);
  void Restore(Undo* undo);
  void EndBatch();
  JobRecord& TouchJob(const std::string& id);
  WorkerRecord& TouchWorker(const std::string& id);
  void SetSession(const std::string& session_id, std::optional<std::string> worker_id);
  absl::Status Write(const std::function<absl::Status(StoreTransaction&)>& write);
  void OnCommit(std::function<void()> action) { on_commit_.push_back(std::move(action)); }
  void InternalError(const absl::Status& status);
  std::string MakeId();

  // ---- Jobs (dispatcher_jobs.cc) ----
  absl::StatusOr<Job> FindJob(const std::string& id);  // memory, else the store
  absl::StatusOr<std::optional<Job>> FindByRequest(const CreateInput& input);
  absl::Status AddEvent(JobRecord& record, EventType type, JobState from, Reason reason, const std::string& message,
                        int64_t step);
  // REQUIRES: a legal transition (else CHECK). Writes the event; a terminal state ends everything the job had.
  absl::Status SetState(JobRecord& record, JobState to, Reason reason, const std::string& detail);
  absl::Status FailJob(JobRecord& record, Failure failure);
  absl::Status FlushMetrics(JobRecord& record);
  void DropIfDone(const std::string& id);

  // ---- Attempts (dispatcher_attempts.cc) ----
  Hold* FindHold(const Job& job);  // of the open or last attempt; touches the worker
  void EraseHold(const Hold& hold, const std::string& worker_id);
  absl::Status StartAttempt(const Start& start);
  absl::Status CloseAttempt(JobRecord& record, AttemptOutcome outcome, Reason reason, const std::string& message);
  absl::Status RequestStop(JobRecord& record, StopMode mode);
  absl::Status PreemptAttempt(const Preemption& preemption);
  absl::Status ReleaseAttempt(JobRecord& record, const std::string& message);
  absl::Status StoppedAttempt(JobRecord& record, const std::string& message);
  absl::Status FailAttempt(JobRecord& record, AttemptOutcome outcome, Failure failure);
  absl::Status LoseAttempt(JobRecord& record, const std::string& message, bool counts);
  absl::Status LeaseLost(JobRecord& record, const AttemptReport& report);
  absl::Status LostUncounted(JobRecord& record, const std::string& message);
  void NoteDeviceFault(const Job& job);
  absl::Status FinishRecovery(JobRecord& record);
  absl::Status EndedAttempt(JobRecord& record, const AttemptReport& report);
  absl::Status EndedValidation(JobRecord& record, const AttemptReport& report);

  // ---- What attempts commit (dispatcher_commits.cc) ----
  // Goes back to an earlier checkpoint where the bytes of the last one are gone.
  absl::Status VerifyCheckpoint(JobRecord& record);
  absl::Status PinAsCheckpoint(Job* job);
  absl::StatusOr<std::string> CheckedFence(const std::string& session_id, const AttemptKey& key, bool open_only);
  absl::Status CheckManifest(const std::vector<NamedBlob>& files, const char* field);
  // Whether the blob is there and stays: one that this batch collects goes with its commit.
  absl::StatusOr<bool> BlobStays(const BlobRef& blob) const;
  absl::StatusOr<bool> FilesStay(const std::vector<NamedBlob>& files) const;  // all of them
  absl::Status KeepCheckpoints(JobRecord& record);
  // The begin of the grace of blobs that lose their last checkpoint now.
  int64_t DroppedGraceMicros() const;

  // ---- Workers (dispatcher_session.cc, dispatcher_report.cc) ----
  absl::Status ApplyReport(const std::string& worker_id, const AttemptReport& report);
  absl::Status ApplyLiveReport(JobRecord& record, Hold& hold, const AttemptReport& report);
  static void ThinPending(JobRecord* record);
  absl::Status ApplyProgress(JobRecord& record, Hold& hold, const AttemptReport& report);
  absl::Status ApplyPhase(JobRecord& record, const AttemptReport& report);
  absl::Status ApplyStrangeReport(const std::string& worker_id, const AttemptReport& report);
  absl::Status NoteUnlisted(const std::string& worker_id, const std::vector<AttemptReport>& listed, bool new_session,
                            int64_t sync_number);
  absl::Status GoneFromWorker(const std::string& worker_id, const Hold& hold);
  absl::Status CheckWorker(const SessionInput& input) const;
  absl::StatusOr<std::set<std::string>> WarningsOf(const Job& job) const;
  std::string AwayWorker(const std::string& caller) const;
  void AddStarts(std::vector<Hold*> holds, int64_t sync_number, SyncReply* reply) const;
  absl::StatusOr<std::string> OwnerAfter(const SessionInput& input) const;
  absl::Status CheckOpening(const SessionInput& input) const;

  // ---- Time and placing (dispatcher_schedule.cc) ----
  void RunCommand(const std::function<absl::Status()>& body);
  void TickWorkers();
  void TickRestored();
  void TickRecoveries();
  void TickDeadlines();
  void TickMetrics();
  void TickKeys();
  void ForgetOrphans();
  void ForgetWorkers();
  absl::Status ForgetWorker(const std::string& id);
  absl::Status NoteSeen(WorkerRecord* record);
  void Schedule();
  PlanTime Now() const;
  void RefreshFleet();

  // ---- The scheduler's table (dispatcher_table.cc) ----
  void RefreshTable();
  void RefreshJobs();  // all that deadlines need
  void RefreshJob(const std::string& id);
  void RefreshWorker(const std::string& id);
  void RefreshShares();
  static int64_t HostBytesMissing(const WorkerRecord& record);
  static int64_t DiskBytesMissing(const WorkerRecord& record);
  WorkerSlot SlotOf(const WorkerRecord& record);
  void RefreshRests();
  RunningAttempt RunningOf(const WorkerRecord& record, const Hold& hold);
  double SecondsLeft(JobRecord& record, const Hold& hold);
  absl::Status RestoreUsage();
  const std::shared_ptr<const JobDemands>& DemandsOf(JobRecord& record);
  std::shared_ptr<const JobDemands> DemandsOf(const PlanRequest& request);
  bool Suspect(const WorkerRecord& record) const;

  const Dispatcher::Options options_;
  StoreWriter* const store_;
  BlobIndex* const blobs_;
  const Clock* const clock_;
  const Planner& planner_;

  std::map<std::string, JobRecord> jobs_;  // live, and terminal ones whose attempt's end is not reported yet
  std::map<std::string, WorkerRecord> workers_;
  std::map<std::string, std::string> sessions_;  // open session -> worker
  std::map<std::string, int> project_jobs_;      // live jobs, as of the last commit
  uint64_t next_create_number_ = 1;
  uint64_t next_registration_ = 1;

  std::map<std::string, DeviceFacts> classes_;  // of registered devices; the largest of each class
  uint64_t fleet_ = 1;                          // changes with classes_
  std::map<std::string, std::shared_ptr<const JobDemands>> demands_by_shape_;  // of this fleet

  std::unique_ptr<StoreTransaction> transaction_;
  bool in_command_ = false;
  bool command_written_ = false;
  absl::Status broken_;  // the store failed within this batch: nothing of it can be kept
  Undo command_undo_;
  Undo batch_undo_;
  std::vector<Effect> effects_;
  std::vector<Effect> committed_effects_;
  std::vector<std::function<void()>> on_commit_;
  std::vector<RequestKey> batch_keys_;
  std::set<std::string> batch_deleted_;  // jobs that Delete took in this batch
  std::set<std::string> batch_dropped_;  // SHA-256 of blobs that CollectBlobs dropped in this batch
  IdBurst batch_ids_;                    // what a batch creates is neighbours in the store's indexes: fewer pages

  // What a pass reads, and what of it has changed since.
  SchedulerTable table_;
  UsageLedger usage_;
  struct Mark {
    uint64_t waiting_number = 0;       // in table_; 0 = not
    int64_t deadline_wall_micros = 0;  // in deadlines_; 0 = not
  };
  std::unordered_map<std::string, Mark> marks_;  // by job
  std::set<std::pair<int64_t, std::string>> deadlines_;
  std::set<std::string> changed_jobs_;
  std::set<std::string> changed_workers_;
  uint64_t table_fleet_ = 0;  // the fleet whose demands are in table_
  size_t table_names_ = 0;    // as it was last filled afresh
  std::shared_ptr<const WaitTable> waits_;
  bool schedule_wanted_ = true;
  int64_t look_again_boot_nanos_ = 0;                                   // when a pass may find more without a change
  int64_t rest_over_boot_nanos_ = std::numeric_limits<int64_t>::max();  // the first rest of a device
  int64_t next_key_sweep_boot_nanos_ = 0;
  int64_t deaf_until_boot_nanos_ = 0;  // see NoteDeaf; 0 = never
  int64_t away_until_boot_nanos_ = 0;  // the same, or when this process began, or a commit failed
  int64_t grace_boot_nanos_ = 0;       // until then nobody is lost who was not heard of since we began, or were deaf
  int64_t next_lost_boot_nanos_ = 0;   // no worker is lost before then
  std::set<std::string> stirred_workers_;                                 // see TakeStirred
  int64_t retry_boot_nanos_ = 0;                                          // after a failed commit Tick rests until then
  int64_t recovery_retry_boot_nanos_ = 0;                                 // after a recovery that could not be finished
  std::set<std::string> metric_jobs_;                                     // with pending metrics
  int64_t metrics_due_boot_nanos_ = std::numeric_limits<int64_t>::max();  // when the oldest of those may wait no longer
  std::set<std::string> recovering_;  // RECOVERING by a commit: FinishRecovery is due
  std::set<std::string> restored_;    // their attempts are of the time after the backup that this state was

  DispatcherStats stats_;
};

}  // namespace longhaul::server
