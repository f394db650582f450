#include "server/core/scheduler.h"

#include "base/format.h"
#include "server/core/scheduler_pass.h"
#include "server/core/scheduler_table.h"

namespace longhaul::server {

namespace {

// Jobs are large and lie anywhere in memory: most of what 10,000 of them cost is to wait for their lines. What a table
// reads of one is asked for while it takes the ones before.
constexpr size_t kJobsAhead = 8;

void Fetch(const Job& job) {
  const void* const read[] = {&job.project,         &job.model_digest,           &job.create_number,
                              &job.total_steps,     &job.not_before_wall_micros, &job.attempt,
                              &job.last_checkpoint, &job.pinned_device_class};
  for (const void* const field : read) __builtin_prefetch(field);
}

void Fill(const Snapshot& snapshot, SchedulerTable* table) {
  for (const WorkerSlot& slot : snapshot.workers) table->PutWorker(slot);
  for (const auto& [project, share] : snapshot.shares) table->SetShare(project, share);
  table->Reserve(snapshot.waiting.size());
  for (size_t i = 0; i < snapshot.waiting.size(); ++i) {
    if (i + kJobsAhead < snapshot.waiting.size()) Fetch(*snapshot.waiting[i + kJobsAhead].job);
    table->PutWaiting(snapshot.waiting[i]);
  }
}

}  // namespace

PlanResult SchedulerTable::Plan(PlanTime now) {
  Settle();
  return SchedulerPass(this, now, true).Run();
}

PlanResult SchedulerTable::Decide(PlanTime now) {
  Settle();
  return SchedulerPass(this, now, false).Run();
}

PlanResult Plan(const Snapshot& snapshot, PlanTime now) {
  SchedulerTable table(snapshot.quotas);
  Fill(snapshot, &table);
  return table.Plan(now);
}

PlanResult Decide(const Snapshot& snapshot, PlanTime now) {
  SchedulerTable table(snapshot.quotas);
  Fill(snapshot, &table);
  return table.Decide(now);
}

std::string Describe(const Verdict& verdict) {
  if (verdict.reason == Reason::kBackoff) return "tries again at " + FormatTimestamp(verdict.until_wall_micros);
  if (verdict.worker == nullptr) return verdict.text;
  std::string where = "worker " + verdict.worker->id;
  const auto bytes = [&](const char* what) {
    return "needs " + FormatBytes(verdict.needed) + " of " + what + "; " + where + " has " + FormatBytes(verdict.free) +
           " free of " + FormatBytes(verdict.total) +
           (verdict.others > 0 ? ", of which others hold " + FormatBytes(verdict.others) : "");
  };
  switch (verdict.reason) {
    case Reason::kWaitingForVram:
      where = "device " + verdict.worker->devices[static_cast<size_t>(verdict.device)].id + " of " + where;
      if (verdict.faults > 0) {
        return where + " rests until " + FormatTimestamp(verdict.until_wall_micros) + ": it has had " +
               std::to_string(verdict.faults) + " faults";
      }
      return bytes("device memory");
    case Reason::kWaitingForHostRam:
      return bytes("host RAM");
    case Reason::kWaitingForDisk:
      return bytes("disk");
    case Reason::kWaitingForAttempts:
      return "needs room for another attempt; " + where + " has " + std::to_string(verdict.total - verdict.free) +
             ", the most that a worker may have";
    default:
      return "needs " + std::to_string(verdict.needed) + " CPU threads; " + where + " has " +
             std::to_string(verdict.free) + " free of " + std::to_string(verdict.total);
  }
}

}  // namespace longhaul::server
