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

int SchedulerPass::Reserve(const Entry& entry, const Group& group, bool* left_out) {
  Spot spot;
  int64_t start_micros = kNeverMicros;
  const Option* option = nullptr;
  if (!FindReservation(entry, group, &spot, &start_micros, &option, left_out)) return -1;
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
                                    const Option** chosen, bool* left_out) {
  *start = kNeverMicros;
  for (const Option& option : group.options) {
    const Need need = NeedOf(option.Smallest());
    if (OverQuota(entry.project, need, kNeverMicros)) {
      *left_out = true;
      continue;
    }
    const int64_t duration = DurationMicros(entry, option, option.smallest);
    for (const int device : fleet_.pools[static_cast<size_t>(option.pool)].devices) {
      ++looks_;
      const int w = fleet_.device_worker[static_cast<size_t>(device)];
      if (fleet_.takes[static_cast<size_t>(w)] == 0 || group.Avoids(w, device) || timeline_.FirstEnd(w) >= *start)
        continue;
      if (!Covers(fleet_.device_total[static_cast<size_t>(device)], need)) continue;
      const int64_t at = timeline_.Earliest(w, device, need, duration, *start);
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
  constexpr std::tuple<int, size_t> kLeast{static_cast<int>(PriorityClass::kLow), 1};
  std::vector<int> victims;
  for (const Option& option : group.options) {
    const Need need = NeedOf(option.Smallest());
    if (OverQuota(entry.project, need, kNeverMicros)) continue;
    for (const int device : fleet_.pools[static_cast<size_t>(option.pool)].devices) {
      if (best == kLeast || ++looks_ >= limits::kMaxDeviceLooksPerPass) break;
      const int w = fleet_.device_worker[static_cast<size_t>(device)];
      if (fleet_.lowest_preemptible[static_cast<size_t>(w)] >= static_cast<int>(entry.priority)) continue;
      if (fleet_.takes[static_cast<size_t>(w)] == 0 || group.Avoids(w, device) || timeline_.HasReservation(w)) continue;
      if (!Covers(fleet_.device_total[static_cast<size_t>(device)], need)) continue;
      if (!FindVictims(w, device, need, entry.priority, std::get<0>(best))) continue;
      const std::vector<scheduling::Release>& running = fleet_.workers[static_cast<size_t>(w)]->releases;
      int highest = 0;
      for (const int i : victims_) {
        highest = std::max(highest, static_cast<int>(running[static_cast<size_t>(i)].priority));
      }
      const std::tuple<int, size_t> cost{highest, victims_.size()};
      if (cost >= best) continue;
      best = cost;
      victims = victims_;
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

// Sets victims_ to running attempts, by index, of classes below `below` and at most `highest` whose end makes room on
// the device; false where that is not enough. The lowest class first, in it the one that has run least since it may be
// preempted.
bool SchedulerPass::FindVictims(int worker, int device, const Need& need, PriorityClass below, int highest) {
  const WorkerState& state = *fleet_.workers[static_cast<size_t>(worker)];
  const std::vector<scheduling::Release>& running = state.releases;
  const std::vector<int>& stopped = stopped_[static_cast<size_t>(worker)];
  const int of_worker = device - state.first_device;
  const auto give = [&](int i, int sign, Need* free) {
    const scheduling::Release& release = running[static_cast<size_t>(i)];
    if (release.device == of_worker) free->device_bytes += sign * release.need.device_bytes;
    free->host_bytes += sign * release.need.host_bytes;
    free->disk_bytes += sign * release.need.disk_bytes;
    free->cpu_threads += sign * release.need.cpu_threads;
    free->attempts += sign * release.need.attempts;
  };
  const Need free_now = timeline_.FreeNow(worker, device);
  Need free = free_now;
  candidates_.clear();
  victims_.clear();
  for (size_t i = 0; i < running.size(); ++i) {
    const scheduling::Release& release = running[i];
    if (release.priority >= below || release.preemptible_boot_micros == kNeverMicros) continue;
    if (std::find(stopped.begin(), stopped.end(), static_cast<int>(i)) != stopped.end()) continue;
    if (release.preemptible_boot_micros > now_.boot_micros) {
      result_.look_again_boot_micros = std::min(result_.look_again_boot_micros, release.preemptible_boot_micros);
    } else if (static_cast<int>(release.priority) <= highest) {
      candidates_.push_back(static_cast<int>(i));
      give(candidates_.back(), 1, &free);
    }
  }
  if (!Covers(free, need)) return false;
  std::sort(candidates_.begin(), candidates_.end(), [&](int a, int b) {
    const scheduling::Release& x = running[static_cast<size_t>(a)];
    const scheduling::Release& y = running[static_cast<size_t>(b)];
    if (x.priority != y.priority) return x.priority < y.priority;
    if (x.preemptible_boot_micros != y.preemptible_boot_micros) {
      return x.preemptible_boot_micros > y.preemptible_boot_micros;
    }
    return state.slot.running[static_cast<size_t>(a)].job_id < state.slot.running[static_cast<size_t>(b)].job_id;
  });
  free = free_now;
  for (const int i : candidates_) {
    if (Covers(free, need)) break;
    give(i, 1, &free);
    victims_.push_back(i);
  }
  // Of a higher class first: whoever is not needed after all goes on.
  for (size_t i = victims_.size(); i-- > 0;) {
    give(victims_[i], -1, &free);
    if (Covers(free, need)) {
      victims_.erase(victims_.begin() + static_cast<int64_t>(i));
    } else {
      give(victims_[i], 1, &free);
    }
  }
  return !victims_.empty();
}

}  // namespace longhaul::server
