// SchedulerPass: reservations for the first jobs that do not fit, and who makes room for them.
#include <algorithm>
#include <tuple>

#include "base/limits.h"
#include "server/core/scheduler_pass.h"

namespace longhaul::server {

using scheduling::Entry;
using scheduling::Group;
using scheduling::Option;
using scheduling::WorkerState;

int SchedulerPass::Reserve(const Entry& entry, const Group& group) {
  Spot spot;
  int64_t start_micros = kNeverMicros;
  const Option* option = nullptr;
  if (!FindReservation(entry, group, &spot, &start_micros, &option)) return -1;
  const bool far = start_micros - now_.boot_micros > limits::kPreemptMinGainSeconds * 1'000'000;
  if (far && entry.priority > PriorityClass::kLow && Preempt(entry, group, &spot, &option)) {
    start_micros = timeline_.Earliest(spot.worker, spot.device, NeedOf(option->Smallest()),
                                      DurationMicros(entry, *option, option->smallest));
  }
  const WorkerState& state = *fleet_.workers[static_cast<size_t>(spot.worker)];
  Reservation kept;
  kept.create_number = entry.create_number;
  kept.job_id = entry.job->id;
  kept.worker = state.slot.worker;
  kept.device = spot.device - state.first_device;
  kept.need = NeedOf(option->Smallest());
  kept.start_boot_micros = start_micros;
  kept.end_boot_micros = start_micros + DurationMicros(entry, *option, option->smallest);
  kept.after =
      timeline_.Blockers(spot.worker, spot.device, kept.need, kept.start_boot_micros, limits::kMaxBlockersNamed);
  const int index = static_cast<int>(result_.reservations.size());
  timeline_.Reserve(spot.worker, spot.device, kept.need, kept.start_boot_micros, kept.end_boot_micros, index);
  result_.reservations.push_back(std::move(kept));
  reserved_of_[static_cast<size_t>(entry.project)].push_back(index);
  return index;
}

// The earliest start on any device that the group may use; of equal ones the first in the order of the search.
bool SchedulerPass::FindReservation(const Entry& entry, const Group& group, Spot* spot, int64_t* start,
                                    const Option** chosen) {
  *start = kNeverMicros;
  for (const Option& option : group.options) {
    const Need need = NeedOf(option.Smallest());
    if (OverQuota(entry.project, need, kNeverMicros)) continue;
    const int64_t duration = DurationMicros(entry, option, option.smallest);
    for (const int device : fleet_.pools[static_cast<size_t>(option.pool)].devices) {
      ++looks_;
      const int w = fleet_.device_worker[static_cast<size_t>(device)];
      if (fleet_.takes[static_cast<size_t>(w)] == 0 || w == group.avoid || timeline_.FirstEnd(w) >= *start) continue;
      const WorkerState& state = *fleet_.workers[static_cast<size_t>(w)];
      if (!EverFits(need, *state.slot.worker, device - state.first_device)) continue;
      const int64_t at = timeline_.Earliest(w, device, need, duration);
      if (at >= *start) continue;
      *start = at;
      *spot = {w, device};
      *chosen = &option;
    }
  }
  return *start != kNeverMicros;
}

// The fewest attempts of the lowest class on one worker whose end makes room; they are told to stop.
bool SchedulerPass::Preempt(const Entry& entry, const Group& group, Spot* spot, const Option** chosen) {
  std::tuple<int, size_t> best{scheduling::kNobody, 0};  // highest class among the victims, their number
  std::vector<int> victims;
  for (const Option& option : group.options) {
    const Need need = NeedOf(option.Smallest());
    for (const int device : fleet_.pools[static_cast<size_t>(option.pool)].devices) {
      if (++looks_ >= limits::kMaxDeviceLooksPerPass) break;
      const int w = fleet_.device_worker[static_cast<size_t>(device)];
      const WorkerState& state = *fleet_.workers[static_cast<size_t>(w)];
      if (fleet_.lowest_preemptible[static_cast<size_t>(w)] >= static_cast<int>(entry.priority)) continue;
      if (fleet_.takes[static_cast<size_t>(w)] == 0 || w == group.avoid || timeline_.HasReservation(w)) continue;
      if (!EverFits(need, *state.slot.worker, device - state.first_device)) continue;
      std::vector<int> found = VictimsOn(w, device, need, entry.priority);
      if (found.empty()) continue;
      int highest = 0;
      for (const int i : found) {
        highest = std::max(highest, static_cast<int>(state.slot.running[static_cast<size_t>(i)].priority));
      }
      const std::tuple<int, size_t> cost{highest, found.size()};
      if (cost >= best) continue;
      best = cost;
      victims = std::move(found);
      *spot = {w, device};
      *chosen = &option;
    }
  }
  if (victims.empty()) return false;
  const WorkerState& state = *fleet_.workers[static_cast<size_t>(spot->worker)];
  for (const int i : victims) {
    result_.preemptions.push_back({state.slot.running[static_cast<size_t>(i)].job_id, entry.job->id});
    stopped_[static_cast<size_t>(spot->worker)].push_back(i);
    timeline_.Stop(spot->worker, i, now_.boot_micros + limits::kStopSeconds * 1'000'000);
  }
  return true;
}

// Indices of running attempts of lower classes whose end makes room on the device; empty where that is not enough.
// The lowest class first, in it the one that has run least since it may be preempted.
std::vector<int> SchedulerPass::VictimsOn(int worker, int device, const Need& need, PriorityClass below) {
  const WorkerState& state = *fleet_.workers[static_cast<size_t>(worker)];
  const std::vector<RunningAttempt>& running = state.slot.running;
  const std::vector<int>& stopped = stopped_[static_cast<size_t>(worker)];
  std::vector<int> candidates;
  for (size_t i = 0; i < running.size(); ++i) {
    const RunningAttempt& attempt = running[i];
    if (attempt.priority >= below || attempt.preemptible_boot_micros == kNeverMicros) continue;
    if (std::find(stopped.begin(), stopped.end(), static_cast<int>(i)) != stopped.end()) continue;
    if (attempt.preemptible_boot_micros <= now_.boot_micros) {
      candidates.push_back(static_cast<int>(i));
    } else {
      result_.look_again_boot_micros = std::min(result_.look_again_boot_micros, attempt.preemptible_boot_micros);
    }
  }
  std::sort(candidates.begin(), candidates.end(), [&](int a, int b) {
    const RunningAttempt& x = running[static_cast<size_t>(a)];
    const RunningAttempt& y = running[static_cast<size_t>(b)];
    if (x.priority != y.priority) return x.priority < y.priority;
    if (x.preemptible_boot_micros != y.preemptible_boot_micros) {
      return x.preemptible_boot_micros > y.preemptible_boot_micros;
    }
    return x.job_id < y.job_id;
  });
  const auto give = [&](int i, int sign, Need* free) {
    const RunningAttempt& attempt = running[static_cast<size_t>(i)];
    if (state.first_device + attempt.device == device) free->device_bytes += sign * attempt.need.device_bytes;
    free->host_bytes += sign * attempt.need.host_bytes;
    free->disk_bytes += sign * attempt.need.disk_bytes;
    free->cpu_threads += sign * attempt.need.cpu_threads;
  };
  Need free = timeline_.FreeNow(worker, device);
  std::vector<int> victims;
  for (const int i : candidates) {
    if (Covers(free, need)) break;
    give(i, 1, &free);
    victims.push_back(i);
  }
  if (!Covers(free, need)) return {};
  // Of a higher class first: whoever is not needed after all goes on.
  for (size_t i = victims.size(); i-- > 0;) {
    give(victims[i], -1, &free);
    if (Covers(free, need)) {
      victims.erase(victims.begin() + static_cast<int64_t>(i));
    } else {
      give(victims[i], 1, &free);
    }
  }
  return victims;
}

}  // namespace longhaul::server
