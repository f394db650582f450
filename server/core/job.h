// The scheduler's domain: jobs, attempts, checkpoints, workers, as values. No proto, no SQL, no gRPC.
// Enumerators carry the numbers of proto/longhaul/v1/job.proto; server/rpc/convert.cc asserts that.
// The job's spec, progress and reports are opaque serialised protos here: the core decides on the fields it names.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/device_facts.h"
#include "model/model_shape.h"
#include "model/train_shape.h"

namespace longhaul::server {

enum class JobState {
  kValidating = 1,
  kQueued = 2,
  kStarting = 3,
  kRunning = 4,
  kPausing = 5,
  kPaused = 6,
  kRecovering = 7,
  kFinalizing = 8,
  kCancelling = 9,
  kSucceeded = 10,
  kFailed = 11,
  kCancelled = 12,
};
inline constexpr int kJobStates = 12;

enum class Reason {
  kNone = 0,
  kWaitingForValidation = 1,
  kWaitingForVram = 2,
  kWaitingForHostRam = 3,
  kWaitingForDisk = 4,
  kWaitingForQuota = 5,
  kBehindHigherPriority = 6,
  kExceedsEveryDevice = 7,
  kBackoff = 8,
  kNoWorker = 9,
  kModelNotOnAnyWorker = 10,
  kPausedByUser = 11,
  kWaitingForCpuThreads = 12,
  kWaitingForAttempts = 13,
  kInvalidDataset = 32,
  kInvalidModel = 33,
  kDeviceOom = 34,
  kHostOom = 35,
  kNonFiniteLoss = 36,
  kWorkerLost = 37,
  kRetryLimitExceeded = 38,
  kDeadlineExceeded = 39,
  kDiskFull = 40,
  kInternal = 41,
  kTrainerCrashed = 42,
  kResumeNotIdentical = 43,
  kPlanMismatch = 44,
  kDeviceFault = 45,
  kInvalidCheckpoint = 46,
  kInvalidField = 47,
};

enum class PauseCause { kNone = 0, kUser = 1, kPreempt = 2, kDrain = 3 };
enum class AttemptKind { kNone = 0, kValidate = 1, kTrain = 2 };
enum class AttemptOutcome { kNone = 0, kSucceeded = 1, kFailed = 2, kStopped = 3, kLost = 4 };
enum class PriorityClass { kLow = 1, kNormal = 2, kHigh = 3 };
enum class DeviceShare { kWhole = 1, kFit = 2, kBytes = 3 };
// Where on its range the memory plan of an attempt was taken (ENGINE.md section 1).
enum class PlanPoint { kNone = 0, kMinimum = 1, kBalanced = 2, kWhole = 3 };

const char* Name(JobState state);  // "QUEUED"
const char* Name(Reason reason);   // "WAITING_FOR_VRAM"
const char* Name(AttemptOutcome outcome);
const char* Name(PlanPoint point);
bool IsTerminal(JobState state);
// Holds a lease on a worker: STARTING, RUNNING, PAUSING, FINALIZING, CANCELLING, and VALIDATING once placed.
bool IsActive(JobState state);

struct BlobRef {
  std::string sha256;
  int64_t size_bytes = 0;
};

struct NamedBlob {
  std::string path;
  BlobRef blob;
};

struct Failure {
  Reason reason = Reason::kNone;
  std::string message;
  bool user_can_fix = false;
  std::string log_tail;
};

struct Attempt {
  int number = 0;
  AttemptKind kind = AttemptKind::kNone;
  std::string worker_id;
  std::string device_id;
  int64_t lease_epoch = 0;
  int64_t start_wall_micros = 0;
  int64_t end_wall_micros = 0;  // 0 = not ended
  AttemptOutcome outcome = AttemptOutcome::kNone;
  Reason reason = Reason::kNone;
  std::string message;
  int64_t resumed_from_step = 0;
  int64_t device_bytes_planned = 0;
  int64_t host_bytes_planned = 0;
  int64_t disk_bytes_planned = 0;
  int cpu_threads_planned = 0;
  int64_t device_bytes_peak = 0;
  int64_t host_bytes_peak = 0;
  std::string device_class;                 // kTrain
  PlanPoint plan_point = PlanPoint::kNone;  // kTrain
  int64_t last_step = 0;                    // of its progress, as far as Job::progress tells
};

struct Checkpoint {
  int64_t step = 0;
  int attempt = 0;
  bool final = false;
  std::optional<double> eval_loss;
  std::string plan_signature;
  std::vector<NamedBlob> files;
  int64_t commit_wall_micros = 0;
  std::string made_with;  // plan_signature for people
};

// What the job takes on one device class at the point of the plan that its device_share asks for.
struct Demand {
  bool fits = false;
  std::string why;  // where it does not fit: bytes needed and there, by part
  int64_t longest_sequence_length = 0;
  int64_t device_bytes = 0;
  int64_t host_bytes = 0;
  int64_t disk_bytes = 0;
  int cpu_threads = 0;
  double step_seconds = 0;
  double total_seconds = 0;
};

struct Job {
  // Set at Create, then constant.
  std::string id;
  std::string project;
  std::string suffix;
  std::string request_id;
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> metadata;
  std::string spec;           // serialised JobSpec as given
  std::string resolved_spec;  // serialised JobSpec with every default
  std::string model;
  std::string model_digest;
  ModelShape model_shape;
  std::vector<BlobRef> inputs;  // datasets: kept alive while the job is
  PriorityClass priority = PriorityClass::kNormal;
  DeviceShare device_share = DeviceShare::kWhole;
  int64_t device_share_bytes = 0;
  int retry_limit = 3;
  int64_t backoff_seconds = 10;
  int64_t create_wall_micros = 0;
  int64_t deadline_wall_micros = 0;  // 0 = none
  bool allow_nonidentical_resume = false;
  bool compute_of_device = false;  // what it computes in is left to the device (PlanRequest)
  uint64_t create_number = 0;      // total order of creation

  // Changes.
  TrainShape train_shape;   // from the spec; after validation from the data too
  int64_t total_steps = 0;  // known after validation
  JobState state = JobState::kValidating;
  Reason reason = Reason::kNone;
  std::string reason_detail;
  PauseCause pause_cause = PauseCause::kNone;
  Failure failure;
  bool validated = false;
  int64_t lease_epoch = 0;  // of the current or last attempt
  int attempts = 0;         // numbers given out
  int failed_attempts = 0;
  int preemptions = 0;  // for jobs of higher classes
  int64_t not_before_wall_micros = 0;
  int64_t start_wall_micros = 0;
  int64_t end_wall_micros = 0;
  int64_t sequence = 0;                       // of the last event
  Attempt attempt;                            // current or last; number 0 = none yet
  std::optional<Checkpoint> last_checkpoint;  // committed
  std::string progress;                       // serialised TrainingProgress, the last known
  int64_t trained_tokens = 0;                 // the most that any progress told
  std::string data_report;                    // serialised DataReport
  std::string result;                         // serialised TrainingResult
  std::vector<NamedBlob> artifact;
  int64_t artifact_wall_micros = 0;
  // Set by the first committed checkpoint: a resume repeats the run bit for bit only under the same plan, so later
  // attempts keep to this class and point unless allow_nonidentical_resume. "" = free.
  std::string pinned_device_class;
  PlanPoint pinned_point = PlanPoint::kNone;
};

// An attempt that has not ended: the job holds a lease.
inline bool HasOpenAttempt(const Job& job) { return job.attempt.number > 0 && job.attempt.end_wall_micros == 0; }
// The scheduler decides when it goes on.
inline bool Waits(const Job& job) {
  return job.state == JobState::kQueued || (job.state == JobState::kValidating && !HasOpenAttempt(job));
}

enum class EventType { kState = 1, kAttempt = 2, kCheckpoint = 3, kWarning = 4 };

struct JobEvent {
  int64_t sequence = 0;
  int64_t wall_micros = 0;
  EventType type = EventType::kState;
  JobState from_state = JobState::kValidating;
  JobState state = JobState::kValidating;
  Reason reason = Reason::kNone;
  std::string message;
  int attempt = 0;
  int64_t step = 0;
};

struct MetricPoint {
  int attempt = 0;
  int64_t step = 0;
  std::string progress;  // serialised TrainingProgress
  // Of the same TrainingProgress, for the scheduler's own counters; 0 = not told. Not persisted.
  int64_t trained_tokens = 0;
  double step_seconds = 0;
  int64_t wall_micros = 0;  // when the trainer told it: of two tellings of a step the later one counts
};

// ---- Workers ----

struct ModelEntry {
  std::string name;
  std::string digest;
  ModelShape shape;
  std::string tokenizer_digest;
  int64_t size_bytes = 0;
  std::string storage;
  bool has_chat_template = false;
};

struct DeviceEntry {
  std::string id;
  DeviceFacts facts;  // facts.device_class names the class
};

struct Worker {
  std::string id;
  std::string host_name;
  std::string build;
  int plan_version = 0;
  std::vector<DeviceEntry> devices;
  std::vector<ModelEntry> models;
  int64_t host_bytes_total = 0;
  int64_t disk_bytes_total = 0;
  int cpu_threads_total = 0;
  bool draining = false;
  std::string owner;             // the caller that registers it (Caller::name); "" = none yet
  int64_t seen_wall_micros = 0;  // when it was heard of, as far as that was written: sessions opened, leases lost
};

}  // namespace longhaul::server
