#include "server/core/scheduler_table.h"

#include <algorithm>

#include "base/check.h"
#include "base/limits.h"

namespace longhaul::server {

using scheduling::Bucket;
using scheduling::Entry;
using scheduling::Fleet;
using scheduling::Group;
using scheduling::GroupKey;
using scheduling::Project;
using scheduling::WorkerState;

namespace {

// The worker of an attempt that a failure ended: not the same one again while there is another. One that was lost for
// no reason is not its worker's failure.
const std::string& AvoidedWorker(const Job& job) {
  static const std::string kNone;
  const Attempt& attempt = job.attempt;
  const bool failed = attempt.outcome == AttemptOutcome::kFailed ||
                      (attempt.outcome == AttemptOutcome::kLost && attempt.reason != Reason::kNone);
  return failed ? attempt.worker_id : kNone;
}

// Its device, where that was what failed.
const std::string& AvoidedDevice(const Job& job) {
  static const std::string kNone;
  const bool fault = job.attempt.outcome == AttemptOutcome::kFailed && job.attempt.reason == Reason::kDeviceFault;
  return fault ? job.attempt.device_id : kNone;
}

// What keeps everybody from a device that rests: something that has all of it.
RunningAttempt Resting(const Worker& worker, const DeviceRest& rest) {
  RunningAttempt running;
  running.device = rest.device;
  running.need.device_bytes = worker.devices[static_cast<size_t>(rest.device)].facts.device_bytes;
  running.end_boot_micros = rest.until_boot_micros;
  return running;
}

Entry EntryOf(const Job& job, int group, int project) {
  Entry entry;
  entry.create_number = job.create_number;
  entry.not_before_wall_micros = job.not_before_wall_micros;
  entry.job = &job;
  entry.group = group;
  entry.project = project;
  entry.priority = job.priority;
  if (job.total_steps > 0) {
    const int64_t done = job.last_checkpoint.has_value() ? job.last_checkpoint->step : 0;
    entry.steps_left = std::max<int64_t>(1, job.total_steps - done);
  }
  return entry;
}

std::vector<Entry>::iterator Place(Bucket& bucket, uint64_t create_number) {
  return std::lower_bound(bucket.entries.begin(), bucket.entries.end(), create_number,
                          [](const Entry& entry, uint64_t number) { return entry.create_number < number; });
}

}  // namespace

const char* WhyNotTaking(const WorkerSlot& slot) {
  if (!slot.reachable) return "is not connected";
  if (slot.worker->draining) return "is draining";
  if (slot.leaving) return "is shutting down";
  if (!slot.plan_matches) {
    return "is of another build (its memory plan differs from the scheduler's): upgrade it";
  }
  return nullptr;
}

const DeviceRest* RestOf(const WorkerSlot& slot, int device) {
  for (const DeviceRest& rest : slot.rests) {
    if (rest.device == device) return &rest;
  }
  return nullptr;
}

int64_t MissingOf(const WorkerSlot& slot, Reason reason) {
  if (reason == Reason::kWaitingForHostRam) return slot.host_bytes_missing;
  return reason == Reason::kWaitingForDisk ? slot.disk_bytes_missing : 0;
}

int SchedulerTable::ProjectIndex(const std::string& name) {
  const auto found = project_index_.find(name);
  if (found != project_index_.end()) return found->second;
  Project project;
  project.name = name;
  project.quota = QuotaOf(quotas_, name);
  projects_.push_back(std::move(project));
  return project_index_[name] = static_cast<int>(projects_.size()) - 1;
}

int SchedulerTable::ClassIndex(const std::string& name) {
  const auto found = class_index_.find(name);
  if (found != class_index_.end()) return found->second;
  class_names_.push_back(name);
  laid_ = false;  // arrays by class grow
  return class_index_[name] = static_cast<int>(class_names_.size()) - 1;
}

int SchedulerTable::DigestIndex(const std::string& digest) {
  const auto found = digest_index_.find(digest);
  if (found != digest_index_.end()) return found->second;
  laid_ = false;
  const int index = static_cast<int>(digest_index_.size());
  return digest_index_[digest] = index;
}

scheduling::GroupKey SchedulerTable::KeyOf(const WaitingJob& waiting) {
  const Job& job = *waiting.job;
  GroupKey key;
  key.demands = waiting.demands.get();
  key.digest = DigestIndex(job.model_digest);
  key.avoid_worker = AvoidedWorker(job);
  if (waiting.demands != nullptr) key.avoid_device = AvoidedDevice(job);
  if (waiting.demands == nullptr) {
    // It fetches the data and holds them tokenised, as training will.
    const int64_t dataset_bytes = job.train_shape.dataset_bytes;
    key.validation.host_bytes = limits::kValidateHostBytes + dataset_bytes * limits::kValidateHostBytesPerDatasetByte;
    key.validation.disk_bytes = limits::kValidateDiskBytes + dataset_bytes;
    key.validation.attempts = 1;
  } else if (!job.pinned_device_class.empty() && !job.allow_nonidentical_resume) {
    // On another class the trainer would refuse the checkpoint.
    key.pinned_class = ClassIndex(job.pinned_device_class);
    key.pinned_point = job.pinned_point;
  }
  return key;
}

int SchedulerTable::GroupOf(const WaitingJob& waiting) {
  GroupKey key = KeyOf(waiting);
  const auto found = group_index_.find(key);
  if (found != group_index_.end()) return found->second;
  int index = static_cast<int>(groups_.size());
  if (free_groups_.empty()) {
    groups_.emplace_back();
  } else {
    index = free_groups_.back();
    free_groups_.pop_back();
  }
  Group& group = groups_[static_cast<size_t>(index)];
  group.demands = waiting.demands;
  group.model = waiting.job->model;
  group.digest = key.digest;
  group.pinned_class = key.pinned_class;
  group.pinned_point = key.pinned_point;
  group.avoid_worker = key.avoid_worker;
  group.avoid_device = key.avoid_device;
  group.validation = key.validation;
  if (group.demands != nullptr) {
    for (const auto& [name, demands] : *group.demands) group.classes.emplace_back(ClassIndex(name), &demands);
  }
  group.key = key;
  group_index_.emplace(std::move(key), index);
  return index;
}

int SchedulerTable::BucketOf(PriorityClass priority, int project) {
  const size_t priority_at = static_cast<size_t>(priority) - 1;
  LH_CHECK(priority_at < scheduling::kPriorityClasses);
  int& index = projects_[static_cast<size_t>(project)].buckets[priority_at];
  if (index < 0) {
    index = static_cast<int>(buckets_.size());
    buckets_.push_back({priority, project, {}});
  }
  return index;
}

void SchedulerTable::PutWaiting(const WaitingJob& waiting) {
  const Job& job = *waiting.job;
  // Counted before the old entry goes, so that a group of one is not made anew.
  const int group = GroupOf(waiting);
  ++groups_[static_cast<size_t>(group)].waiting;
  const int project = ProjectIndex(job.project);
  const int index = BucketOf(job.priority, project);
  const auto [at, added] = bucket_of_.try_emplace(job.create_number, index);
  if (!added) {
    RemoveEntry(at->second, job.create_number);
    at->second = index;
  }
  Bucket& bucket = buckets_[static_cast<size_t>(index)];
  bucket.entries.insert(Place(bucket, job.create_number), EntryOf(job, group, project));
}

void SchedulerTable::RemoveWaiting(uint64_t create_number) {
  const auto found = bucket_of_.find(create_number);
  if (found == bucket_of_.end()) return;
  RemoveEntry(found->second, create_number);
  bucket_of_.erase(found);
}

void SchedulerTable::RemoveEntry(int index, uint64_t create_number) {
  Bucket& bucket = buckets_[static_cast<size_t>(index)];
  const auto entry = Place(bucket, create_number);
  LH_CHECK(entry != bucket.entries.end() && entry->create_number == create_number);
  Group& group = groups_[static_cast<size_t>(entry->group)];
  if (--group.waiting == 0) {
    free_groups_.push_back(entry->group);
    group_index_.erase(group.key);
    group = Group();
  }
  bucket.entries.erase(entry);
}

const Entry* SchedulerTable::Find(uint64_t create_number) const {
  const auto found = bucket_of_.find(create_number);
  if (found == bucket_of_.end()) return nullptr;
  const std::vector<Entry>& entries = buckets_[static_cast<size_t>(found->second)].entries;
  const auto entry = std::lower_bound(entries.begin(), entries.end(), create_number,
                                      [](const Entry& e, uint64_t number) { return e.create_number < number; });
  return &*entry;
}

void SchedulerTable::CountRunning(const WorkerState& state, int sign) {
  for (size_t i = 0; i < state.slot.running.size(); ++i) {
    const RunningAttempt& running = state.slot.running[i];
    if (state.running_projects[i] < 0 || running.kind != AttemptKind::kTrain) continue;
    Project& project = projects_[static_cast<size_t>(state.running_projects[i])];
    project.jobs += sign;
    project.held.device_bytes += sign * running.need.device_bytes;
    project.held.host_bytes += sign * running.need.host_bytes;
    project.held.disk_bytes += sign * running.need.disk_bytes;
    project.held.cpu_threads += sign * running.need.cpu_threads;
  }
}

void SchedulerTable::PutWorker(WorkerSlot slot) {
  for (const DeviceRest& rest : slot.rests) slot.running.push_back(Resting(*slot.worker, rest));
  std::sort(slot.running.begin(), slot.running.end(), [](const RunningAttempt& a, const RunningAttempt& b) {
    return a.end_boot_micros != b.end_boot_micros ? a.end_boot_micros < b.end_boot_micros : a.job_id < b.job_id;
  });
  const auto [at, added] = workers_.try_emplace(slot.worker->id);
  WorkerState& state = at->second;
  if (!added) CountRunning(state, -1);
  const bool same_inventory = !added && state.slot.worker == slot.worker;
  const char* const why_not_before = added ? nullptr : WhyNotTaking(state.slot);
  state.slot = std::move(slot);
  state.running_projects.clear();
  state.releases.clear();
  for (const RunningAttempt& running : state.slot.running) {
    state.running_projects.push_back(running.project.empty() ? -1 : ProjectIndex(running.project));
    const bool there = running.device < static_cast<int>(state.slot.worker->devices.size());
    state.releases.push_back({running.end_boot_micros, running.preemptible_boot_micros, there ? running.device : -1,
                              running.priority, running.need});
  }
  CountRunning(state, 1);
  if (!same_inventory) laid_ = false;
  ChangeFlags(state, why_not_before);
  if (laid_) WriteFree(state);
}

void SchedulerTable::RemoveWorker(const std::string& id) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) return;
  CountRunning(found->second, -1);
  workers_.erase(found);
  laid_ = false;
}

void SchedulerTable::SetReachable(const std::string& id, bool reachable) {
  const auto found = workers_.find(id);
  if (found == workers_.end() || found->second.slot.reachable == reachable) return;
  const char* const why_not_before = WhyNotTaking(found->second.slot);
  found->second.slot.reachable = reachable;
  ChangeFlags(found->second, why_not_before);
}

// Of a worker whose flags may have changed.
void SchedulerTable::ChangeFlags(const WorkerState& state, const char* why_not_before) {
  const char* const why_not = WhyNotTaking(state.slot);
  if (!laid_ || why_not == why_not_before) return;
  ++fleet_version_;
  if (why_not_before == nullptr) Count(state, -1);
  if (why_not == nullptr) Count(state, 1);
}

void SchedulerTable::SetShare(const std::string& project, double share) {
  projects_[static_cast<size_t>(ProjectIndex(project))].share = share;
}

void SchedulerTable::Clear() {
  workers_.clear();
  buckets_.clear();
  bucket_of_.clear();
  groups_.clear();
  free_groups_.clear();
  group_index_.clear();
  projects_.clear();
  project_index_.clear();
  class_names_.clear();
  class_index_.clear();
  digest_index_.clear();
  fleet_ = Fleet();
  laid_ = false;
}

std::map<std::string, ResourceVector> SchedulerTable::Held() const {
  std::map<std::string, ResourceVector> held;
  for (const Project& project : projects_) {
    if (project.jobs == 0) continue;
    held[project.name] = {static_cast<double>(project.held.device_bytes), static_cast<double>(project.held.host_bytes),
                          static_cast<double>(project.held.disk_bytes), static_cast<double>(project.held.cpu_threads)};
  }
  return held;
}

ResourceVector SchedulerTable::Capacity() {
  Settle();
  ResourceVector capacity{};
  std::copy(fleet_.capacity.begin(), fleet_.capacity.end(), capacity.begin());
  return capacity;
}

}  // namespace longhaul::server
