#include "server/core/explain.h"

#include <algorithm>
#include <cstdio>

#include "base/format.h"
#include "base/limits.h"
#include "server/core/scheduler_timeline.h"

namespace longhaul::server {

using scheduling::Entry;
using scheduling::Fleet;
using scheduling::Group;
using scheduling::Option;
using scheduling::WorkerState;

namespace {

WaitInfo InfoOf(const PlanResult& result, size_t index) {
  const Wait& wait = result.waits[index];
  const Verdict& verdict = result.verdicts[static_cast<size_t>(wait.verdict)];
  return {verdict.reason, Describe(verdict), static_cast<int>(index) + 1, wait.expected_wall_micros};
}

const Wait* FindWait(const PlanResult& result, uint64_t create_number, size_t* index) {
  for (size_t i = 0; i < result.waits.size(); ++i) {
    if (result.waits[i].create_number != create_number) continue;
    *index = i;
    return &result.waits[i];
  }
  return nullptr;
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + words[i];
  }
  return text;
}

// What is short on a device with so much free; "" where nothing is.
std::string ShortOn(const WorkerSlot& slot, int device, const Need& need, const Need& free, PlanTime now) {
  const Worker& worker = *slot.worker;
  Verdict verdict;
  verdict.worker = slot.worker;
  verdict.device = device;
  const auto fill = [&](Reason reason, int64_t needed, int64_t there, int64_t total) {
    verdict.reason = reason;
    verdict.needed = needed;
    verdict.free = there;
    verdict.total = total;
    verdict.others = MissingOf(slot, reason);
  };
  if (device >= 0 && need.device_bytes > free.device_bytes) {
    fill(Reason::kWaitingForVram, need.device_bytes, free.device_bytes,
         worker.devices[static_cast<size_t>(device)].facts.device_bytes);
    if (const DeviceRest* rest = RestOf(slot, device); rest != nullptr) {
      verdict.faults = rest->faults;
      verdict.until_wall_micros = now.ToWall(rest->until_boot_micros);
    }
  } else if (need.host_bytes > free.host_bytes) {
    fill(Reason::kWaitingForHostRam, need.host_bytes, free.host_bytes, worker.host_bytes_total);
  } else if (need.disk_bytes > free.disk_bytes) {
    fill(Reason::kWaitingForDisk, need.disk_bytes, free.disk_bytes, worker.disk_bytes_total);
  } else if (need.cpu_threads > free.cpu_threads) {
    fill(Reason::kWaitingForCpuThreads, need.cpu_threads, free.cpu_threads, worker.cpu_threads_total);
  } else if (need.attempts > free.attempts) {
    fill(Reason::kWaitingForAttempts, need.attempts, free.attempts, limits::kMaxAttemptsPerWorker);
  } else {
    return "";
  }
  return Describe(verdict);
}

class Places {
 public:
  Places(SchedulerTable* table, const Entry& entry, PlanTime now)
      : table_(*table),
        fleet_(table->fleet()),
        group_(table->Compile(entry.group)),
        entry_(entry),
        now_(now),
        timeline_(fleet_, fleet_.free, now.boot_micros) {}

  void List(Explanation* out) {
    for (const int w : fleet_.digests[static_cast<size_t>(group_.digest)].workers) {
      const WorkerState& state = *fleet_.workers[static_cast<size_t>(w)];
      const int devices = group_.demands == nullptr ? 1 : static_cast<int>(state.slot.worker->devices.size());
      for (int d = 0; d < devices; ++d) {
        if (static_cast<int>(out->places.size()) >= limits::kMaxExplainedWorkers) {
          out->more_places = true;
          return;
        }
        out->places.push_back(At(w, state, group_.demands == nullptr ? -1 : d));
      }
    }
  }

 private:
  ExplainedPlace At(int w, const WorkerState& state, int device) {
    const Worker& worker = *state.slot.worker;
    ExplainedPlace place;
    place.worker_id = worker.id;
    if (device >= 0) {
      place.device_id = worker.devices[static_cast<size_t>(device)].id;
      place.device_class = worker.devices[static_cast<size_t>(device)].facts.device_class;
    }
    if (const char* why = WhyNotTaking(state.slot); why != nullptr) {
      place.why = "the worker " + std::string(why);
      return place;
    }
    if (w == group_.avoid) {
      place.why = "its last attempt failed there: another worker goes first";
      return place;
    }
    if (device >= 0 && state.first_device + device == group_.avoid_at) {
      place.why = "it failed under the last attempt: another device goes first";
      return place;
    }
    Need need = group_.validation;
    if (device >= 0) {
      const Option* option = OptionOf(place.device_class);
      if (option == nullptr) {
        place.why = WhyNotClass(place.device_class, worker, device);
        return place;
      }
      need = NeedOf(option->Smallest());
    }
    const int fleet_device = device < 0 ? -1 : state.first_device + device;
    place.why = ShortOn(state.slot, device, need, timeline_.FreeNow(w, fleet_device), now_);
    place.possible = device < 0 || EverFits(need, worker, device);
    if (!place.possible) return place;
    const int64_t at = timeline_.Earliest(w, fleet_device, need, 0);
    const int64_t backoff_end = scheduling::BackoffEnd(entry_.not_before_wall_micros, now_.wall_micros);
    if (at != kNeverMicros) place.expected_wall_micros = std::max(now_.ToWall(at), backoff_end);
    return place;
  }

  const Option* OptionOf(const std::string& device_class) const {
    for (const Option& option : group_.options) {
      if (table_.class_name(option.device_class) == device_class) return &option;
    }
    return nullptr;
  }

  // Why the group has no option on a class of a worker that takes attempts.
  std::string WhyNotClass(const std::string& device_class, const Worker& worker, int device) const {
    const auto found = group_.demands->find(device_class);
    if (found == group_.demands->end()) return "it was not planned for this class of devices";
    for (const Demand& demand : found->second) {
      if (!demand.fits) continue;
      if (group_.pinned_class >= 0 && table_.class_name(group_.pinned_class) != device_class) {
        return "its checkpoint continues bit for bit only on device class " + table_.class_name(group_.pinned_class);
      }
      if (!EverFits(NeedOf(demand), worker, device)) return "it " + TooSmall(NeedOf(demand), worker, device);
      if (group_.options.empty()) break;
      char text[96];
      std::snprintf(text, sizeof(text), "a step takes %.1f times as long there as on ",
                    demand.step_seconds / group_.options.front().step_seconds);
      return text + table_.class_name(group_.options.front().device_class);
    }
    for (const Demand& demand : found->second) {
      if (!demand.why.empty()) return "it " + demand.why;
    }
    return "its device_share allows no plan there";
  }

  SchedulerTable& table_;
  const Fleet& fleet_;
  const Group& group_;
  const Entry& entry_;
  const PlanTime now_;
  const Timeline timeline_;
};

std::string At(int64_t wall_micros) {
  return wall_micros == 0 ? std::string("at a time that nobody can tell") : "about " + FormatTimestamp(wall_micros);
}

std::string ShortageUnblock(const Explanation& explanation) {
  if (!explanation.preempted_job_ids.empty()) {
    return "job " + Join(explanation.preempted_job_ids) + " makes room for it on worker " +
           explanation.reserved_worker_id + ", " + At(explanation.wait.expected_wall_micros);
  }
  if (!explanation.after_job_ids.empty()) {
    return "the end of job " + Join(explanation.after_job_ids) + " on worker " + explanation.reserved_worker_id + ", " +
           At(explanation.wait.expected_wall_micros);
  }
  return "the jobs before it start or leave the queue, and there is room, " + At(explanation.wait.expected_wall_micros);
}

// Where there is room, it is not for the project.
void HoldBack(const std::string& project, Explanation* explanation) {
  for (ExplainedPlace& place : explanation->places) {
    if (!place.possible || !place.why.empty()) continue;
    place.why = "it has room, the quota of project " + project + " has none";
    place.expected_wall_micros = explanation->wait.expected_wall_micros;
  }
}

std::vector<std::string> UnblocksOf(const Explanation& explanation, const Job& job) {
  switch (explanation.wait.reason) {
    case Reason::kBackoff:
      return {"the end of its backoff at " + FormatTimestamp(job.not_before_wall_micros) + ", after " +
              std::to_string(job.failed_attempts) + " failed attempts of " + std::to_string(job.retry_limit + 1)};
    case Reason::kNoWorker:
      return {"a worker that takes attempts and has model " + job.model +
              ": start one, or `longhaul undrain` one that drains"};
    case Reason::kModelNotOnAnyWorker:
      return {"a connected worker that has model " + job.model + " with digest " + job.model_digest.substr(0, 12)};
    case Reason::kExceedsEveryDevice:
      return {"a larger device, or a job that needs less (shorter max_sequence_length, smaller batch or rank)"};
    case Reason::kWaitingForQuota:
      return {"the end, pause or cancellation of a running job of project " + job.project + ", " +
                  At(explanation.wait.expected_wall_micros),
              "a larger quota"};
    case Reason::kWaitingForValidation:
      return {"the end of a validation"};
    default:
      return {ShortageUnblock(explanation)};
  }
}

}  // namespace

std::optional<WaitInfo> WaitTable::Find(uint64_t create_number) const {
  std::call_once(indexed_, [this] {
    for (size_t i = 0; i < result_.waits.size(); ++i) index_.emplace(result_.waits[i].create_number, i);
  });
  const auto found = index_.find(create_number);
  if (found == index_.end()) return std::nullopt;
  return InfoOf(result_, found->second);
}

std::optional<Explanation> Explain(SchedulerTable* table, const PlanResult& result, const Job& job, PlanTime now) {
  table->Settle();
  const Entry* entry = table->Find(job.create_number);
  size_t index = 0;
  const Wait* wait = FindWait(result, job.create_number, &index);
  if (entry == nullptr || wait == nullptr) return std::nullopt;
  Explanation explanation;
  explanation.wait = InfoOf(result, index);
  explanation.waiting_jobs = static_cast<int>(result.waits.size());
  if (wait->reservation >= 0) {
    const Reservation& kept = result.reservations[static_cast<size_t>(wait->reservation)];
    explanation.reserved = true;
    explanation.reserved_worker_id = kept.worker->id;
    explanation.after_job_ids = kept.after;
  }
  for (const Preemption& preemption : result.preemptions) {
    if (preemption.for_job_id == job.id) explanation.preempted_job_ids.push_back(preemption.job_id);
  }
  const scheduling::Project& project = table->projects()[static_cast<size_t>(entry->project)];
  explanation.project_share = project.share;
  explanation.project_jobs = project.jobs;
  explanation.quota = project.quota;
  explanation.unblocks = UnblocksOf(explanation, job);
  Places(table, *entry, now).List(&explanation);
  if (explanation.wait.reason == Reason::kWaitingForQuota) HoldBack(job.project, &explanation);
  return explanation;
}

StartForecast Forecast(SchedulerTable* table, const WaitingJob& waiting, PlanTime now) {
  const uint64_t number = waiting.job->create_number;
  table->PutWaiting(waiting);
  const PlanResult result = table->Plan(now);
  StartForecast forecast;
  double run_seconds = 0;
  const auto start = std::find_if(result.starts.begin(), result.starts.end(),
                                  [&](const Start& candidate) { return candidate.job_id == waiting.job->id; });
  size_t index = 0;
  if (start != result.starts.end()) {
    forecast.wait.expected_wall_micros = now.wall_micros;
    forecast.device_class = start->device_class;
    run_seconds = start->demand.total_seconds;
  } else if (FindWait(result, number, &index) != nullptr) {
    forecast.wait = InfoOf(result, index);
    const Group& group = table->Compile(table->Find(number)->group);
    if (!group.options.empty()) {
      forecast.device_class = table->class_name(group.options.front().device_class);
      run_seconds = group.options.front().Smallest().total_seconds;
    }
  }
  if (run_seconds > 0 && forecast.wait.expected_wall_micros != 0) {
    forecast.expected_end_wall_micros = forecast.wait.expected_wall_micros + static_cast<int64_t>(run_seconds * 1e6);
  }
  table->RemoveWaiting(number);
  return forecast;
}

}  // namespace longhaul::server
