// Who runs where, as one pure function over a snapshot: Plan(snapshot, now) -> whom to start, whom to preempt, and for
// every waiting job why it waits, its place in the queue and when it may start. It decides on values only; the
// dispatcher commits and acts. SchedulerTable (scheduler_table.h) keeps a snapshot in the form that a pass reads, so
// that a change costs what has changed; Plan is a table filled at once. Decide decides the same and tells nothing of
// those who wait, which is most of the work.
//
// Order: priority class, the project's dominant share (usage.h), create_number.
// Start: the fastest device class that the job fits on, there the first device in the order of worker ids. VRAM of the
//   device, host RAM, disk and CPU threads of its worker must all be free: several jobs share a device where all fit. A
//   worker has at most limits::kMaxAttemptsPerWorker, validations and fenced ones included: it names each in every
//   Sync. A class slower than the fastest one by more than limits::kSlowestClassRatio is not used while the fast one is
//   there.
// Point of the plan: a job starts at the largest point that fits now; while another job waits for the same class and
//   the worker has CPU threads left beside it, whole is left out, so that both may run. A job with a committed
//   checkpoint keeps to the class and the point of that checkpoint.
// Backfill: the first limits::kMaxReservations jobs that do not fit get a reservation, the earliest start that the
//   predicted ends of what runs allow. A job behind them starts only where it delays none. limits::kMaxSchedulingDepth
//   shapes of jobs are tried; a shape that did not fit is not tried again for its next job.
// Preemption: for a job with a reservation more than limits::kPreemptMinGainSeconds away, running attempts of lower
//   classes that may be preempted by now, the fewest of the lowest class on one worker.
// After an attempt that failed or was lost its worker is avoided while another one could run the job; after a fault of
//   the device at least the device, while the worker has another one. A device that rests after several faults is given
//   to nobody: it is full until then.
// Validation attempts take no device and no CPU thread, host RAM and disk by the size of their dataset
//   (limits::kValidateHostBytes), and go to any worker with the model, at most one per CPU thread of the worker. They
//   get no reservation and delay none.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/core/demands.h"
#include "server/core/job.h"
#include "server/core/quota.h"

namespace longhaul::server {

inline constexpr int64_t kNeverMicros = std::numeric_limits<int64_t>::max();

// ---- The snapshot ----

// What an attempt takes of its worker.
struct Need {
  int64_t device_bytes = 0;
  int64_t host_bytes = 0;
  int64_t disk_bytes = 0;
  int cpu_threads = 0;
  int attempts = 0;  // 1, or none of an attempt
  bool operator==(const Need&) const = default;
};
// Whether `free` is enough of everything.
inline bool Covers(const Need& free, const Need& need) {
  return need.device_bytes <= free.device_bytes && need.host_bytes <= free.host_bytes &&
         need.disk_bytes <= free.disk_bytes && need.cpu_threads <= free.cpu_threads && need.attempts <= free.attempts;
}
inline Need NeedOf(const Demand& demand) {
  return {demand.device_bytes, demand.host_bytes, demand.disk_bytes, demand.cpu_threads, 1};
}

struct WaitingJob {
  const Job* job = nullptr;  // state VALIDATING without an open attempt, or QUEUED; lives while it is in the snapshot
  std::shared_ptr<const JobDemands> demands;  // shared between jobs of equal shape; null: a validation
};

// An attempt that may still be alive on its worker, fenced or not.
struct RunningAttempt {
  std::string job_id;
  std::string project;  // "" = counts for no project: fenced
  PriorityClass priority = PriorityClass::kNormal;
  AttemptKind kind = AttemptKind::kTrain;
  int device = -1;  // index into the worker's devices; -1 = none
  Need need;
  int64_t end_boot_micros = 0;                     // predicted
  int64_t preemptible_boot_micros = kNeverMicros;  // from when on it may be asked to make room
};

// Of a device that has reported too many faults of late.
struct DeviceRest {
  int device = -1;  // index into the worker's devices
  int faults = 0;
  int64_t until_boot_micros = 0;
};

struct WorkerSlot {
  std::shared_ptr<const Worker> worker;
  bool reachable = false;          // in session and not overdue
  bool leaving = false;            // shuts down by its own word
  bool plan_matches = false;       // its plan_version is ours
  int64_t host_bytes_missing = 0;  // of its total, taken by others at the moment
  int64_t disk_bytes_missing = 0;
  std::vector<RunningAttempt> running;
  std::vector<DeviceRest> rests;
};

struct Snapshot {
  std::vector<WaitingJob> waiting;       // any order
  std::vector<WorkerSlot> workers;       // any order
  std::map<std::string, double> shares;  // of projects; absent = 0
  Quotas quotas;
};

// Backoff is wall time, everything that a pass predicts boot time.
struct PlanTime {
  int64_t wall_micros = 0;
  int64_t boot_micros = 0;
  int64_t ToWall(int64_t at_boot_micros) const { return wall_micros + (at_boot_micros - boot_micros); }
};

// ---- What a pass says ----

struct Start {
  std::string job_id;
  AttemptKind kind = AttemptKind::kNone;
  std::string worker_id;
  std::string device_id;     // kTrain
  std::string device_class;  // kTrain
  PlanPoint point = PlanPoint::kNone;
  Demand demand;
};

struct Preemption {
  std::string job_id;  // makes room
  std::string for_job_id;
};

// Why jobs wait; those of one shape share one.
struct Verdict {
  Reason reason = Reason::kNone;
  // Where something is short: kWaitingForVram, ...HostRam, ...Disk, ...CpuThreads, ...Attempts.
  std::shared_ptr<const Worker> worker;
  int device = -1;
  int64_t needed = 0;
  int64_t free = 0;
  int64_t total = 0;
  int64_t others = 0;             // of the total, taken by what is no attempt; kWaitingForHostRam, ...Disk
  int64_t until_wall_micros = 0;  // kBackoff; kWaitingForVram: the device rests until then
  int faults = 0;                 // why it rests
  std::string text;               // every other reason
};
// One sentence with the figures.
std::string Describe(const Verdict& verdict);

// A start that nothing further down the queue may delay.
struct Reservation {
  uint64_t create_number = 0;
  std::string job_id;
  std::shared_ptr<const Worker> worker;
  int device = -1;
  Need need;
  int64_t start_boot_micros = 0;
  int64_t end_boot_micros = 0;
  std::vector<std::string> after;  // jobs whose attempts have to end first: the last ones, at most kMaxBlockersNamed
};

// A waiting job; its index + 1 is its place in the queue.
struct Wait {
  uint64_t create_number = 0;
  int verdict = 0;                   // index into PlanResult::verdicts
  int reservation = -1;              // index into PlanResult::reservations; -1 = none
  int64_t expected_wall_micros = 0;  // start; 0 = nobody can tell
};

struct PlanResult {
  PlanTime time;
  std::vector<Start> starts;            // in the order of the queue
  std::vector<Preemption> preemptions;  // no attempt twice
  std::vector<Reservation> reservations;
  int waiting = 0;  // jobs that do not start
  // Not of Decide.
  std::vector<Wait> waits;  // in the order of the queue; validating jobs included
  std::vector<Verdict> verdicts;
  // Without a change of the snapshot nothing else can happen before then: a backoff ends, an attempt has run long
  // enough to be preempted, or this pass did not come to the end of what it could start.
  int64_t look_again_boot_micros = kNeverMicros;
};

PlanResult Plan(const Snapshot& snapshot, PlanTime now);
PlanResult Decide(const Snapshot& snapshot, PlanTime now);

}  // namespace longhaul::server
