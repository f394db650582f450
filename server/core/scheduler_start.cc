// SchedulerPass: where a job can start now, and what is short where it cannot.
#include <algorithm>
#include <utility>

#include "base/format.h"
#include "base/limits.h"
#include "server/core/scheduler_pass.h"

namespace longhaul::server {

using scheduling::Entry;
using scheduling::Group;
using scheduling::Option;
using scheduling::Project;

namespace {

constexpr std::array<PlanPoint, 3> kLargestFirst = {PlanPoint::kWhole, PlanPoint::kBalanced, PlanPoint::kMinimum};
constexpr double kMaxDurationSeconds = 1e9;

const Demand* PointOf(const Option& option, PlanPoint point) { return option.points[static_cast<size_t>(point) - 1]; }

// What is short first, of VRAM, host RAM, disk, CPU threads, attempts: 1 to 5; 6 = nothing.
constexpr int kNothingShort = 6;
int FirstShort(const Need& free, const Need& need) {
  if (need.device_bytes > free.device_bytes) return 1;
  if (need.host_bytes > free.host_bytes) return 2;
  if (need.disk_bytes > free.disk_bytes) return 3;
  if (need.cpu_threads > free.cpu_threads) return 4;
  return need.attempts > free.attempts ? 5 : kNothingShort;
}

int64_t Amount(const Need& need, int resource) {
  switch (resource) {
    case 1:
      return need.device_bytes;
    case 2:
      return need.host_bytes;
    case 3:
      return need.disk_bytes;
    case 4:
      return need.cpu_threads;
    default:
      return need.attempts;
  }
}

Need TotalOf(const Worker& worker, int device) {
  return {device < 0 ? 0 : worker.devices[static_cast<size_t>(device)].facts.device_bytes, worker.host_bytes_total,
          worker.disk_bytes_total, worker.cpu_threads_total, limits::kMaxAttemptsPerWorker};
}

Reason ReasonOf(int resource) {
  switch (resource) {
    case 1:
      return Reason::kWaitingForVram;
    case 2:
      return Reason::kWaitingForHostRam;
    case 3:
      return Reason::kWaitingForDisk;
    case 4:
      return Reason::kWaitingForCpuThreads;
    default:
      return Reason::kWaitingForAttempts;
  }
}

std::string OfQuota(const char* what, const std::string& needed, const std::string& held, const std::string& limit) {
  return std::string("needs ") + needed + " of " + what + "; the project holds " + held + " of its " + limit;
}

}  // namespace

int64_t SchedulerPass::DurationMicros(const Entry& entry, const Option& option, PlanPoint point) const {
  const double step_seconds = PointOf(option, point)->step_seconds;
  double seconds = static_cast<double>(limits::kAssumedRunSeconds);
  if (entry.steps_left > 0 && step_seconds > 0) {
    seconds = std::min(step_seconds * static_cast<double>(entry.steps_left), kMaxDurationSeconds);
  }
  return static_cast<int64_t>((seconds + static_cast<double>(limits::kAttemptOverheadSeconds)) * 1e6);
}

// Whether the project may not take `need` from now to `end`: with what it holds, and what is kept by then for those of
// its jobs that have a reservation, or a younger job would take the quota that the start they are told counts on.
bool SchedulerPass::OverQuota(int project_index, const Need& need, int64_t end) const {
  const Project& project = projects_[static_cast<size_t>(project_index)];
  const Quota& quota = project.quota;
  if (quota == Quota()) return false;
  int jobs = project.jobs;
  Need held = project.held;
  for (const int index : reserved_of_[static_cast<size_t>(project_index)]) {
    const Reservation& kept = result_.reservations[static_cast<size_t>(index)];
    if (kept.start_boot_micros >= end) continue;
    ++jobs;
    held.device_bytes += kept.need.device_bytes;
    held.host_bytes += kept.need.host_bytes;
    held.cpu_threads += kept.need.cpu_threads;
  }
  return (quota.jobs > 0 && jobs + 1 > quota.jobs) ||
         (quota.device_bytes > 0 && held.device_bytes + need.device_bytes > quota.device_bytes) ||
         (quota.host_bytes > 0 && held.host_bytes + need.host_bytes > quota.host_bytes) ||
         (quota.cpu_threads > 0 && held.cpu_threads + need.cpu_threads > quota.cpu_threads);
}

bool SchedulerPass::OverQuotaEverywhere(const Entry& entry, const Group& group) const {
  if (!HasQuota(entry.project) || group.options.empty()) return false;
  return std::all_of(group.options.begin(), group.options.end(), [&](const Option& option) {
    return OverQuota(entry.project, NeedOf(option.Smallest()), now_.boot_micros);
  });
}

// REQUIRES: OverQuotaEverywhere. What a project holds only grows during a pass, so the first verdict stays.
int SchedulerPass::QuotaVerdict(const Entry& entry, const Group& group) {
  if (!telling_) return 0;
  const auto [at, added] = over_quota_.emplace(std::pair(entry.project, entry.group), 0);
  if (!added) return at->second;
  const Project& project = projects_[static_cast<size_t>(entry.project)];
  const Quota& quota = project.quota;
  const Need need = NeedOf(group.options.front().Smallest());
  std::string text;
  if (quota.jobs > 0 && project.jobs + 1 > quota.jobs) {
    text = "has " + std::to_string(project.jobs) + " of " + std::to_string(quota.jobs) + " running jobs";
  } else if (quota.device_bytes > 0 && project.held.device_bytes + need.device_bytes > quota.device_bytes) {
    text = OfQuota("device memory", FormatBytes(need.device_bytes), FormatBytes(project.held.device_bytes),
                   FormatBytes(quota.device_bytes));
  } else if (quota.host_bytes > 0 && project.held.host_bytes + need.host_bytes > quota.host_bytes) {
    text = OfQuota("host RAM", FormatBytes(need.host_bytes), FormatBytes(project.held.host_bytes),
                   FormatBytes(quota.host_bytes));
  } else {
    text = OfQuota("CPU threads", std::to_string(need.cpu_threads), std::to_string(project.held.cpu_threads),
                   std::to_string(quota.cpu_threads));
  }
  at->second = TextVerdict(Reason::kWaitingForQuota, "quota of project " + project.name + ": " + text);
  return at->second;
}

// REQUIRES: a reservation of the project.
int SchedulerPass::KeptQuotaVerdict(int project) {
  if (!telling_) return 0;
  int& verdict = kept_quota_[static_cast<size_t>(project)];
  if (verdict >= 0) return verdict;
  const size_t index = static_cast<size_t>(reserved_of_[static_cast<size_t>(project)].front());
  const Reservation& kept = result_.reservations[index];
  verdict = TextVerdict(Reason::kBehindHigherPriority,
                        "would delay job " + kept.job_id + ", for which the quota of project " +
                            projects_[static_cast<size_t>(project)].name + " is kept from " +
                            FormatTimestamp(now_.ToWall(kept.start_boot_micros)));
  return verdict;
}

int SchedulerPass::DelayVerdict(int reservation) {
  if (!telling_) return 0;
  const Reservation& kept = result_.reservations[static_cast<size_t>(reservation)];
  return TextVerdict(Reason::kBehindHigherPriority, "would delay job " + kept.job_id + ", for which worker " +
                                                        kept.worker->id + " is kept from " +
                                                        FormatTimestamp(now_.ToWall(kept.start_boot_micros)));
}

int SchedulerPass::TryStart(const Entry& entry, const Group& group) {
  GroupState& state = StateOf(entry.group);
  const double seconds =
      static_cast<double>(DurationMicros(entry, group.options.front(), group.options.front().smallest)) / 1e6;
  if (seconds >= state.delays_seconds) return state.delays;
  if (state.cursors < 0) {
    state.cursors = static_cast<int>(cursors_.size());
    cursors_.resize(cursors_.size() + group.options.size(), 0);
  }
  bool left_out = false;
  bool none_tried = true;
  bool delays = false;
  for (size_t i = 0; i < group.options.size(); ++i) {
    const Option& option = group.options[i];
    const int64_t end = now_.boot_micros + DurationMicros(entry, option, option.smallest);
    if (OverQuota(entry.project, NeedOf(option.Smallest()), end)) {
      left_out = true;
      continue;
    }
    none_tried = false;
    NoteTried(entry);
    Spot spot;
    if (!FindSpot(entry, group, i, &spot, &delays)) continue;
    StartAt(entry, group, option, spot);
    return -1;
  }
  if (delays) {
    if (!left_out) state.delays_seconds = seconds;
    return state.delays;
  }
  if (none_tried) return KeptQuotaVerdict(entry.project);
  const int verdict = ShortVerdict(group);
  if (!left_out) state.refused = verdict;
  return verdict;
}

// The first device that has room at the smallest point, and keeps room for what is reserved there.
bool SchedulerPass::FindSpot(const Entry& entry, const Group& group, size_t index, Spot* spot, bool* delays) {
  constexpr size_t kBlock = scheduling::kBlockDevices;
  const Option& option = group.options[index];
  const scheduling::Pool& pool = fleet_.pools[static_cast<size_t>(option.pool)];
  GroupState& state = StateOf(entry.group);
  const Need need = NeedOf(option.Smallest());
  const int64_t end = now_.boot_micros + DurationMicros(entry, option, option.smallest);
  int& cursor = cursors_[static_cast<size_t>(state.cursors) + index];
  bool full_so_far = true;
  bool delays_here = false;
  for (size_t i = static_cast<size_t>(cursor); i < pool.devices.size(); ++i) {
    if (++looks_ >= limits::kMaxDeviceLooksPerPass) return false;
    const bool block_full = !Covers(pool.most_free[i / kBlock], need);
    if (block_full || !HasRoom(group, pool.devices[i], need)) {
      if (block_full) i = std::min(pool.devices.size(), (i / kBlock + 1) * kBlock) - 1;
      if (full_so_far) cursor = static_cast<int>(i) + 1;
      continue;
    }
    full_so_far = false;
    const int device = pool.devices[i];
    const int w = fleet_.device_worker[static_cast<size_t>(device)];
    const int delayed = timeline_.Delayed(w, device, need, end);
    if (delayed < 0) {
      *spot = {w, device};
      return true;
    }
    if (state.delays < 0) state.delays = DelayVerdict(delayed);
    delays_here = true;
  }
  *delays = *delays || delays_here;
  return false;
}

// Now, at once.
bool SchedulerPass::HasRoom(const Group& group, int device, const Need& need) const {
  const int w = fleet_.device_worker[static_cast<size_t>(device)];
  const size_t at = static_cast<size_t>(w);
  return fleet_.takes[at] != 0 && !group.Avoids(w, device) &&
         need.device_bytes <= free_.device_bytes[static_cast<size_t>(device)] &&
         need.host_bytes <= free_.host_bytes[at] && need.disk_bytes <= free_.disk_bytes[at] &&
         need.cpu_threads <= free_.cpu_threads[at] && need.attempts <= free_.attempts[at];
}

const SchedulerPass::Misfit* SchedulerPass::KnownMisfit(const Option& option, const Need& need) const {
  for (const Misfit& misfit : misfits_[static_cast<size_t>(option.pool)]) {
    if (Covers(need, misfit.need)) return &misfit;
  }
  return nullptr;
}

// Where the need comes nearest to a start: the most of its resources are there, then the most of the first short one.
SchedulerPass::Misfit SchedulerPass::Nearest(const Group& group, const Option& option, const Need& need) {
  Misfit best;
  best.need = need;
  int64_t best_free = 0;
  if (told_looks_ >= limits::kMaxDeviceLooksPerPass) return best;
  for (const int device : fleet_.pools[static_cast<size_t>(option.pool)].devices) {
    ++told_looks_;
    const int w = fleet_.device_worker[static_cast<size_t>(device)];
    if (fleet_.takes[static_cast<size_t>(w)] == 0 || group.Avoids(w, device)) continue;
    const Need free = timeline_.FreeNow(w, device);
    const int first = FirstShort(free, need);
    const bool ever = Covers(fleet_.device_total[static_cast<size_t>(device)], need);
    const int rank = ever ? first : 0;
    const int64_t amount = Amount(free, first);
    if (rank < best.rank || (rank == best.rank && amount <= best_free)) continue;
    best = {need, w, device, rank};
    best_free = amount;
  }
  return best;
}

// What is short for the group where it comes nearest to a start.
int SchedulerPass::ShortVerdict(const Group& group) {
  if (!telling_) return 0;
  Misfit best;
  Need best_need;
  for (const Option& option : group.options) {
    const Need need = NeedOf(option.Smallest());
    const Misfit* known = group.AvoidsAny() ? nullptr : KnownMisfit(option, need);
    Misfit nearest = known == nullptr ? Nearest(group, option, need) : *known;
    // What is avoided may have room for others.
    if (known == nullptr && !group.AvoidsAny()) misfits_[static_cast<size_t>(option.pool)].push_back(nearest);
    if (nearest.worker < 0) continue;
    const bool ever = Covers(fleet_.device_total[static_cast<size_t>(nearest.device)], need);
    nearest.rank = ever ? FirstShort(timeline_.FreeNow(nearest.worker, nearest.device), need) : 0;
    if (nearest.rank <= best.rank) continue;
    best = nearest;
    best_need = need;
  }
  if (best.rank <= 0 || best.rank == kNothingShort) {
    return TextVerdict(Reason::kBehindHigherPriority, "the pass had no time left to look for a place");
  }
  const scheduling::WorkerState& state = *fleet_.workers[static_cast<size_t>(best.worker)];
  const Need free = timeline_.FreeNow(best.worker, best.device);
  Verdict verdict;
  verdict.worker = state.slot.worker;
  verdict.device = best.device - state.first_device;
  verdict.reason = ReasonOf(best.rank);
  verdict.needed = Amount(best_need, best.rank);
  verdict.free = Amount(free, best.rank);
  verdict.total = Amount(TotalOf(*verdict.worker, verdict.device), best.rank);
  verdict.others = MissingOf(state.slot, verdict.reason);
  if (const DeviceRest* rest = RestOf(state.slot, verdict.device);
      rest != nullptr && verdict.reason == Reason::kWaitingForVram) {
    verdict.faults = rest->faults;
    verdict.until_wall_micros = now_.ToWall(rest->until_boot_micros);
  }
  return AddVerdict(std::move(verdict));
}

// Train jobs that could start by the clock, by the classes that they could run on. REQUIRES: nothing has started yet
// since the pass began, or it has been counted.
void SchedulerPass::CountReady() {
  if (std::exchange(ready_counted_, true)) return;
  std::vector<int> by_group(table_.groups(), 0);
  for (const scheduling::Bucket& bucket : table_.buckets()) {
    for (const Entry& entry : bucket.entries) {
      const int64_t backoff_end = scheduling::BackoffEnd(entry.not_before_wall_micros, now_.wall_micros);
      by_group[static_cast<size_t>(entry.group)] += backoff_end <= now_.wall_micros;
    }
  }
  for (size_t g = 0; g < by_group.size(); ++g) {
    if (by_group[g] == 0) continue;
    for (const Option& option : table_.Compile(static_cast<int>(g)).options) {
      ready_[static_cast<size_t>(option.device_class)] += by_group[g];
    }
  }
}

// The largest point that fits now. Whole is for a job that has the worker to itself; it stays where a smaller point
// would help nobody.
PlanPoint SchedulerPass::PointAt(const Entry& entry, const Option& option, Spot spot) const {
  const Need free = timeline_.FreeNow(spot.worker, spot.device);
  const bool others_wait = ready_[static_cast<size_t>(option.device_class)] > 1;
  const bool balanced_possible = PointOf(option, PlanPoint::kBalanced) != nullptr;
  for (const PlanPoint point : kLargestFirst) {
    const Demand* demand = PointOf(option, point);
    if (demand == nullptr || point == option.smallest) continue;
    if (point == PlanPoint::kWhole && others_wait && balanced_possible && demand->cpu_threads < free.cpu_threads) {
      continue;
    }
    const Need need = NeedOf(*demand);
    const int64_t end = now_.boot_micros + DurationMicros(entry, option, point);
    if (!Covers(free, need) || OverQuota(entry.project, need, end)) continue;
    if (timeline_.Delayed(spot.worker, spot.device, need, end) < 0) return point;
  }
  return option.smallest;
}

void SchedulerPass::StartAt(const Entry& entry, const Group& group, const Option& option, Spot spot) {
  CountReady();
  const PlanPoint point = PointAt(entry, option, spot);
  const scheduling::WorkerState& state = *fleet_.workers[static_cast<size_t>(spot.worker)];
  Start start;
  start.job_id = entry.job->id;
  start.kind = AttemptKind::kTrain;
  start.worker_id = state.slot.worker->id;
  start.device_id = state.slot.worker->devices[static_cast<size_t>(spot.device - state.first_device)].id;
  start.device_class = table_.class_name(option.device_class);
  start.point = point;
  start.demand = *PointOf(option, point);
  const Need need = NeedOf(start.demand);
  result_.starts.push_back(std::move(start));
  Take(spot, need, now_.boot_micros + DurationMicros(entry, option, point));
  HoldQuota(entry.project, need, now_.boot_micros + DurationMicros(entry, option, point));
  Project& project = projects_[static_cast<size_t>(entry.project)];
  ++project.jobs;
  project.held.device_bytes += need.device_bytes;
  project.held.host_bytes += need.host_bytes;
  project.held.disk_bytes += need.disk_bytes;
  project.held.cpu_threads += need.cpu_threads;
  for (const Option& other : group.options) --ready_[static_cast<size_t>(other.device_class)];
  backlog_seconds_[static_cast<size_t>(option.device_class)] +=
      static_cast<double>(DurationMicros(entry, option, point)) / 1e6 * FractionOf(option);
}

void SchedulerPass::Take(Spot spot, const Need& need, int64_t end) {
  const size_t w = static_cast<size_t>(spot.worker);
  if (spot.device >= 0) free_.device_bytes[static_cast<size_t>(spot.device)] -= need.device_bytes;
  free_.host_bytes[w] -= need.host_bytes;
  free_.disk_bytes[w] -= need.disk_bytes;
  free_.cpu_threads[w] -= need.cpu_threads;
  free_.attempts[w] -= need.attempts;
  timeline_.AddStart(spot.worker, spot.device, need, end);
}

}  // namespace longhaul::server
