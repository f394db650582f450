// One attempt, from the command that starts it to the acknowledgement of its end: fetches its inputs, spawns the
// trainer, tails its events, uploads what it writes, ships its log, stops it, and finds out how it ended.
//
//   fetching -> training -> settling (process gone; uploads and log go on) -> ended (reported until acknowledged) ->
//   gone
//
// Everything that must outlive the agent is in the attempt directory, so that Recover finds any of these stages again.
// An end is reported only once what the trainer left is in the store: a SUCCEEDED attempt has its artifact committed, a
// CHECKPOINTED one its checkpoint. And the artifact, whose commit ends the job, goes only once all progress and
// warnings before it are with the scheduler.
//
// All on the core thread. Transfers run on task threads and come back through the mailbox; nothing here waits.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/process.h"
#include "longhaul/v1/worker_service.pb.h"
#include "worker/agent/backoff.h"
#include "worker/agent/local_model.h"
#include "worker/agent/mailbox.h"
#include "worker/agent/scheduler_client.h"
#include "worker/attempt/attempt_dir.h"
#include "worker/attempt/event_log.h"
#include "worker/attempt/stderr_log.h"

namespace longhaul::agent {

// What an attempt needs of its surroundings. All outlive it.
struct AttemptEnv {
  const Clock* clock = nullptr;
  SchedulerClient* client = nullptr;
  Mailbox* mailbox = nullptr;
  // Each apart: a dataset that comes in slowly holds up no commit, and a large upload no log.
  TaskRunner* fetches = nullptr;
  TaskRunner* uploads = nullptr;
  TaskRunner* logs = nullptr;
  std::string trainer_path;  // longhaul-train
  std::string cache_dir;
  // The model of this digest; NOT_FOUND where this worker lacks it.
  std::function<absl::StatusOr<LocalModel>(const std::string& digest)> model;
  // So many processors that no other trainer is bound to; empty where there are fewer.
  std::function<std::vector<int>(int threads)> free_processors;
  std::function<int64_t()> oom_kills;       // of this host's kernel among our trainers, so far
  std::function<std::string()> session_id;  // "" while there is none: commits wait
  std::function<void()> on_news;            // a Sync should leave soon
  std::function<void(const std::string&)> log;
};

// An event of events.log, or what is kept of one, with the offset at which it begins; -1 where the log has none.
template <typename T>
struct Logged {
  T value;
  int64_t begin = -1;
};

// How far a Sync told of an attempt; handed back once that Sync is answered.
struct ReportMark {
  int64_t progress = 0;
  int64_t warnings = 0;
  bool whole = true;  // nothing was left out for want of room
};

class AttemptRunner : public std::enable_shared_from_this<AttemptRunner> {
 public:
  // A new attempt. An error here is reported as its end.
  static std::shared_ptr<AttemptRunner> Start(AttemptEnv* env, const std::string& dir, const v1::StartAttempt& start,
                                              int64_t lease_deadline_nanos);
  // One that an earlier agent left. NOT_FOUND where it has no spec: no trainer was started; another error where there
  // is one that cannot be read.
  static absl::StatusOr<std::shared_ptr<AttemptRunner>> Recover(AttemptEnv* env, const std::string& dir);
  // An attempt that ends before it began, with nothing on disk.
  static std::shared_ptr<AttemptRunner> Refuse(AttemptEnv* env, const std::string& dir, const v1::AttemptKey& key,
                                               v1::TrainerExitReason reason, const std::string& message);

  // Looks at the events, the process, the transfers and the clock.
  void Poll();
  int64_t NextWakeNanos() const;

  void Stop(v1::StopMode mode);
  // The lease lasts until then, if that is later than before.
  void ExtendLease(int64_t deadline_boot_nanos);

  // What is news, as far as `room_bytes` goes, from which its size is taken. Its key and phase are told in any case;
  // its end only once everything before it fits, too.
  v1::AttemptStatus Status(int64_t* room_bytes, ReportMark* mark) const;
  void Acknowledge(const ReportMark& mark);  // progress and warnings up to there are with the scheduler
  void AcknowledgeEnd();                     // the end is: the folder goes

  // Those that its live trainer alone computes on, as many as its plan has threads; empty where it has none of its own.
  std::vector<int> BoundProcessors() const;

  const v1::AttemptKey& key() const { return key_; }
  bool ended() const { return stage_ == Stage::kEnded; }
  bool gone() const { return stage_ == Stage::kGone; }
  // Points of progress in memory: those that are to be told next, however many the log has.
  size_t points_waiting() const { return progress_.size(); }
  const attempt::AttemptDir& dir() const { return dir_; }

 private:
  enum class Stage { kFetching, kTraining, kSettling, kEnded, kGone };

  AttemptRunner(AttemptEnv* env, const std::string& dir, v1::AttemptKey key);

  // attempt_runner.cc
  v1::AttemptPhase LivePhase() const;
  void StartFetch();
  void OnFetched(const absl::Status& status);
  absl::Status SpawnTrainer();
  int PlannedThreads() const;
  int64_t LongestCheckpointMs() const;
  void Fail(v1::Reason reason, const std::string& message, bool user_can_fix);
  absl::Status TakeSpec(const v1::AttemptSpec& spec, int64_t lease_deadline_nanos);
  absl::Status WriteLease(int64_t deadline_boot_nanos);
  void Recovered();
  void BeGone();
  void RetryAt(int64_t* at_nanos);

  // attempt_process.cc
  bool ReadEvents();
  void Apply(const v1::TrainerEvent& event, int64_t begin);
  void ApplyProgress(v1::TrainingProgress point, int64_t begin);
  void ReadPointsAgain();
  void OnPointsUnreadable(const absl::Status& why);
  int64_t FirstUntold() const;
  void WatchProcess();
  void SeekLockHolder();
  void OnProcessGone(const ExitState& state);
  bool AwaitsEvents(const ExitState& state);
  v1::TrainerExit ExitWithoutEvent(const ExitState& state) const;
  void EnforceDeadlines();
  void Signal(int signal);

  // attempt_uploads.cc
  void StartUploads();
  void StartCheckpointUpload();
  bool ArtifactMayGo() const;
  void StartArtifactUpload();
  void OnCheckpointUploaded(const v1::CheckpointWritten& written, const absl::Status& status);
  void OnArtifactUploaded(const absl::Status& status);
  bool NoteTransferFailure(const absl::Status& status);
  void DropUploads();
  void PruneCheckpoints();
  void DropOvertaken();
  void ShipLog();
  std::string NextLogBytes();
  void OnLogShipped(int64_t bytes, bool complete, const absl::StatusOr<int64_t>& committed);
  void WriteNote();
  void OnLogRefused(const absl::Status& refusal);
  void SettleIfDone();
  // Runs `work` on a task thread and `then` with its result here, unless we are gone by then.
  template <typename Result>
  void RunTask(TaskRunner* runner, std::function<Result()> work,
               std::function<void(AttemptRunner*, const Result&)> then);

  AttemptEnv* env_;
  attempt::AttemptDir dir_;
  v1::AttemptKey key_;
  v1::AttemptSpec spec_;
  Stage stage_ = Stage::kFetching;
  Backoff backoff_;
  CancelFlag cancelled_ = MakeCancelFlag();

  // The lease, as the trainer's file says it.
  int64_t lease_deadline_nanos_ = 0;
  int64_t lease_written_nanos_ = 0;
  bool lease_names_boot_ = true;

  // The process.
  std::optional<ProcessId> process_;
  int64_t oom_kills_before_ = 0;
  v1::StopMode stop_ = v1::STOP_MODE_UNSPECIFIED;
  int64_t kill_at_nanos_ = 0;           // 0 = never
  int64_t checkpoint_until_nanos_ = 0;  // so long does the kill wait for a checkpoint that is being written
  bool killed_ = false;                 // by us
  int64_t next_look_nanos_ = 0;
  int64_t seek_holder_until_nanos_ = 0;  // not 0: process_ is gone, and the one that holds the folder is looked for
  int64_t host_bytes_peak_ = 0;
  int64_t device_bytes_peak_ = 0;

  // What its events said.
  attempt::EventLogReader events_;
  absl::Status events_error_;            // of the last look; OK = they can be read
  std::optional<ExitState> gone_;        // the process is, and its last events cannot be read
  int64_t events_wait_until_nanos_ = 0;  // for them
  bool started_ = false;
  bool held_ = false;
  bool finalizing_ = false;
  double step_seconds_ = 0;
  std::optional<v1::TrainerExit> exit_;
  std::optional<v1::DataReport> data_report_;
  std::optional<v1::ArtifactWritten> artifact_;
  bool adapter_refused_ = false;  // for good; exit_ says why

  // Not yet acknowledged; the counters are of the first of each.
  std::deque<Logged<v1::TrainingProgress>> progress_;
  int64_t progress_begin_ = 0;
  int64_t points_from_ = -1;  // not -1: from there on no point is in memory; they are read again once there is room
  int64_t points_wait_until_nanos_ = 0;  // not 0: they could not be read again, and are given up then
  int64_t whole_from_ = -1;  // where the first event is that is told in every Sync, until the end; -1: none yet
  std::vector<Logged<std::string>> warnings_;
  int64_t warnings_begin_ = 0;

  // Transfers. At most one of each kind runs.
  bool fetching_ = false;
  bool uploading_ = false;
  int64_t fetch_at_nanos_ = 0;
  int64_t upload_at_nanos_ = 0;
  std::vector<Logged<v1::CheckpointWritten>> checkpoints_;  // not yet committed, oldest first
  int64_t uploading_step_ = 0;                              // of the checkpoint being uploaded; 0 = none
  attempt::AgentNote note_;
  bool shipping_log_ = false;
  bool log_complete_ = false;
  int64_t log_at_nanos_ = 0;
  int64_t log_refused_nanos_ = 0;  // since when the log has been refused while only it was left; 0: it is taken
  bool log_offset_known_ = true;
  int64_t log_offset_ = 0;  // of the scheduler's log: where it goes on
  bool has_folder_ = true;
};

}  // namespace longhaul::agent
