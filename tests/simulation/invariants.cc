#include "tests/simulation/invariants.h"

#include <algorithm>

#include "base/limits.h"
#include "server/core/codec.h"
#include "server/core/transitions.h"
#include "server/dispatcher_core.h"

namespace longhaul::simulation {

using namespace server;  // NOLINT: the domain's values are this file's subject

namespace {

constexpr int kAllEvents = 10'000;

// What a terminal job is for good: all but the peaks of its last attempt, which its worker may tell later.
std::string TerminalPart(Job job) {
  job.attempt.host_bytes_peak = 0;
  job.attempt.device_bytes_peak = 0;
  return EncodeJob(job);
}

}  // namespace

void Invariants::Check() {
  CheckTrainers();
  if (scheduler_->core() == nullptr) return;
  const bool started = scheduler_->TakeStarted();
  if (!started && scheduler_->turns() == turns_seen_) return;
  turns_seen_ = scheduler_->turns();
  // A process that has just begun has written nothing: what is new is the one's before, which died of its commit.
  writer_ = started ? scheduler_->last_life() : scheduler_->life();
  if (started) return CheckAll();
  CheckWorkers();
  for (const std::string& id : scheduler_->TakeChanged()) CheckJob(id);
}

void Invariants::CheckAll() {
  if (scheduler_->core() == nullptr) return;
  scheduler_->TakeChanged();
  CheckTrainers();
  CheckWorkers();
  std::set<std::string> ids = acknowledged_;
  for (const auto& [id, seen] : seen_) ids.insert(id);
  for (const auto& [id, record] : scheduler_->core()->jobs()) ids.insert(id);
  for (const std::string& id : ids) CheckJob(id);
  for (const std::string& problem : backend_->Problems()) Fail(problem);
}

void Invariants::CheckTrainers() {
  std::map<std::string, int> running;
  const int64_t now = context_->timeline.now();
  for (const auto& worker : *workers_) {
    for (const auto& [key, trainer] : worker->trainers()) {
      if (trainer.Running(now) && ++running[key.first] > 1) Fail(key.first + " runs twice");
    }
  }
}

void Invariants::CheckWorkers() {
  leases_.clear();
  for (const auto& [id, record] : scheduler_->core()->workers()) {
    const Worker& worker = *record.worker;
    int64_t host_bytes = 0;
    int64_t disk_bytes = 0;
    int threads = 0;
    std::map<std::string, int64_t> device_bytes;
    for (const auto& [key, hold] : record.holds) {
      host_bytes += hold.host_bytes;
      disk_bytes += hold.disk_bytes;
      threads += hold.cpu_threads;
      device_bytes[hold.device_id] += hold.device_bytes;
      if (hold.fenced) continue;
      ++leases_[hold.key.job_id];
      if (!scheduler_->core()->jobs().contains(hold.key.job_id))
        Fail(id + " holds " + key.first + ", which is unknown");
    }
    if (worker.devices.empty()) continue;  // known by an attempt alone, since its row is lost
    if (host_bytes > worker.host_bytes_total) Fail(id + ": its RAM is promised twice");
    if (disk_bytes > worker.disk_bytes_total) Fail(id + ": its disk is promised twice");
    if (threads > worker.cpu_threads_total) Fail(id + ": its threads are promised twice");
    for (const DeviceEntry& device : worker.devices) {
      if (device_bytes[device.id] > device.facts.device_bytes)
        Fail(id + ": memory of " + device.id + " promised twice");
    }
  }
  for (const auto& [job, count] : leases_) {
    if (count > 1) Fail(job + " has " + std::to_string(count) + " live leases");
  }
}

void Invariants::CheckJob(const std::string& id) {
  const absl::StatusOr<Job> job = backend_->store()->GetJob(id);
  if (absl::IsNotFound(job.status())) {
    if (acknowledged_.contains(id) && !delete_asked_.contains(id)) Fail(id + " was acknowledged and is lost");
    if (scheduler_->core()->jobs().contains(id)) Fail(id + " is in memory and not in the store");
    acknowledged_.erase(id);
    seen_.erase(id);
    return;
  }
  if (!job.ok()) return Fail(id + " cannot be read: " + std::string(job.status().message()));
  Seen& seen = seen_[id];
  if (job->sequence < seen.sequence) {
    return Fail(id + " has lost its events after " + std::to_string(job->sequence) + " of " +
                std::to_string(seen.sequence));
  }
  if (job->lease_epoch < seen.lease_epoch) Fail(id + ": its epoch went back");
  const int64_t step = job->last_checkpoint.has_value() ? job->last_checkpoint->step : 0;
  const bool open = job->lease_epoch == seen.lease_epoch && HasOpenAttempt(*job);
  if (open && step < seen.checkpoint_step) Fail(id + ": its last checkpoint went back to step " + std::to_string(step));
  seen.checkpoint_step = step;
  seen.lease_epoch = job->lease_epoch;
  CheckTerminal(*job);
  CheckEvents(*job);
  CheckMemory(*job);
  CheckBlobs(*job);
}

void Invariants::CheckTerminal(const Job& job) {
  Seen& seen = seen_[job.id];
  const std::string now = IsTerminal(job.state) ? TerminalPart(job) : "";
  if (!seen.terminal.empty() && now != seen.terminal) Fail(job.id + " was terminal and has changed");
  seen.terminal = now;
}

void Invariants::CheckEvents(const Job& job) {
  Seen& seen = seen_[job.id];
  const absl::StatusOr<std::vector<JobEvent>> events = backend_->store()->ListEvents(job.id, seen.sequence, kAllEvents);
  if (!events.ok()) return Fail(job.id + ": its events cannot be read");
  if (seen.sequence + static_cast<int64_t>(events->size()) != job.sequence) {
    return Fail(job.id + " has " + std::to_string(seen.sequence + static_cast<int64_t>(events->size())) +
                " events, and says " + std::to_string(job.sequence));
  }
  for (const JobEvent& event : *events) {
    if (event.sequence != ++seen.sequence) return Fail(job.id + ": its events have a gap");
    if (event.type == EventType::kAttempt) CheckLost(job, event);
    if (IsTerminal(seen.state)) Fail(job.id + ": something follows its terminal event");
    if (event.type != EventType::kState) continue;
    if (event.from_state != seen.state) Fail(job.id + ": an event begins in another state than the last one ended");
    const bool first = event.sequence == 1;
    if (!first && event.from_state != event.state && !TransitionLegal(event.from_state, event.state)) {
      Fail(job.id + " went from " + Name(event.from_state) + " to " + Name(event.state));
    }
    const auto cancelled = cancelled_.find(job.id);
    const bool behind = cancelled != cancelled_.end() && event.sequence > cancelled->second;
    if (behind && !IsTerminal(event.state) && event.state != JobState::kCancelling) {
      Fail(job.id + " was cancelled and is " + Name(event.state));
    }
    seen.state = event.state;
  }
  if (seen.state != job.state) Fail(job.id + " is " + Name(job.state) + ", its last event says " + Name(seen.state));
}

// Shorter ones are within what the lost time has to spare.
bool Invariants::Noticed(int64_t begin_nanos, int64_t end_nanos) const {
  return end_nanos - begin_nanos > 2 * (context_->options.worker_lost_ms * kMillis / kListensPerLostTime);
}

void Invariants::CheckLost(const Job& job, const JobEvent& event) {
  if (event.message.find("has not been heard of") == std::string::npos) return;
  for (const auto& worker : *workers_) {
    if (event.message.find("worker " + worker->id() + " has not") == std::string::npos) continue;
    const int64_t since = std::max(worker->last_heard_nanos(), writer_.start_nanos);
    int64_t silent_nanos = writer_.end_nanos - since;
    for (const auto& [begin, end] : writer_.stills) {
      if (end <= since || !Noticed(begin, end)) continue;
      silent_nanos -= std::min(end, writer_.end_nanos) - std::max(begin, since);
      if (writer_.end_nanos - end < limits::kStartGraceMs * kMillis) {
        Fail(job.id + " was taken from " + worker->id() + ", which could not be heard until " +
             std::to_string((writer_.end_nanos - end) / kMillis) + " ms before");
      }
    }
    if (silent_nanos < context_->options.worker_lost_ms * kMillis) {
      Fail(job.id + " was taken from " + worker->id() + ", heard of " + std::to_string(silent_nanos / kMillis) +
           " ms before");
    }
  }
}

void Invariants::CheckMemory(const Job& job) {
  const auto found = scheduler_->core()->jobs().find(job.id);
  if (found == scheduler_->core()->jobs().end()) {
    if (!IsTerminal(job.state)) Fail(job.id + " is " + Name(job.state) + " and not in memory");
    return;
  }
  const Job& live = found->second.job;
  if (live.state != job.state || live.sequence != job.sequence || live.lease_epoch != job.lease_epoch) {
    Fail(job.id + ": memory is not what the store says");
  }
  const bool leased = IsActive(job.state) && job.state != JobState::kValidating;
  if (leased && !HasOpenAttempt(job)) Fail(job.id + " is " + Name(job.state) + " without an open attempt");
  if (!IsActive(job.state) && HasOpenAttempt(job)) Fail(job.id + " is " + Name(job.state) + " with an open attempt");
  const auto leases = leases_.find(job.id);
  if (HasOpenAttempt(job) && (leases == leases_.end() || leases->second != 1)) {
    Fail(job.id + " has an open attempt and no lease");
  }
}

void Invariants::CheckBlobs(const Job& job) {
  const auto whole = [&](const BlobRef& blob) {
    if (!rotten_.contains(blob.sha256) && !backend_->Holds(blob)) Fail(job.id + " refers to a blob that is not whole");
  };
  for (const BlobRef& input : job.inputs) whole(input);
  for (const NamedBlob& file : job.artifact) whole(file.blob);
  if (!job.last_checkpoint.has_value()) return;
  for (const NamedBlob& file : job.last_checkpoint->files) whole(file.blob);
}

}  // namespace longhaul::simulation
