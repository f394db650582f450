// Who runs where, as one pure function over a snapshot: Plan(snapshot, now) -> actions. It decides on values only;
// the dispatcher commits and acts. Policy (quotas, dominant share, backfill, preemption) refines Plan behind this
// shape.
//
// Order: priority class, then create_number. First fit, by VRAM of the device, host RAM, disk and CPU threads of its
// worker. A job that does not fit does not hold back a smaller one behind it.
// Point of the plan: a WHOLE job starts at the largest point that fits now; while another job waits
// and the worker has CPU threads left beside it, whole is left out, so that both may run. A job with a committed
// checkpoint keeps to the class and the point of that checkpoint. Validation attempts take no device and no CPU
// threads, host RAM and disk by the size of their dataset (limits::kValidateHostBytes), and go to any worker with the
// model, at most one per CPU thread of the worker.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "server/core/demands.h"
#include "server/core/job.h"

namespace longhaul::server {

struct WaitingJob {
  const Job* job = nullptr;             // state VALIDATING without an open attempt, or QUEUED
  const JobDemands* demands = nullptr;  // shared between jobs of equal shape; kTrain only
};

// A worker and what is free on it now. Attempts that may still be alive, fenced or not, are taken off.
struct WorkerSlot {
  const Worker* worker = nullptr;
  bool reachable = false;     // in session and not overdue
  bool plan_matches = false;  // its plan_version is ours
  int64_t host_bytes_free = 0;
  int64_t disk_bytes_free = 0;
  int cpu_threads_free = 0;
  int validations = 0;
  std::vector<int64_t> device_bytes_free;  // as worker->devices
};

struct Snapshot {
  std::vector<WaitingJob> waiting;  // any order
  std::vector<WorkerSlot> workers;  // in the order in which they are tried: by id
};

struct Action {
  enum class Kind { kStart, kWait } kind = Kind::kWait;
  std::string job_id;
  // kStart
  AttemptKind attempt = AttemptKind::kNone;
  std::string worker_id;
  std::string device_id;     // kTrain
  std::string device_class;  // kTrain
  PlanPoint point = PlanPoint::kNone;
  Demand demand;
  // kWait
  Reason reason = Reason::kNone;
  std::string detail;  // one sentence with the figures
  int position = 0;    // 1 = next; over all waiting jobs, validating ones included
};

// One action per waiting job, in the order of the queue. `now_wall_micros` is compared with not_before only.
std::vector<Action> Plan(const Snapshot& snapshot, int64_t now_wall_micros);

}  // namespace longhaul::server
