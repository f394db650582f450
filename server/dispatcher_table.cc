// What the scheduler's table holds of jobs and workers: brought up to date before a pass from what has changed since.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/units.h"
#include "model/memory_plan.h"
#include "server/core/codec.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

// What is soon over, or should be, is taken to last that long at least.
constexpr double kLeastSeconds = 5;
// And what lasts for ever by its worker's word, a life.
constexpr double kMostSeconds = 1e9;
constexpr size_t kDemandsKept = 4096;

int64_t WholeSteps(int64_t bytes, int64_t step) { return bytes <= 0 ? 0 : (bytes + step - 1) / step * step; }

ResourceVector PlannedOf(const Attempt& attempt) {
  return {static_cast<double>(attempt.device_bytes_planned), static_cast<double>(attempt.host_bytes_planned),
          static_cast<double>(attempt.disk_bytes_planned), static_cast<double>(attempt.cpu_threads_planned)};
}

}  // namespace

void DispatcherCore::RefreshTable() {
  const bool refill = table_.names() > 2 * table_names_ + limits::kMaxSpareTableNames;
  if (refill) {
    table_.Clear();
    for (const auto& [id, record] : jobs_) changed_jobs_.insert(id);
    for (const auto& [id, record] : workers_) changed_workers_.insert(id);
  }
  RefreshJobs();
  RefreshRests();
  for (const std::string& id : std::exchange(changed_workers_, {})) RefreshWorker(id);
  for (const auto& [id, record] : workers_) table_.SetReachable(id, record.online && !Suspect(record));
  if (!refill) return;
  RefreshShares();
  table_names_ = table_.names();
}

void DispatcherCore::RefreshJobs() {
  if (table_fleet_ != fleet_) {
    // The demands of every waiting job are of another fleet.
    for (const auto& [id, record] : jobs_) changed_jobs_.insert(id);
    table_fleet_ = fleet_;
  }
  for (const std::string& id : std::exchange(changed_jobs_, {})) RefreshJob(id);
}

void DispatcherCore::RefreshJob(const std::string& id) {
  const auto found = jobs_.find(id);
  const auto marked = marks_.find(id);
  const bool live = found != jobs_.end() && !IsTerminal(found->second.job.state);
  if (marked != marks_.end()) {
    deadlines_.erase({marked->second.deadline_wall_micros, id});
    const bool waits = live && Waits(found->second.job);
    if (!waits && marked->second.waiting_number != 0) table_.RemoveWaiting(marked->second.waiting_number);
    if (!live) marks_.erase(marked);
  }
  if (!live) return;
  JobRecord& record = found->second;
  const Job& job = record.job;
  Mark mark;
  if (Waits(job)) {
    mark.waiting_number = job.create_number;
    table_.PutWaiting({&job, job.state == JobState::kQueued ? DemandsOf(record) : nullptr});
  }
  if (job.deadline_wall_micros != 0 && job.state != JobState::kCancelling) {
    mark.deadline_wall_micros = job.deadline_wall_micros;
    deadlines_.insert({job.deadline_wall_micros, id});
  }
  if (HasOpenAttempt(job)) changed_workers_.insert(job.attempt.worker_id);  // its end is predicted from the job
  marks_[id] = mark;
}

void DispatcherCore::RefreshWorker(const std::string& id) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) {
    table_.RemoveWorker(id);
  } else {
    table_.PutWorker(SlotOf(found->second));
  }
}

// A rest ends, and a fault is forgotten, by the clock alone: outside of any command, for an undo that brings it back is
// refreshed again.
void DispatcherCore::RefreshRests() {
  rest_over_boot_nanos_ = std::numeric_limits<int64_t>::max();
  const int64_t now = clock_->BootNanos();
  const int64_t oldest = now - limits::kDeviceFaultWindowMs * kNanosPerMs;
  for (auto& [id, record] : workers_) {
    for (auto at = record.faults.begin(); at != record.faults.end();) {
      DeviceFaults& faults = at->second;
      if (faults.rest_until_boot_nanos > now) {
        rest_over_boot_nanos_ = std::min(rest_over_boot_nanos_, faults.rest_until_boot_nanos);
        ++at;
        continue;
      }
      if (std::exchange(faults.rest_until_boot_nanos, 0) != 0) changed_workers_.insert(id);
      std::erase_if(faults.counted, [&](const auto& fault) { return fault.first <= oldest; });
      at = faults.counted.empty() ? record.faults.erase(at) : std::next(at);
    }
  }
}

WorkerSlot DispatcherCore::SlotOf(const WorkerRecord& record) {
  WorkerSlot slot;
  slot.worker = record.worker;
  slot.reachable = record.online && !Suspect(record);
  slot.leaving = record.leaving;
  slot.plan_matches = record.worker->plan_version == kPlanVersion;
  slot.host_bytes_missing = HostBytesMissing(record);
  slot.disk_bytes_missing = DiskBytesMissing(record);
  for (const auto& [key, hold] : record.holds) slot.running.push_back(RunningOf(record, hold));
  const std::vector<DeviceEntry>& devices = record.worker->devices;
  for (size_t i = 0; i < devices.size(); ++i) {
    const auto faults = record.faults.find(devices[i].id);
    if (faults == record.faults.end() || faults->second.rest_until_boot_nanos <= clock_->BootNanos()) continue;
    slot.rests.push_back({static_cast<int>(i), static_cast<int>(faults->second.counted.size()),
                          faults->second.rest_until_boot_nanos / 1000});
  }
  return slot;
}

// Of what the attempts there are known to use nothing is missing; what they may yet take of their plans is counted as
// theirs already.
int64_t DispatcherCore::HostBytesMissing(const WorkerRecord& record) {
  if (record.host_bytes_available <= 0) return 0;  // not told
  int64_t expected = record.worker->host_bytes_total;
  for (const auto& [key, hold] : record.holds) expected -= std::min(hold.host_bytes, hold.host_bytes_peak);
  return WholeSteps(expected - record.host_bytes_available - limits::kHostBytesSlack, limits::kHostBytesStep);
}

// What an attempt has on disk nobody measures. Once it runs it has fetched its inputs and is taken to have all that it
// was planned with, so that nothing is counted twice; before that to have nothing, so that nothing is given away twice.
int64_t DispatcherCore::DiskBytesMissing(const WorkerRecord& record) {
  if (record.disk_bytes_available <= 0) return 0;  // not told
  int64_t expected = record.worker->disk_bytes_total;
  for (const auto& [key, hold] : record.holds) {
    if (hold.phase != AttemptPhase::kStarting) expected -= hold.disk_bytes;
  }
  return WholeSteps(expected - record.disk_bytes_available, limits::kDiskBytesStep);
}

RunningAttempt DispatcherCore::RunningOf(const WorkerRecord& record, const Hold& hold) {
  const int64_t now_micros = clock_->BootNanos() / 1000;
  RunningAttempt running;
  running.job_id = hold.key.job_id;
  running.kind = hold.kind;
  running.need = {hold.device_bytes, hold.host_bytes, hold.disk_bytes, hold.cpu_threads, 1};
  const std::vector<DeviceEntry>& devices = record.worker->devices;
  for (size_t i = 0; i < devices.size(); ++i) {
    if (devices[i].id == hold.device_id) running.device = static_cast<int>(i);
  }
  running.end_boot_micros = now_micros + limits::kStopSeconds * 1'000'000;
  const auto found = jobs_.find(hold.key.job_id);
  if (hold.fenced || found == jobs_.end() || !HasOpenAttempt(found->second.job)) return running;
  JobRecord& job_record = found->second;
  const Job& job = job_record.job;
  running.project = job.project;
  running.priority = job.priority;
  running.end_boot_micros = now_micros + static_cast<int64_t>(SecondsLeft(job_record, hold) * 1e6);
  if (job.state == JobState::kRunning && !hold.stop.has_value() && job.preemptions < limits::kMaxPreemptionsPerJob) {
    running.preemptible_boot_micros = job_record.state_since_boot_nanos / 1000 + options_.preempt_min_run_ms * 1000;
  }
  return running;
}

// Until the attempt gives its resources back, as far as anybody can tell.
double DispatcherCore::SecondsLeft(JobRecord& record, const Hold& hold) {
  const Job& job = record.job;
  const double age = static_cast<double>(clock_->WallMicros() - job.attempt.start_wall_micros) / 1e6;
  if (hold.kind == AttemptKind::kValidate) {
    return std::max(static_cast<double>(limits::kValidateSeconds) - age, kLeastSeconds);
  }
  if (hold.stop.has_value() || (job.state != JobState::kRunning && job.state != JobState::kStarting)) {
    return static_cast<double>(limits::kStopSeconds);
  }
  double step_seconds = hold.step_seconds;
  if (step_seconds <= 0 && job.attempt.plan_point != PlanPoint::kNone) {
    const std::shared_ptr<const JobDemands>& demands = DemandsOf(record);
    const auto of_class = demands->find(job.attempt.device_class);
    if (of_class != demands->end()) step_seconds = At(of_class->second, job.attempt.plan_point).step_seconds;
  }
  if (step_seconds <= 0 || job.total_steps <= 0) {
    return std::max(static_cast<double>(limits::kAssumedRunSeconds) - age, kLeastSeconds);
  }
  const int64_t steps = std::max<int64_t>(0, job.total_steps - hold.last_step);
  const double seconds = static_cast<double>(steps) * step_seconds;
  return std::min(seconds + static_cast<double>(limits::kAttemptOverheadSeconds), kMostSeconds);
}

void DispatcherCore::RefreshShares() {
  usage_.SetHeld(table_.Held(), clock_->BootNanos() / 1000);
  const ResourceVector capacity = table_.Capacity();
  // A copy of the names: SetShare may add a project.
  std::vector<std::string> names;
  for (const scheduling::Project& project : table_.projects()) names.push_back(project.name);
  for (const std::string& name : names) table_.SetShare(name, usage_.Share(name, capacity));
}

// A restart forgets what projects have used but for what the last attempts tell: those of all live jobs, however long
// they run, and of the newest others.
absl::Status DispatcherCore::RestoreUsage() {
  usage_.SetHeld({}, clock_->BootNanos() / 1000);
  const int64_t now = clock_->WallMicros();
  const auto add = [&](const Job& job) {
    const Attempt& attempt = job.attempt;
    if (attempt.kind != AttemptKind::kTrain || attempt.start_wall_micros == 0) return;
    const int64_t end = attempt.end_wall_micros == 0 ? now : attempt.end_wall_micros;
    usage_.AddPast(job.project, PlannedOf(attempt), static_cast<double>(end - attempt.start_wall_micros) / 1e6,
                   static_cast<double>(now - end) / 1e6);
  };
  for (const auto& [id, record] : jobs_) add(record.job);
  JobFilter filter;
  filter.page_size = limits::kMaxUsageJobsAtStart;
  LH_ASSIGN_OR_RETURN(const JobPage page, store_->ListJobs(filter));
  for (const Job& job : page.jobs) {
    if (!jobs_.contains(job.id)) add(job);
  }
  return absl::OkStatus();
}

const std::shared_ptr<const JobDemands>& DispatcherCore::DemandsOf(JobRecord& record) {
  if (record.demands == nullptr || record.demands_fleet != fleet_) {
    record.demands = DemandsOf(PlanRequestOf(record.job));
    record.demands_fleet = fleet_;
  }
  return record.demands;
}

std::shared_ptr<const JobDemands> DispatcherCore::DemandsOf(const PlanRequest& request) {
  if (demands_by_shape_.size() > kDemandsKept + jobs_.size()) {
    std::erase_if(demands_by_shape_, [](const auto& entry) { return entry.second.use_count() == 1; });
  }
  std::shared_ptr<const JobDemands>& shared =
      demands_by_shape_[EncodeShapes(request.model, request.train) + "/" +
                        std::to_string(static_cast<int>(request.share)) + "/" + std::to_string(request.share_bytes) +
                        "/" + std::to_string(request.total_steps) + (request.compute_of_device ? "d" : "")];
  if (shared == nullptr) {
    JobDemands demands;
    for (const auto& [device_class, facts] : classes_) demands[device_class] = DemandsOn(planner_, request, facts);
    shared = std::make_shared<const JobDemands>(std::move(demands));
  }
  return shared;
}

std::shared_ptr<const WaitTable> DispatcherCore::TellWaits() {
  RefreshTable();
  waits_ = std::make_shared<const WaitTable>(table_.Plan(Now()));
  return waits_;
}

absl::StatusOr<std::optional<Explanation>> DispatcherCore::ExplainWait(const std::string& id, const WaitTable& told) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) {
    LH_RETURN_IF_ERROR(store_->GetJob(id).status());
    return std::optional<Explanation>();
  }
  RefreshTable();
  return longhaul::server::Explain(&table_, told.result(), found->second.job, Now());
}

absl::StatusOr<StartForecast> DispatcherCore::ForecastStart(Job job) {
  RefreshTable();
  job.id = "estimate";
  job.state = JobState::kQueued;
  job.create_number = std::numeric_limits<uint64_t>::max();
  table_.SetShare(job.project, usage_.Share(job.project, table_.Capacity()));  // it may have nothing else here
  return longhaul::server::Forecast(&table_, {&job, DemandsOf(PlanRequestOf(job))}, Now());
}

}  // namespace longhaul::server
