// SchedulerTable's derived parts: the fleet as flat arrays, and where the jobs of a group may run.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/format.h"
#include "base/limits.h"
#include "server/core/scheduler_table.h"

namespace longhaul::server {

using scheduling::Digest;
using scheduling::Fleet;
using scheduling::Group;
using scheduling::Option;
using scheduling::Pool;
using scheduling::WorkerState;

namespace {

constexpr std::array<PlanPoint, 3> kSmallestFirst = {PlanPoint::kMinimum, PlanPoint::kBalanced, PlanPoint::kWhole};

void AddWorker(const Worker& worker, int sign, scheduling::ResourceSum* sum) {
  (*sum)[1] += sign * worker.host_bytes_total;
  (*sum)[2] += sign * worker.disk_bytes_total;
  (*sum)[3] += sign * worker.cpu_threads_total;
}

Need TotalOf(const Worker& worker, size_t device) {
  return {worker.devices[device].facts.device_bytes, worker.host_bytes_total, worker.disk_bytes_total,
          worker.cpu_threads_total, limits::kMaxAttemptsPerWorker};
}

int KindOf(const Need& total, Pool* pool) {
  const auto found = std::find_if(pool->kinds.begin(), pool->kinds.end(),
                                  [&](const scheduling::Kind& kind) { return kind.total == total; });
  if (found != pool->kinds.end()) return static_cast<int>(found - pool->kinds.begin());
  pool->kinds.push_back({total, 0});
  return static_cast<int>(pool->kinds.size()) - 1;
}

Verdict Because(Reason reason, std::string text) {
  Verdict verdict;
  verdict.reason = reason;
  verdict.text = std::move(text);
  return verdict;
}

}  // namespace

bool EverFits(const Need& need, const Worker& worker, int device) {
  return Covers(TotalOf(worker, static_cast<size_t>(device)), need);
}

std::string TooSmall(const Need& need, const Worker& worker, int device) {
  const auto text = [&](const char* what, const std::string& needed, const std::string& there) {
    return "needs " + needed + " of " + what + "; worker " + worker.id + " has " + there + " in all";
  };
  const int64_t device_bytes = worker.devices[static_cast<size_t>(device)].facts.device_bytes;
  if (need.device_bytes > device_bytes) {
    return text("device memory", FormatBytes(need.device_bytes), FormatBytes(device_bytes));
  }
  if (need.host_bytes > worker.host_bytes_total) {
    return text("host RAM", FormatBytes(need.host_bytes), FormatBytes(worker.host_bytes_total));
  }
  if (need.disk_bytes > worker.disk_bytes_total) {
    return text("disk", FormatBytes(need.disk_bytes), FormatBytes(worker.disk_bytes_total));
  }
  return text("the CPU threads", std::to_string(need.cpu_threads), std::to_string(worker.cpu_threads_total));
}

void SchedulerTable::Settle() {
  if (!laid_) Lay();
}

void SchedulerTable::Lay() {
  fleet_ = Fleet();
  absl::flat_hash_map<std::pair<int, int>, int> pool_of;  // by digest, class
  for (auto& [id, state] : workers_) {
    state.index = static_cast<int>(fleet_.workers.size());
    state.first_device = static_cast<int>(fleet_.device_worker.size());
    state.digests.clear();
    for (const ModelEntry& model : state.slot.worker->models) {
      const int digest = DigestIndex(model.digest);
      const bool seen = std::find(state.digests.begin(), state.digests.end(), digest) != state.digests.end();
      if (!seen) state.digests.push_back(digest);
    }
    fleet_.digests.resize(digest_index_.size());
    for (const int digest : state.digests) fleet_.digests[static_cast<size_t>(digest)].workers.push_back(state.index);
    fleet_.workers.push_back(&state);
    LayPools(&state, &pool_of);
  }
  const size_t workers = fleet_.workers.size();
  fleet_.digests.resize(digest_index_.size());
  fleet_.takes.assign(workers, 0);
  fleet_.class_capacity.assign(class_names_.size(), {});
  fleet_.first_end_boot_micros.assign(workers, kNeverMicros);
  fleet_.lowest_preemptible.assign(workers, scheduling::kNobody);
  fleet_.free.host_bytes.assign(workers, 0);
  fleet_.free.disk_bytes.assign(workers, 0);
  fleet_.free.cpu_threads.assign(workers, 0);
  fleet_.free.attempts.assign(workers, 0);
  fleet_.free.validations.assign(workers, 0);
  fleet_.free.device_bytes.assign(fleet_.device_worker.size(), 0);
  for (const WorkerState* state : fleet_.workers) {
    WriteFree(*state);
    if (WhyNotTaking(state->slot) == nullptr) Count(*state, 1);
  }
  for (Pool& pool : fleet_.pools) {
    pool.most_free.resize((pool.devices.size() + scheduling::kBlockDevices - 1) / scheduling::kBlockDevices);
    for (size_t block = 0; block < pool.most_free.size(); ++block) WriteBlock(&pool, block);
  }
  laid_ = true;
  ++fleet_version_;
  ++kinds_version_;
}

// The worker's devices, each in the pool of its class for every model of the worker.
void SchedulerTable::LayPools(WorkerState* state, absl::flat_hash_map<std::pair<int, int>, int>* pool_of) {
  const Worker& worker = *state->slot.worker;
  state->places.clear();
  const std::string* class_name = nullptr;
  int device_class = -1;
  std::vector<int> pools;  // of that class, by the worker's digests: devices of a class stand side by side
  for (size_t i = 0; i < worker.devices.size(); ++i) {
    const int device = static_cast<int>(fleet_.device_worker.size());
    const std::string& name = worker.devices[i].facts.device_class;
    if (class_name == nullptr || name != *class_name) {
      class_name = &name;
      device_class = ClassIndex(name);
      pools.clear();
      for (const int digest : state->digests) pools.push_back(PoolOf(digest, device_class, pool_of));
    }
    const Need total = TotalOf(worker, i);
    fleet_.device_worker.push_back(state->index);
    fleet_.device_class.push_back(device_class);
    fleet_.device_total.push_back(total);
    for (const int index : pools) {
      Pool& pool = fleet_.pools[static_cast<size_t>(index)];
      state->places.push_back({index, static_cast<int>(pool.devices.size()), KindOf(total, &pool)});
      pool.devices.push_back(device);
    }
  }
}

int SchedulerTable::PoolOf(int digest, int device_class, absl::flat_hash_map<std::pair<int, int>, int>* pool_of) {
  const auto [at, added] = pool_of->emplace(std::pair(digest, device_class), static_cast<int>(fleet_.pools.size()));
  if (added) {
    fleet_.digests[static_cast<size_t>(digest)].pools.push_back(at->second);
    fleet_.pools.emplace_back();
    fleet_.pools.back().digest = digest;
    fleet_.pools.back().device_class = device_class;
  }
  return at->second;
}

void SchedulerTable::WriteFree(const WorkerState& state) {
  const Worker& worker = *state.slot.worker;
  const size_t w = static_cast<size_t>(state.index);
  int64_t host_bytes = worker.host_bytes_total - state.slot.host_bytes_missing;
  int64_t disk_bytes = worker.disk_bytes_total - state.slot.disk_bytes_missing;
  int cpu_threads = worker.cpu_threads_total;
  int attempts = limits::kMaxAttemptsPerWorker;
  int validations = 0;
  int lowest = scheduling::kNobody;
  for (size_t d = 0; d < worker.devices.size(); ++d) {
    // A CPU device's memory is its host's, which is counted there.
    fleet_.free.device_bytes[static_cast<size_t>(state.first_device) + d] = worker.devices[d].facts.device_bytes;
  }
  for (const RunningAttempt& running : state.slot.running) {
    host_bytes -= running.need.host_bytes;
    disk_bytes -= running.need.disk_bytes;
    cpu_threads -= running.need.cpu_threads;
    attempts -= running.need.attempts;
    validations += running.kind == AttemptKind::kValidate;
    if (running.preemptible_boot_micros != kNeverMicros) lowest = std::min(lowest, static_cast<int>(running.priority));
    if (running.device < 0 || running.device >= static_cast<int>(worker.devices.size())) continue;
    fleet_.free.device_bytes[static_cast<size_t>(state.first_device + running.device)] -= running.need.device_bytes;
  }
  fleet_.free.host_bytes[w] = host_bytes;
  fleet_.free.disk_bytes[w] = disk_bytes;
  fleet_.free.cpu_threads[w] = cpu_threads;
  fleet_.free.attempts[w] = attempts;
  fleet_.free.validations[w] = validations;
  fleet_.lowest_preemptible[w] = lowest;
  fleet_.first_end_boot_micros[w] =
      state.slot.running.empty() ? kNeverMicros : state.slot.running.front().end_boot_micros;
  if (!laid_) return;
  for (const scheduling::Place& place : state.places) {
    WriteBlock(&fleet_.pools[static_cast<size_t>(place.pool)],
               static_cast<size_t>(place.index / scheduling::kBlockDevices));
  }
}

void SchedulerTable::WriteBlock(Pool* pool, size_t block) {
  constexpr size_t kSize = scheduling::kBlockDevices;
  const size_t end = std::min(pool->devices.size(), (block + 1) * kSize);
  Need most;
  for (size_t i = block * kSize; i < end; ++i) {
    const size_t device = static_cast<size_t>(pool->devices[i]);
    const size_t w = static_cast<size_t>(fleet_.device_worker[device]);
    most.device_bytes = std::max(most.device_bytes, fleet_.free.device_bytes[device]);
    most.host_bytes = std::max(most.host_bytes, fleet_.free.host_bytes[w]);
    most.disk_bytes = std::max(most.disk_bytes, fleet_.free.disk_bytes[w]);
    most.cpu_threads = std::max(most.cpu_threads, fleet_.free.cpu_threads[w]);
    most.attempts = std::max(most.attempts, fleet_.free.attempts[w]);
  }
  pool->most_free[block] = most;
}

// A worker begins to take attempts, or does not any more.
void SchedulerTable::Count(const WorkerState& state, int sign) {
  const Worker& worker = *state.slot.worker;
  fleet_.takes[static_cast<size_t>(state.index)] = sign > 0;
  fleet_.taking += sign;
  AddWorker(worker, sign, &fleet_.capacity);
  int last_class = -1;
  for (size_t d = 0; d < worker.devices.size(); ++d) {
    const int64_t bytes = worker.devices[d].facts.device_bytes;
    const int device_class = fleet_.device_class[static_cast<size_t>(state.first_device) + d];
    scheduling::ResourceSum& capacity = fleet_.class_capacity[static_cast<size_t>(device_class)];
    fleet_.capacity[0] += sign * bytes;
    capacity[0] += sign * bytes;
    // Devices of one class stand side by side; their worker counts once.
    if (device_class != last_class) AddWorker(worker, sign, &capacity);
    last_class = device_class;
  }
  for (const int digest : state.digests) fleet_.digests[static_cast<size_t>(digest)].taking += sign;
  for (const scheduling::Place& place : state.places) {
    Pool& pool = fleet_.pools[static_cast<size_t>(place.pool)];
    scheduling::Kind& kind = pool.kinds[static_cast<size_t>(place.kind)];
    pool.taking += sign;
    kind.taking += sign;
    if (kind.taking == 0 || (sign > 0 && kind.taking == 1)) ++kinds_version_;
  }
}

// What does not depend on single workers stays as it is while the kinds of devices that take attempts do.
const Group& SchedulerTable::Compile(int index) {
  Group& group = groups_[static_cast<size_t>(index)];
  const bool of_workers = group.hopeless.reason != Reason::kNone || !group.avoid_worker.empty();
  if (group.compiled_for == fleet_version_) return group;
  group.compiled_for = fleet_version_;
  if (!of_workers && group.compiled_kinds == kinds_version_) return group;
  group.compiled_kinds = kinds_version_;
  group.options.clear();
  group.avoid = -1;
  group.avoid_at = -1;
  group.hopeless = Verdict();
  if (group.demands != nullptr) CompileOptions(&group);
  const bool placeable =
      group.demands != nullptr ? !group.options.empty() : fleet_.digests[static_cast<size_t>(group.digest)].taking > 0;
  if (placeable) group.hopeless = Verdict();
  if (!placeable) {
    if (group.hopeless.reason == Reason::kNone) CompileHopeless(&group);
  } else if (!group.avoid_worker.empty()) {
    CompileAvoid(&group);
  }
  return group;
}

void SchedulerTable::CompileOptions(Group* group) {
  const bool pinned = group->pinned_class >= 0;
  double fastest = std::numeric_limits<double>::infinity();
  for (const auto& [device_class, demands] : group->classes) {
    if (pinned && device_class != group->pinned_class) continue;
    Option option;
    option.device_class = device_class;
    option.pool = -1;
    for (const int pool : fleet_.digests[static_cast<size_t>(group->digest)].pools) {
      const Pool& candidate = fleet_.pools[static_cast<size_t>(pool)];
      if (candidate.device_class == device_class && candidate.taking > 0) option.pool = pool;
    }
    if (option.pool < 0) continue;
    for (const PlanPoint point : kSmallestFirst) {
      if (pinned && group->pinned_point != PlanPoint::kNone && group->pinned_point != point) continue;
      if (!At(*demands, point).fits) continue;
      if (option.smallest == PlanPoint::kNone) option.smallest = point;
      option.points[static_cast<size_t>(point) - 1] = &At(*demands, point);
    }
    if (option.smallest == PlanPoint::kNone) continue;
    const Need need = NeedOf(option.Smallest());
    if (!AnyHolds(fleet_.pools[static_cast<size_t>(option.pool)], need, &group->hopeless)) continue;
    option.step_seconds = option.Smallest().step_seconds;
    if (option.step_seconds > 0) fastest = std::min(fastest, option.step_seconds);
    group->options.push_back(option);
  }
  std::erase_if(group->options,
                [&](const Option& option) { return option.step_seconds > fastest * limits::kSlowestClassRatio; });
  std::sort(group->options.begin(), group->options.end(), [&](const Option& a, const Option& b) {
    const auto key = [](const Option& option) {
      return option.step_seconds > 0 ? option.step_seconds : std::numeric_limits<double>::infinity();
    };
    return key(a) != key(b) ? key(a) < key(b) : class_name(a.device_class) < class_name(b.device_class);
  });
}

// Whether some device of the pool that takes attempts would have room, were it empty; else `why` what is too small.
// Devices of a class may differ in size.
bool SchedulerTable::AnyHolds(const Pool& pool, const Need& need, Verdict* why) const {
  const bool holds = std::any_of(pool.kinds.begin(), pool.kinds.end(), [&](const scheduling::Kind& kind) {
    return kind.taking > 0 && Covers(kind.total, need);
  });
  if (holds || why->reason != Reason::kNone) return holds;
  for (const int device : pool.devices) {
    const int w = fleet_.device_worker[static_cast<size_t>(device)];
    if (fleet_.takes[static_cast<size_t>(w)] == 0) continue;
    const WorkerState& state = *fleet_.workers[static_cast<size_t>(w)];
    *why = Because(Reason::kExceedsEveryDevice, "on device class " + class_name(pool.device_class) + " it " +
                                                    TooSmall(need, *state.slot.worker, device - state.first_device));
    break;
  }
  return false;
}

void SchedulerTable::CompileHopeless(Group* group) {
  const Digest& digest = fleet_.digests[static_cast<size_t>(group->digest)];
  std::string seen;  // of a worker that has the model and takes nothing
  if (digest.taking == 0 && !digest.workers.empty()) {
    const WorkerSlot& slot = fleet_.workers[static_cast<size_t>(digest.workers.front())]->slot;
    seen = "worker " + slot.worker->id + ", which has model " + group->model + ", " + WhyNotTaking(slot);
  }
  if (fleet_.taking == 0) {
    group->hopeless =
        Because(Reason::kNoWorker, "no worker: " + (seen.empty() ? "none is connected that takes work" : seen));
    return;
  }
  if (digest.taking == 0) {
    group->hopeless = Because(
        Reason::kModelNotOnAnyWorker,
        seen.empty() ? "no registered worker has model " + group->model + " with the content pinned at create" : seen);
    return;
  }
  const bool pinned = group->pinned_class >= 0;
  for (const auto& [device_class, demands] : group->classes) {
    if (pinned && device_class != group->pinned_class) continue;
    const bool there = std::any_of(digest.pools.begin(), digest.pools.end(), [&, c = device_class](int pool) {
      const Pool& candidate = fleet_.pools[static_cast<size_t>(pool)];
      return candidate.device_class == c && candidate.taking > 0;
    });
    if (!there) continue;
    // The smallest point says best what is missing.
    for (const PlanPoint point : kSmallestFirst) {
      const Demand& demand = At(*demands, point);
      if (demand.fits || demand.why.empty()) continue;
      group->hopeless =
          Because(Reason::kExceedsEveryDevice, "on device class " + class_name(device_class) + " it " + demand.why);
      return;
    }
  }
  if (pinned) {
    group->hopeless =
        Because(Reason::kNoWorker,
                "its checkpoint continues bit for bit only on device class " + class_name(group->pinned_class) +
                    ", which no connected worker has (hyperparameters.allow_nonidentical_resume permits another)");
    return;
  }
  group->hopeless = Because(Reason::kNoWorker, "no connected worker with the model has a device that runs it");
}

// Whether a worker other than the avoided one could run the group's jobs, now or later; else whether another of its
// devices could, where a device is to be avoided.
void SchedulerTable::CompileAvoid(Group* group) {
  const auto avoided = workers_.find(group->avoid_worker);
  if (avoided == workers_.end()) return;
  const int avoid = avoided->second.index;
  const auto other = [&](int w) { return w != avoid && fleet_.takes[static_cast<size_t>(w)] != 0; };
  if (group->demands == nullptr) {
    const std::vector<int>& workers = fleet_.digests[static_cast<size_t>(group->digest)].workers;
    if (std::any_of(workers.begin(), workers.end(), other)) group->avoid = avoid;
    return;
  }
  for (const Option& option : group->options) {
    const Need need = NeedOf(option.Smallest());
    for (const int device : fleet_.pools[static_cast<size_t>(option.pool)].devices) {
      const int w = fleet_.device_worker[static_cast<size_t>(device)];
      if (!other(w) || !Covers(fleet_.device_total[static_cast<size_t>(device)], need)) continue;
      group->avoid = avoid;
      return;
    }
  }
  if (!group->avoid_device.empty()) CompileAvoidDevice(avoided->second, group);
}

void SchedulerTable::CompileAvoidDevice(const WorkerState& state, Group* group) {
  const std::vector<DeviceEntry>& devices = state.slot.worker->devices;
  const auto found = std::find_if(devices.begin(), devices.end(),
                                  [&](const DeviceEntry& device) { return device.id == group->avoid_device; });
  if (found == devices.end()) return;
  const int avoid_at = state.first_device + static_cast<int>(found - devices.begin());
  for (const Option& option : group->options) {
    const Need need = NeedOf(option.Smallest());
    for (const int device : fleet_.pools[static_cast<size_t>(option.pool)].devices) {
      if (fleet_.device_worker[static_cast<size_t>(device)] != state.index || device == avoid_at) continue;
      if (Covers(fleet_.device_total[static_cast<size_t>(device)], need)) group->avoid_at = avoid_at;
    }
  }
}

}  // namespace longhaul::server
