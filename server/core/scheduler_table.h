// A snapshot in the form that a scheduling pass reads: jobs in the order of the queue, jobs of one shape under one
// number, resources as flat arrays. Kept between passes and changed in place, so that a pass after a small change costs
// little. What Plan says depends on what is in the table alone, never on the way it came there: the same as a table
// that was filled afresh (tests/server/core/scheduler_property_test.cc).
//
// The parts that only the pass, the explanations and the tests read are public values in namespace scheduling.
// Not thread-safe. Owns shared parts of what it is handed; not the jobs.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/limits.h"
#include "server/core/scheduler.h"
#include "server/core/usage.h"

namespace longhaul::server {

namespace scheduling {

inline constexpr int kNobody = 1000;

struct Entry {
  uint64_t create_number = 0;
  int64_t not_before_wall_micros = 0;
  int64_t steps_left = 0;  // 0 = not known
  const Job* job = nullptr;
  int group = 0;
  int project = 0;
  PriorityClass priority = PriorityClass::kNormal;
};

// When the backoff that was to end then ends: 0 where it is over by any account, because none is given that long. The
// clock has been set back since, perhaps by years. A minute more, for a clock that is being set right.
inline int64_t BackoffEnd(int64_t not_before_wall_micros, int64_t now_wall_micros) {
  constexpr int64_t kLongestMicros = (limits::kMaxBackoffSeconds + 60) * 1'000'000;
  return not_before_wall_micros - now_wall_micros > kLongestMicros ? 0 : not_before_wall_micros;
}

// The waiting jobs of a project in a class, by create_number.
struct Bucket {
  PriorityClass priority = PriorityClass::kNormal;
  int project = 0;
  std::vector<Entry> entries;
};

// Devices of a pool that are equally large, on workers that are.
struct Kind {
  Need total;
  int taking = 0;  // of them, on workers that take attempts
};

inline constexpr int kBlockDevices = 32;

// The devices of a class on workers that have a model: where the jobs of a shape may run.
struct Pool {
  int digest = 0;
  int device_class = 0;
  std::vector<int> devices;  // in the order in which they are tried
  int taking = 0;            // of them, on workers that take attempts
  std::vector<Kind> kinds;
  // By block of kBlockDevices: more than that is free on none of its devices, so that a pass leaves most blocks out.
  std::vector<Need> most_free;
};

struct Digest {
  std::vector<int> workers;
  std::vector<int> pools;
  int taking = 0;
};

// One device class that a group may run on.
struct Option {
  int pool = 0;
  int device_class = 0;
  std::array<const Demand*, 3> points{};  // by PlanPoint - 1; null = not allowed or does not fit
  PlanPoint smallest = PlanPoint::kNone;
  double step_seconds = 0;  // at the smallest point; 0 = not known

  const Demand& Smallest() const { return *points[static_cast<size_t>(smallest) - 1]; }
};

// What makes jobs a group.
struct GroupKey {
  const JobDemands* demands = nullptr;
  int digest = 0;
  int pinned_class = -1;
  PlanPoint pinned_point = PlanPoint::kNone;
  Need validation;
  std::string avoid_worker;
  std::string avoid_device;
  bool operator==(const GroupKey&) const = default;
  template <class H>
  friend H AbslHashValue(H h, const GroupKey& key) {
    return H::combine(std::move(h), key.demands, key.digest, key.pinned_class, static_cast<int>(key.pinned_point),
                      key.validation.disk_bytes, key.avoid_worker, key.avoid_device);
  }
};

// Jobs that run in the same places and take the same there: same shape (or size of the dataset to validate), model, pin
// and worker or device to avoid.
struct Group {
  std::shared_ptr<const JobDemands> demands;  // null: validations
  std::vector<std::pair<int, const ClassDemands*>> classes;
  std::string model;
  int digest = 0;
  int pinned_class = -1;
  PlanPoint pinned_point = PlanPoint::kNone;
  std::string avoid_worker;
  std::string avoid_device;  // of that worker, where its device failed; else ""
  Need validation;           // where demands is null
  int waiting = 0;
  GroupKey key;

  // Of the fleet as it is: see SchedulerTable::Compile.
  uint64_t compiled_for = 0;
  uint64_t compiled_kinds = 0;
  std::vector<Option> options;  // fastest first; empty: `hopeless` says why
  int avoid = -1;               // worker that is skipped
  int avoid_at = -1;            // device of the fleet that is skipped
  Verdict hopeless;

  bool Avoids(int worker, int device) const { return worker == avoid || (device >= 0 && device == avoid_at); }
  bool AvoidsAny() const { return avoid >= 0 || avoid_at >= 0; }
};

constexpr size_t kPriorityClasses = 3;

struct Project {
  std::string name;
  Quota quota;
  double share = 0;
  // Of running attempts of kind TRAIN.
  int jobs = 0;
  Need held;
  std::array<int, kPriorityClasses> buckets = {-1, -1, -1};  // by PriorityClass - 1; -1 = none yet
};

// Of a running attempt what a pass asks of all of them.
struct Release {
  int64_t end_boot_micros = 0;
  int64_t preemptible_boot_micros = kNeverMicros;
  int device = -1;  // of the worker's; -1 = none
  PriorityClass priority = PriorityClass::kNormal;
  Need need;
};

// A worker's device as a pool has it.
struct Place {
  int pool = 0;
  int index = 0;  // into its devices
  int kind = 0;   // into its kinds
};

struct WorkerState {
  WorkerSlot slot;                    // running by predicted end
  std::vector<int> running_projects;  // as slot.running; -1 = none
  std::vector<Release> releases;      // as slot.running
  int index = 0;
  int first_device = 0;
  std::vector<Place> places;
  std::vector<int> digests;
};

// Of ResourceVector, exactly: what comes and goes again leaves what there was.
using ResourceSum = std::array<int64_t, kResources>;

// One entry a worker or a device, in the order in which they are tried. A pass works on a copy of the free ones.
struct FreeResources {
  std::vector<int64_t> host_bytes;
  std::vector<int64_t> disk_bytes;
  std::vector<int> cpu_threads;
  std::vector<int> attempts;
  std::vector<int> validations;
  std::vector<int64_t> device_bytes;
};

struct Fleet {
  std::vector<WorkerState*> workers;
  std::vector<uint8_t> takes;
  std::vector<int64_t> first_end_boot_micros;  // of what runs on the worker; kNeverMicros = nothing
  std::vector<int> lowest_preemptible;         // PriorityClass of what may be preempted now or later; kNobody = nothing
  FreeResources free;
  std::vector<int> device_worker;
  std::vector<int> device_class;
  std::vector<Need> device_total;           // of the device and its worker
  std::vector<ResourceSum> class_capacity;  // of devices that take attempts, by class
  ResourceSum capacity{};                   // of workers that take attempts
  std::vector<Pool> pools;
  std::vector<Digest> digests;
  int taking = 0;  // workers
};

}  // namespace scheduling

// Why a worker takes no new attempts: "is draining"; null where it does.
const char* WhyNotTaking(const WorkerSlot& slot);
// Of the worker's total, taken by what is no attempt: of host RAM and disk, where `reason` is that they are short.
int64_t MissingOf(const WorkerSlot& slot, Reason reason);
// Null where it does not rest.
const DeviceRest* RestOf(const WorkerSlot& slot, int device);
// On the empty worker.
bool EverFits(const Need& need, const Worker& worker, int device);
// "needs 40.00 GiB of device memory; worker w1 has 24.00 GiB in all". REQUIRES: not EverFits.
std::string TooSmall(const Need& need, const Worker& worker, int device);

class SchedulerTable {
 public:
  explicit SchedulerTable(Quotas quotas = {}) : quotas_(std::move(quotas)) {}
  SchedulerTable(const SchedulerTable&) = delete;
  SchedulerTable& operator=(const SchedulerTable&) = delete;

  // Add or replace. A job is named by its create_number, a worker by its id.
  void PutWaiting(const WaitingJob& waiting);
  // Room for so many waiting jobs, so that putting them makes none.
  void Reserve(size_t jobs) { bucket_of_.reserve(jobs); }
  void RemoveWaiting(uint64_t create_number);
  void PutWorker(WorkerSlot slot);
  void RemoveWorker(const std::string& id);
  void SetReachable(const std::string& id, bool reachable);
  void SetShare(const std::string& project, double share);
  // As it was made. Names of projects, classes and models are kept while it lives, used or not: names() grows.
  void Clear();
  size_t names() const { return projects_.size() + class_names_.size() + digest_index_.size(); }

  PlanResult Plan(PlanTime now);
  PlanResult Decide(PlanTime now);

  // What projects hold, and what workers that take attempts offer together: for the ledger of usage.
  std::map<std::string, ResourceVector> Held() const;
  ResourceVector Capacity();

  // ---- For the pass and the explanations ----
  // Brings the derived parts up to date; nothing below may be read before.
  void Settle();
  // The group's options under the present fleet.
  const scheduling::Group& Compile(int group);
  const scheduling::Fleet& fleet() const { return fleet_; }
  const std::vector<scheduling::Bucket>& buckets() const { return buckets_; }
  const std::vector<scheduling::Project>& projects() const { return projects_; }
  size_t groups() const { return groups_.size(); }
  const scheduling::Group& group(int index) const { return groups_[static_cast<size_t>(index)]; }
  const scheduling::Entry* Find(uint64_t create_number) const;
  const std::string& class_name(int device_class) const { return class_names_[static_cast<size_t>(device_class)]; }
  size_t size() const { return bucket_of_.size(); }

 private:
  int ProjectIndex(const std::string& name);
  int ClassIndex(const std::string& name);
  int DigestIndex(const std::string& digest);
  int GroupOf(const WaitingJob& waiting);
  int BucketOf(PriorityClass priority, int project);
  void RemoveEntry(int bucket, uint64_t create_number);
  void CountRunning(const scheduling::WorkerState& state, int sign);
  scheduling::GroupKey KeyOf(const WaitingJob& waiting);
  void WriteFree(const scheduling::WorkerState& state);
  void WriteBlock(scheduling::Pool* pool, size_t block);
  void Lay();
  int PoolOf(int digest, int device_class, absl::flat_hash_map<std::pair<int, int>, int>* pool_of);
  void LayPools(scheduling::WorkerState* state, absl::flat_hash_map<std::pair<int, int>, int>* pool_of);
  void Count(const scheduling::WorkerState& state, int sign);
  void ChangeFlags(const scheduling::WorkerState& state, const char* why_not_before);
  void CompileOptions(scheduling::Group* group);
  void CompileHopeless(scheduling::Group* group);
  bool AnyHolds(const scheduling::Pool& pool, const Need& need, Verdict* why) const;
  void CompileAvoid(scheduling::Group* group);
  void CompileAvoidDevice(const scheduling::WorkerState& state, scheduling::Group* group);

  const Quotas quotas_;
  std::map<std::string, scheduling::WorkerState> workers_;
  std::vector<scheduling::Bucket> buckets_;
  absl::flat_hash_map<uint64_t, int> bucket_of_;
  std::vector<scheduling::Group> groups_;
  std::vector<int> free_groups_;
  absl::flat_hash_map<scheduling::GroupKey, int> group_index_;
  std::vector<scheduling::Project> projects_;
  absl::flat_hash_map<std::string, int> project_index_;
  std::vector<std::string> class_names_;
  absl::flat_hash_map<std::string, int> class_index_;
  absl::flat_hash_map<std::string, int> digest_index_;
  scheduling::Fleet fleet_;
  bool laid_ = false;           // the flat arrays are of workers_
  uint64_t fleet_version_ = 1;  // who takes attempts, and why others do not
  uint64_t kinds_version_ = 1;  // which kinds of devices take attempts
};

}  // namespace longhaul::server
