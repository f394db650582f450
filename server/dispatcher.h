// The one thread that commits and acts (API.md section 6). Handlers call in from any thread; each call is a command in
// the mailbox. The loop drains up to limits::kMaxCommandsPerCommit, applies each as a pure transition written under a
// savepoint, commits once, and only then updates memory, publishes events, wakes parked Syncs and answers, in order. A
// failed commit changes nothing in memory and answers every command of the batch UNAVAILABLE. Acting never waits on a
// network.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/limits.h"
#include "server/core/access.h"
#include "server/core/blob_index.h"
#include "server/core/explain.h"
#include "server/core/job.h"
#include "server/core/quota.h"
#include "server/core/store.h"

namespace longhaul::server {

struct AttemptKey {
  std::string job_id;
  int attempt = 0;
  int64_t lease_epoch = 0;
};

enum class AttemptPhase { kStarting = 1, kRunning = 2, kFinalizing = 3, kHeld = 4, kEnded = 5 };
enum class ExitReason {
  kNone = 0,
  kSucceeded = 1,
  kFailed = 2,
  kCheckpointed = 3,
  kCancelled = 4,
  kLeaseLost = 5,
  kCrashed = 6
};
enum class StopMode { kCheckpoint = 1, kCancel = 2, kFenced = 3 };

// What an agent reports of one attempt. Serialised protos stay opaque.
struct AttemptReport {
  AttemptKey key;
  AttemptPhase phase = AttemptPhase::kStarting;
  std::vector<MetricPoint> progress;
  std::vector<std::string> warnings;
  std::string data_report;  // serialised DataReport, "" = none
  int64_t report_longest_tokens = 0;
  int64_t report_total_steps = 0;
  int64_t report_error_count = 0;
  int64_t report_examples = 0;
  int64_t report_tokens = 0;  // of training and evaluation; kept in the trainer's RAM
  ExitReason exit = ExitReason::kNone;
  Failure exit_failure;
  int64_t host_bytes_peak = 0;
  int64_t device_bytes_peak = 0;
  bool artifact_committed = false;
  bool device_at_fault = false;  // of exit_failure kDeviceFault: the device itself, not what was missing around it
};

struct StartCommand {
  AttemptKey key;
  Job job;  // as committed: spec, shape, train_shape, model digest
  AttemptKind kind = AttemptKind::kNone;
  std::string device_id;
  std::string memory_plan_json;  // kind kTrain
  std::optional<Checkpoint> resume_from;
};

struct StopCommand {
  AttemptKey key;
  StopMode mode = StopMode::kCancel;
};

struct SyncReply {
  std::vector<StartCommand> starts;
  std::vector<StopCommand> stops;
  std::vector<AttemptKey> leases;        // extended by this answer
  std::vector<AttemptKey> acknowledged;  // ended and durably recorded
  int64_t lease_ms = 0;
};

struct SyncInput {
  std::string session_id;
  int64_t sync_number = 0;
  std::vector<AttemptReport> attempts;
  int64_t host_bytes_available = 0;  // 0 = not told; so is the next one
  int64_t disk_bytes_available = 0;
  bool leaving = false;  // the agent shuts down: it hands its attempts back and takes no more
};

struct SessionInput {
  Worker worker;
  int protocol_version = 0;
  std::vector<AttemptReport> attempts;
  // Who opens it (Caller::name). "" = an administrator, who may be any worker and becomes the owner of none.
  std::string caller = {};
  bool may_take_over = false;  // the worker's id is granted to the caller by name: it becomes the owner
  bool leaving = false;        // the agent shuts down: as in SyncInput
  // SessionReply::opening of the worker's last one that the agent knows of, "" = of none; empty: it does not say.
  std::optional<std::string> last_opening = {};
};

struct SessionReply {
  std::string session_id;
  int64_t hold_ms = 0;
  int64_t lease_ms = 0;
  std::vector<AttemptKey> fenced;
  std::string opening;
};

// A job that Create has checked already (spec, blob, model, fit): the dispatcher gives it its id and makes it durable.
struct CreateInput {
  Job job;                  // constant fields set, but for id, create_number, create_wall_micros
  std::string body_sha256;  // of the request without request_id
};

// What happens after a commit. Called on the dispatcher's thread, must not block.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void OnEvent(const Job& job, const JobEvent& event) = 0;
  virtual void OnProgress(const std::string& job_id, const MetricPoint& point) = 0;  // not durable, may repeat
  virtual void OnJobDeleted(const std::string& job_id) = 0;
  virtual void OnLogComplete(const std::string& job_id, int attempt) = 0;
};

struct WorkerView {
  std::shared_ptr<const Worker> worker;  // as registered: the inventory is large, and not copied
  bool online = false;
  int64_t last_sync_wall_micros = 0;  // 0 = not since the scheduler began
  struct Running {
    AttemptKey key;
    std::string project;  // of the job; "" = it is gone already
    int64_t host_bytes = 0;
    int64_t device_bytes = 0;
    int cpu_threads = 0;
  };
  std::vector<Running> attempts;
  struct Rest {
    std::string device_id;
    int faults = 0;
    int64_t until_wall_micros = 0;
  };
  std::vector<Rest> rests;  // devices that are given to nobody, for they had too many faults of late
  int64_t host_bytes_reserved = 0;
  int64_t device_bytes_reserved = 0;
  int cpu_threads_reserved = 0;
  bool suspect = false;
  bool leaving = false;
};

// Facts for Create and Estimate: registered devices by class and models by name, online or not.
struct FleetView {
  struct Class {
    DeviceFacts facts;  // of the largest device of the class
    int workers = 0;
  };
  std::vector<Class> classes;
  std::vector<ModelEntry> models;  // by name; where workers differ, the newest registered
};

// Counters and gauges for /metrics (server/dispatcher_stats.h). A snapshot, any thread.
struct DispatcherStats;
class Planner;  // server/core/demands.h

class Dispatcher {
 public:
  struct Options {
    int64_t lease_ms;
    int64_t worker_lost_ms;
    int64_t sync_hold_ms;
    int64_t preempt_min_run_ms = limits::kPreemptMinRunMs;
    Quotas quotas = {};
    std::function<std::string()> make_id = nullptr;  // bodies of ids, all different; null: base/random.h IdBurst
  };

  // Does not own. Loads live jobs; gives every lease a full worker_lost_ms, limits::kStartGraceMs at least. Start
  // before any other call.
  // `planner` null: the memory plan of model/.
  Dispatcher(Options options, Store* store, BlobIndex* blobs, const Clock* clock, EventSink* sink,
             const Planner* planner = nullptr);
  ~Dispatcher();
  absl::Status Start();
  void Stop();  // answers everything waiting UNAVAILABLE

  // Blocking until committed. Errors carry reasons (base/error.h): JOB_NOT_FOUND, ILLEGAL_TRANSITION,
  // REQUEST_ID_REUSED, ...
  // `audit` not null: its record is completed and committed with what the command did, or with its refusal.
  absl::StatusOr<Job> Create(CreateInput input, Audit* audit = nullptr);
  absl::StatusOr<Job> Cancel(const std::string& id, Audit* audit = nullptr);
  absl::StatusOr<Job> Pause(const std::string& id, Audit* audit = nullptr);
  absl::StatusOr<Job> Resume(const std::string& id, Audit* audit = nullptr);
  absl::Status Delete(const std::string& id, Audit* audit = nullptr);
  absl::Status SetDraining(const std::string& worker_id, bool draining, Audit* audit = nullptr);
  // PERMISSION_DENIED WORKER_OWNED where another caller has registered the worker. ABORTED OPENED_SINCE, with the last
  // one's name as metadata `opening`, where the worker was opened since the opening that the input names.
  absl::StatusOr<SessionReply> OpenSession(SessionInput input, Audit* audit = nullptr);
  // Of an attempt's checkpoints the first is audited, and what is refused: the others are events of the job.
  absl::Status CommitCheckpoint(const std::string& session_id, const AttemptKey& key, Checkpoint checkpoint,
                                Audit* audit = nullptr);
  absl::Status CommitArtifact(const std::string& session_id, const AttemptKey& key, std::vector<NamedBlob> files,
                              std::string result, Audit* audit = nullptr);
  // Records a verified blob (or renews its grace); group-committed like everything else. `project` not "": it has
  // shown that it has the bytes.
  absl::Status RecordBlobs(std::vector<BlobRef> blobs, const std::string& project = "", Audit* audit = nullptr);
  // For a call that was refused before it became a command.
  absl::Status RecordAudit(const AuditRecord& record);
  // Garbage collection: forgets unreferenced blobs past their grace time and deletes their files, and finds files
  // without a row in one of 256 folders, the next one each call, which is listed on the calling thread. Call it every
  // minute. It goes on until none is left or `stop` is asked for, limits::kMaxBlobsCollectedPerCommit at a time,
  // others' commands between. Returns the blobs removed.
  absl::StatusOr<int> CollectBlobs(const std::stop_token& stop = {});
  // The files of these deleted jobs are gone (Store::ListDeletedJobs).
  absl::Status ForgetDeletedJobs(std::vector<std::string> ids);
  // ABORTED LEASE_FENCED unless the key is current for the session: what a log write checks. An attempt that has ended
  // under its own epoch still may write its log.
  absl::Status CheckFence(const std::string& session_id, const AttemptKey& key);

  // Parked: `done` runs on the dispatcher's thread, at once when there is a command, a newer Sync of the session or an
  // ended attempt to acknowledge, else after sync_hold_ms. Must not block.
  void Sync(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done);

  // Looks at the clock now. A clock that moves by hand (tests) does not wake the thread by itself.
  void Wake();

  // Copies of committed memory. Any thread but the dispatcher's own (an EventSink's methods must not call them).
  // By id; of `only` alone where it is not "".
  std::vector<WorkerView> Workers(const std::string& only = "") const;
  std::shared_ptr<const FleetView> Fleet() const;  // never null
  DispatcherStats Stats() const;

  // Why and until when a job waits; empty where `job`, as the store has it, does not, or where nobody was told since it
  // came (limits::kTellingRest). Any thread but the dispatcher's own, which it asks where there was a pass since it was
  // last asked, and waits for at most limits::kMaxTellingWaitMs.
  std::optional<WaitInfo> WaitOf(const Job& job) const;
  std::vector<std::optional<WaitInfo>> WaitsOf(const std::vector<Job>& jobs) const;  // one asking for all
  // The same in full, on the dispatcher's thread, by the same telling. Of a job that came since it waits for the next
  // one. Empty where the job does not wait, and where there is no next one within limits::kMaxForecastWaitMs.
  absl::StatusOr<std::optional<Explanation>> Explain(const std::string& id);
  // When `job`, which Create has checked but not made, would start, were it queued now. A telling of its own: it waits
  // for those that were asked before, and for their rest. UNAVAILABLE TOO_MANY_FORECASTS where too many wait already,
  // and after limits::kMaxForecastWaitMs. `cancelled` is asked on the dispatcher's thread, must not block, and says
  // that nobody wants the answer any more, which then is CANCELLED.
  absl::StatusOr<StartForecast> Forecast(Job job, const std::function<bool()>& cancelled);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::server
