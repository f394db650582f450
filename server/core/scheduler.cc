#include "server/core/scheduler.h"

#include <algorithm>
#include <array>
#include <map>
#include <tuple>

#include "base/format.h"
#include "base/limits.h"

namespace longhaul::server {
namespace {

constexpr std::array<PlanPoint, 3> kLargestFirst = {PlanPoint::kWhole, PlanPoint::kBalanced, PlanPoint::kMinimum};

struct Refusal {
  Reason reason = Reason::kNone;
  std::string detail;
  int rank = 0;  // the refusal that tells most: the one that came nearest to a start
};

void Keep(Refusal candidate, Refusal* best) {
  if (candidate.rank > best->rank) *best = std::move(candidate);
}

bool HasModel(const Worker& worker, const Job& job) {
  return std::any_of(worker.models.begin(), worker.models.end(),
                     [&](const ModelEntry& model) { return model.digest == job.model_digest; });
}

bool IsTrain(const WaitingJob& waiting) { return waiting.job->state == JobState::kQueued; }

// Whether the worker takes new attempts at all; else why not.
bool Takes(const WorkerSlot& slot, std::string* why) {
  if (!slot.reachable) {
    *why = "is not connected";
  } else if (slot.worker->draining) {
    *why = "is draining";
  } else if (!slot.plan_matches) {
    *why = "is of another build (its memory plan differs from the scheduler's): upgrade it";
  } else {
    return true;
  }
  return false;
}

std::string Short(const char* what, int64_t needed, int64_t free, int64_t total, const std::string& where) {
  return "needs " + FormatBytes(needed) + " of " + what + "; " + where + " has " + FormatBytes(free) + " free of " +
         FormatBytes(total);
}

// Whether `demand` fits on a device (-1: none) of a worker now; else what is short, the scarcest kind first.
bool FitsNow(const WorkerSlot& slot, int device, const Demand& demand, Refusal* refusal) {
  const std::string where = "worker " + slot.worker->id;
  if (device >= 0) {
    const int64_t free = slot.device_bytes_free[static_cast<size_t>(device)];
    const DeviceEntry& entry = slot.worker->devices[static_cast<size_t>(device)];
    if (demand.device_bytes > free) {
      *refusal = {Reason::kWaitingForVram,
                  Short("device memory", demand.device_bytes, free, entry.facts.device_bytes,
                        "device " + entry.id + " of " + where),
                  10};
      return false;
    }
  }
  if (demand.host_bytes > slot.host_bytes_free) {
    *refusal = {Reason::kWaitingForHostRam,
                Short("host RAM", demand.host_bytes, slot.host_bytes_free, slot.worker->host_bytes_total, where), 11};
    return false;
  }
  if (demand.disk_bytes > slot.disk_bytes_free) {
    *refusal = {Reason::kWaitingForDisk,
                Short("disk", demand.disk_bytes, slot.disk_bytes_free, slot.worker->disk_bytes_total, where), 12};
    return false;
  }
  if (demand.cpu_threads > slot.cpu_threads_free) {
    *refusal = {Reason::kWaitingForCpuThreads,
                "needs " + std::to_string(demand.cpu_threads) + " CPU threads; " + where + " has " +
                    std::to_string(slot.cpu_threads_free) + " free of " +
                    std::to_string(slot.worker->cpu_threads_total),
                13};
    return false;
  }
  return true;
}

class Pass {
 public:
  Pass(const Snapshot& snapshot, int64_t now) : workers_(snapshot.workers), waiting_(snapshot.waiting), now_(now) {
    std::sort(waiting_.begin(), waiting_.end(), [](const WaitingJob& a, const WaitingJob& b) {
      if (a.job->priority != b.job->priority) return a.job->priority > b.job->priority;
      return a.job->create_number < b.job->create_number;
    });
    for (const WaitingJob& waiting : waiting_) {
      if (IsTrain(waiting) && waiting.job->not_before_wall_micros <= now_) ++ready_trains_;
    }
  }

  std::vector<Action> Run() {
    std::vector<Action> actions;
    actions.reserve(waiting_.size());
    int position = 0;
    for (const WaitingJob& waiting : waiting_) {
      Action action;
      Refusal refusal;
      if (waiting.job->not_before_wall_micros > now_) {
        refusal = {Reason::kBackoff, "tries again at " + FormatTimestamp(waiting.job->not_before_wall_micros), 1};
      } else if (IsTrain(waiting)) {
        PlaceTrain(waiting, &action, &refusal);
        if (action.kind == Action::Kind::kStart) --ready_trains_;
      } else {
        PlaceValidation(*waiting.job, &action, &refusal);
      }
      action.job_id = waiting.job->id;
      if (action.kind == Action::Kind::kWait) {
        action.reason = refusal.reason;
        action.detail = std::move(refusal.detail);
        action.position = ++position;
      }
      actions.push_back(std::move(action));
    }
    return actions;
  }

 private:
  // Workers that have the model and take attempts; where there are none, why.
  std::vector<size_t> Candidates(const Job& job, Refusal* refusal) const {
    std::vector<size_t> candidates;
    bool any_takes = false;
    for (size_t i = 0; i < workers_.size(); ++i) {
      std::string why;
      const bool takes = Takes(workers_[i], &why);
      any_takes = any_takes || takes;
      if (!HasModel(*workers_[i].worker, job)) continue;
      if (takes) {
        candidates.push_back(i);
      } else {
        Keep({Reason::kModelNotOnAnyWorker,
              "worker " + workers_[i].worker->id + ", which has model " + job.model + ", " + why, 2},
             refusal);
      }
    }
    if (!candidates.empty()) return candidates;
    if (!any_takes) {
      const std::string seen = refusal->rank == 2 ? refusal->detail : "none is connected that takes work";
      *refusal = {Reason::kNoWorker, "no worker: " + seen, 3};
    } else if (refusal->rank < 2) {
      *refusal = {Reason::kModelNotOnAnyWorker,
                  "no registered worker has model " + job.model + " with the content pinned at create", 2};
    }
    return candidates;
  }

  void PlaceValidation(const Job& job, Action* action, Refusal* refusal) {
    // It fetches the data and holds them tokenised, as training will.
    Demand demand;
    demand.fits = true;
    demand.host_bytes =
        limits::kValidateHostBytes + job.train_shape.dataset_bytes * limits::kValidateHostBytesPerDatasetByte;
    demand.disk_bytes = limits::kValidateDiskBytes + job.train_shape.dataset_bytes;
    for (const size_t i : Candidates(job, refusal)) {
      WorkerSlot& slot = workers_[i];
      if (slot.validations >= std::max(1, slot.worker->cpu_threads_total)) {
        Keep({Reason::kWaitingForValidation,
              "worker " + slot.worker->id + " runs " + std::to_string(slot.validations) +
                  " validations already, one per CPU thread",
              9},
             refusal);
        continue;
      }
      Refusal short_of;
      if (!FitsNow(slot, -1, demand, &short_of)) {
        Keep(std::move(short_of), refusal);
        continue;
      }
      ++slot.validations;
      Start(slot, -1, demand, AttemptKind::kValidate, PlanPoint::kNone, action);
      return;
    }
  }

  // On another class the trainer would refuse the checkpoint.
  static bool PinBinds(const Job& job) { return !job.pinned_device_class.empty() && !job.allow_nonidentical_resume; }

  void PlaceTrain(const WaitingJob& waiting, Action* action, Refusal* refusal) {
    const Job& job = *waiting.job;
    const bool pinned = PinBinds(job);
    // Resources only shrink during a pass: what did not fit for an equal job does not fit for this one.
    const auto key =
        std::make_tuple(waiting.demands, job.model_digest, pinned ? job.pinned_device_class : std::string(),
                        pinned ? job.pinned_point : PlanPoint::kNone);
    if (const auto found = refused_.find(key); found != refused_.end()) {
      *refusal = found->second;
      return;
    }
    for (const size_t i : Candidates(job, refusal)) {
      if (PlaceOn(workers_[i], waiting, pinned, action, refusal)) return;
    }
    if (refusal->rank < 2) {
      *refusal = {Reason::kNoWorker, "no connected worker with the model has a device that runs it", 2};
    }
    refused_.emplace(key, *refusal);
  }

  bool PlaceOn(WorkerSlot& slot, const WaitingJob& waiting, bool pinned, Action* action, Refusal* refusal) {
    for (size_t d = 0; d < slot.worker->devices.size(); ++d) {
      const std::string& device_class = slot.worker->devices[d].facts.device_class;
      if (pinned && device_class != waiting.job->pinned_device_class) {
        Keep({Reason::kNoWorker,
              "its checkpoint continues bit for bit only on device class " + waiting.job->pinned_device_class +
                  ", which no connected worker has (hyperparameters.allow_nonidentical_resume permits another)",
              4},
             refusal);
        continue;
      }
      const auto demands = waiting.demands->find(device_class);
      if (demands == waiting.demands->end()) continue;
      if (PlaceAt(slot, static_cast<int>(d), waiting, pinned, demands->second, action, refusal)) return true;
    }
    return false;
  }

  bool PlaceAt(WorkerSlot& slot, int device, const WaitingJob& waiting, bool pinned, const ClassDemands& demands,
               Action* action, Refusal* refusal) {
    for (const PlanPoint point : kLargestFirst) {
      if (pinned && waiting.job->pinned_point != PlanPoint::kNone && waiting.job->pinned_point != point) continue;
      const Demand& demand = At(demands, point);
      if (!demand.fits) {
        if (!demand.why.empty()) {
          Keep({Reason::kExceedsEveryDevice,
                "on device class " + slot.worker->devices[static_cast<size_t>(device)].facts.device_class + " it " +
                    demand.why,
                5},
               refusal);
        }
        continue;
      }
      // Whole is for a job that has the worker to itself; it stays where a smaller point would help nobody.
      const bool others_wait = ready_trains_ > 1;
      const bool balanced_possible = !pinned && At(demands, PlanPoint::kBalanced).fits;
      if (point == PlanPoint::kWhole && others_wait && balanced_possible &&
          demand.cpu_threads < slot.cpu_threads_free) {
        continue;
      }
      Refusal short_of;
      if (FitsNow(slot, device, demand, &short_of)) {
        Start(slot, device, demand, AttemptKind::kTrain, point, action);
        return true;
      }
      // The smallest point says best what is missing.
      if (short_of.rank >= refusal->rank) *refusal = std::move(short_of);
    }
    return false;
  }

  static void Start(WorkerSlot& slot, int device, const Demand& demand, AttemptKind kind, PlanPoint point,
                    Action* action) {
    slot.host_bytes_free -= demand.host_bytes;
    slot.disk_bytes_free -= demand.disk_bytes;
    slot.cpu_threads_free -= demand.cpu_threads;
    action->kind = Action::Kind::kStart;
    action->attempt = kind;
    action->worker_id = slot.worker->id;
    action->point = point;
    action->demand = demand;
    if (device < 0) return;
    const DeviceEntry& entry = slot.worker->devices[static_cast<size_t>(device)];
    slot.device_bytes_free[static_cast<size_t>(device)] -= demand.device_bytes;
    action->device_id = entry.id;
    action->device_class = entry.facts.device_class;
  }

  std::vector<WorkerSlot> workers_;
  std::vector<WaitingJob> waiting_;
  const int64_t now_;
  int ready_trains_ = 0;
  std::map<std::tuple<const JobDemands*, std::string, std::string, PlanPoint>, Refusal> refused_;
};

}  // namespace

std::vector<Action> Plan(const Snapshot& snapshot, int64_t now_wall_micros) {
  return Pass(snapshot, now_wall_micros).Run();
}

}  // namespace longhaul::server
