// Why a job waits, for people: what a scheduling pass said of it, what would let it start, where it could run. Pure.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/core/scheduler.h"
#include "server/core/scheduler_table.h"

namespace longhaul::server {

struct WaitInfo {
  Reason reason = Reason::kNone;
  std::string detail;                // one sentence with the figures
  int position = 0;                  // 1 = next
  int64_t expected_wall_micros = 0;  // start; 0 = nobody can tell
};

// What a pass said, to be asked for single jobs. Thread-safe: nothing changes but the index, which the first question
// makes.
class WaitTable {
 public:
  explicit WaitTable(PlanResult result) : result_(std::move(result)) {}
  std::optional<WaitInfo> Find(uint64_t create_number) const;
  const PlanResult& result() const { return result_; }

 private:
  const PlanResult result_;
  mutable std::once_flag indexed_;
  mutable std::unordered_map<uint64_t, size_t> index_;
};

// A device that has, or might have, a place for the job.
struct ExplainedPlace {
  std::string worker_id;
  std::string device_id;  // "" = a validation needs none
  std::string device_class;
  bool possible = false;             // it could run there, now or later
  std::string why;                   // what keeps it from starting there now; "" = nothing
  int64_t expected_wall_micros = 0;  // by what runs there now, were nobody else waiting; 0 = never, or nobody can tell
};

struct Explanation {
  WaitInfo wait;
  int waiting_jobs = 0;
  std::vector<std::string> unblocks;  // what would let it start, one sentence each
  bool reserved = false;              // its start is kept free of those behind it
  std::string reserved_worker_id;
  std::vector<std::string> after_job_ids;      // whose ends the reserved start waits for
  std::vector<std::string> preempted_job_ids;  // asked to make room for it
  double project_share = 0;
  int project_jobs = 0;  // running
  Quota quota;
  std::vector<ExplainedPlace> places;  // at most limits::kMaxExplainedWorkers
  bool more_places = false;
};

// `job` is in the table, `result` is of the table at `now`. Empty where the job does not wait.
std::optional<Explanation> Explain(SchedulerTable* table, const PlanResult& result, const Job& job, PlanTime now);

// When a job that is not there would start, were it queued now.
struct StartForecast {
  WaitInfo wait;                         // reason kNone: it would start at once
  std::string device_class;              // where it would start; "" = not known
  int64_t expected_end_wall_micros = 0;  // 0 = nobody can tell
};
// REQUIRES: nothing in the table has the job's create_number. The table is as before when it returns.
StartForecast Forecast(SchedulerTable* table, const WaitingJob& waiting, PlanTime now);

}  // namespace longhaul::server
