// Workers' sessions: opened, synced, told what to do.
#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "model/memory_plan.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

// An answer with a start may still be on its way when the next Sync or two are sent. A Sync that many numbers later
// that does not list the attempt shows that the start never arrived.
constexpr int64_t kSyncsUntilUnheard = 3;
// An attempt that the worker has named before: no Sync in flight is as old as that.
constexpr int kSyncsUntilGone = 3;
// And of one that was let go of: a number may be sent while an earlier one, which failed, is sent again with what has
// become of the attempt meanwhile.
constexpr int64_t kSyncsUntilForgotten = 8;

bool Lists(const std::vector<AttemptReport>& reports, const Hold& hold) {
  return std::any_of(reports.begin(), reports.end(), [&](const AttemptReport& report) {
    return report.key.job_id == hold.key.job_id && report.key.attempt == hold.key.attempt;
  });
}

// Of a Sync that a newer one, or a newer copy of itself or of an earlier number, has overtaken: the attempt that it
// names has ended since, was acknowledged and has given its memory back. An end that is told once more is acknowledged
// once more.
bool Outdated(const WorkerRecord& record, int64_t sync_number, const AttemptReport& report) {
  const std::pair<std::string, int> key{report.key.job_id, report.key.attempt};
  if (record.holds.contains(key) || report.phase == AttemptPhase::kEnded || report.exit != ExitReason::kNone) {
    return false;
  }
  if (sync_number < record.sync_number) return true;
  const auto gone = record.gone.find(key);
  return gone != record.gone.end() && sync_number <= gone->second + kSyncsUntilForgotten;
}

// Of its StartCommand: what may be large of it.
int64_t StartBytes(const Job& job, const Hold& hold) {
  size_t bytes = job.resolved_spec.size() + job.data_report.size();
  if (hold.memory_plan_json != nullptr) bytes += hold.memory_plan_json->size();
  if (job.last_checkpoint.has_value()) bytes += job.last_checkpoint->files.size() * limits::kMaxArtifactNameBytes;
  return static_cast<int64_t>(bytes);
}

absl::Status TooMany(const char* what, size_t count, int most) {
  return MakeError(absl::StatusCode::kInvalidArgument, "LIMIT_EXCEEDED",
                   std::to_string(count) + " " + what + "; at most " + std::to_string(most));
}

absl::Status CheckReports(const std::vector<AttemptReport>& reports) {
  if (reports.size() > static_cast<size_t>(limits::kMaxReportsPerSync)) {
    return TooMany("attempts", reports.size(), limits::kMaxReportsPerSync);
  }
  for (const AttemptReport& report : reports) {
    if (report.key.job_id.size() <= static_cast<size_t>(limits::kMaxJobIdBytes)) continue;
    return InvalidField("attempts.key.job_id", "has " + std::to_string(report.key.job_id.size()) + " bytes; at most " +
                                                   std::to_string(limits::kMaxJobIdBytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status DispatcherCore::CheckWorker(const SessionInput& input) const {
  const Worker& worker = input.worker;
  const bool plain =
      !worker.id.empty() && static_cast<int>(worker.id.size()) <= limits::kMaxWorkerIdBytes &&
      std::all_of(worker.id.begin(), worker.id.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (!plain) {
    return InvalidField("worker_id", "must be 1 to " + std::to_string(limits::kMaxWorkerIdBytes) +
                                         " printable characters without spaces");
  }
  if (input.protocol_version < kWorkerProtocolVersion - 1 || input.protocol_version < 1) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "WORKER_TOO_OLD",
                     "worker " + worker.id + " speaks protocol " + std::to_string(input.protocol_version) +
                         "; this scheduler accepts " + std::to_string(std::max(1, kWorkerProtocolVersion - 1)) +
                         " to " + std::to_string(kWorkerProtocolVersion) + ": upgrade the worker");
  }
  if (input.protocol_version > kWorkerProtocolVersion) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "WORKER_TOO_NEW",
                     "worker " + worker.id + " speaks protocol " + std::to_string(input.protocol_version) +
                         "; this scheduler knows up to " + std::to_string(kWorkerProtocolVersion) +
                         ": upgrade the scheduler first");
  }
  if (worker.models.size() > static_cast<size_t>(limits::kMaxModelsPerWorker)) {
    return TooMany("models", worker.models.size(), limits::kMaxModelsPerWorker);
  }
  LH_RETURN_IF_ERROR(CheckReports(input.attempts));
  std::set<std::string> devices;
  for (const DeviceEntry& device : worker.devices) {
    if (device.id.empty() || !devices.insert(device.id).second) {
      return InvalidField("inventory.devices.id", "\"" + device.id + "\" is empty or comes twice");
    }
    const absl::Status facts = ValidateDeviceFacts(device.facts);
    if (!facts.ok()) return Annotate(facts, "inventory.devices[" + device.id + "]");
  }
  if (worker.host_bytes_total < 0 || worker.disk_bytes_total < 0 || worker.cpu_threads_total < 0) {
    return InvalidField("inventory", "has a negative size");
  }
  return absl::OkStatus();
}

// Who may be forgotten so that a new one has room: the longest away of the caller's own, so that nobody who makes up
// names takes those of others; else the longest away of all, after a day. "" = nobody. One that an operator drains
// stays: it would come back undrained.
std::string DispatcherCore::AwayWorker(const std::string& caller) const {
  const int64_t oldest = clock_->WallMicros() - limits::kForgetWorkerForRoomMs * 1000;
  std::tuple<bool, int64_t> best{true, oldest};  // of others; when it was seen
  std::string away;
  for (const auto& [id, record] : workers_) {
    if (record.online || !record.holds.empty() || record.worker->draining) continue;
    const std::tuple<bool, int64_t> here{record.worker->owner != caller,
                                         std::max(record.last_sync_wall_micros, record.worker->seen_wall_micros)};
    if (here >= best) continue;
    best = here;
    away = id;
  }
  return away;
}

// A worker's id is its first caller's: another one would end its session and get its attempts.
absl::StatusOr<std::string> DispatcherCore::OwnerAfter(const SessionInput& input) const {
  const auto known = workers_.find(input.worker.id);
  const std::string owner =
      known == workers_.end() || known->second.worker == nullptr ? "" : known->second.worker->owner;
  if (input.caller.empty()) return owner;
  if (owner.empty() || owner == input.caller || input.may_take_over) return input.caller;
  return MakeError(absl::StatusCode::kPermissionDenied, "WORKER_OWNED",
                   "worker " + input.worker.id +
                       " is registered with other credentials: choose another --worker-id, "
                       "or have a token made for it (longhauld token create --worker-id " +
                       input.worker.id + ")");
}

// A call may wait here while its agent gives it up and a later one is taken, of the same process or of the next one. It
// tells of attempts as they were: taken then, it would end the live session and give away what runs. It cannot know the
// name of an opening that came after it was sent. Before our first opening of the worker there is nothing to be late
// for: a call does not outlive the scheduler's process that it was sent to.
absl::Status DispatcherCore::CheckOpening(const SessionInput& input) const {
  const auto known = workers_.find(input.worker.id);
  if (!input.last_opening.has_value() || known == workers_.end()) return absl::OkStatus();
  const std::string& last = known->second.opening;
  if (last.empty() || last == *input.last_opening) return absl::OkStatus();
  return WithMetadata(MakeError(absl::StatusCode::kAborted, "OPENED_SINCE",
                                "worker " + input.worker.id + " was opened since the opening that this call names"),
                      "opening", last);
}

absl::StatusOr<SessionReply> DispatcherCore::OpenSession(SessionInput input) {
  return Command([&]() -> absl::StatusOr<SessionReply> {
    LH_RETURN_IF_ERROR(CheckWorker(input));
    const std::string id = input.worker.id;
    LH_ASSIGN_OR_RETURN(std::string owner, OwnerAfter(input));
    LH_RETURN_IF_ERROR(CheckOpening(input));
    if (!workers_.contains(id) && workers_.size() >= static_cast<size_t>(limits::kMaxWorkers)) {
      const std::string away = AwayWorker(input.caller);
      if (away.empty()) return TooMany("workers", workers_.size() + 1, limits::kMaxWorkers);
      LH_RETURN_IF_ERROR(ForgetWorker(away));
    }
    WorkerRecord& record = TouchWorker(id);
    if (!record.session_id.empty()) SetSession(record.session_id, std::nullopt);
    auto worker = std::make_shared<Worker>(std::move(input.worker));
    worker->draining = record.worker != nullptr && record.worker->draining;  // an operator's word outlives sessions
    worker->owner = std::move(owner);
    record.worker = worker;
    record.session_id = "s-" + MakeId();
    record.opening = "o-" + MakeId();
    record.online = true;
    record.leaving = input.leaving;
    record.leaving_answered = false;
    record.sync_number = 0;
    record.last_sync_boot_nanos = clock_->BootNanos();
    record.last_sync_wall_micros = clock_->WallMicros();
    worker->seen_wall_micros = record.last_sync_wall_micros;
    record.host_bytes_available = 0;
    record.disk_bytes_available = 0;
    record.registered = next_registration_++;
    record.acknowledged.clear();
    record.gone.clear();
    for (auto& [key, hold] : record.holds) {
      hold.start_sent_in = 0;
      hold.stop_sent_in = 0;
    }
    SetSession(record.session_id, id);
    LH_RETURN_IF_ERROR(Write([&](StoreTransaction& tx) { return tx.PutWorker(*worker); }));
    for (const AttemptReport& report : input.attempts) LH_RETURN_IF_ERROR(ApplyReport(id, report));
    LH_RETURN_IF_ERROR(NoteUnlisted(id, input.attempts, true, 0));
    SessionReply reply;
    reply.session_id = record.session_id;
    reply.opening = record.opening;
    reply.hold_ms = hold_ms();
    reply.lease_ms = options_.lease_ms;
    for (const auto& [key, hold] : record.holds) {
      if (hold.fenced) reply.fenced.push_back(hold.key);
    }
    RefreshFleet();
    schedule_wanted_ = true;
    return reply;
  });
}

absl::StatusOr<std::string> DispatcherCore::Sync(const SyncInput& input) {
  return Command([&]() -> absl::StatusOr<std::string> {
    const auto session = sessions_.find(input.session_id);
    if (session == sessions_.end()) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED",
                       "the session is not open any more: open a new one");
    }
    LH_RETURN_IF_ERROR(CheckReports(input.attempts));
    const std::string id = session->second;
    WorkerRecord& record = TouchWorker(id);
    const bool was_suspect = Suspect(record);
    record.last_sync_boot_nanos = clock_->BootNanos();
    record.last_sync_wall_micros = clock_->WallMicros();
    if (was_suspect || record.leaving != input.leaving) schedule_wanted_ = true;
    record.leaving = input.leaving;
    record.leaving_answered = record.leaving_answered && input.leaving;
    const std::pair<int64_t, int64_t> missing_before{HostBytesMissing(record), DiskBytesMissing(record)};
    record.host_bytes_available = std::max<int64_t>(0, input.host_bytes_available);
    record.disk_bytes_available = std::max<int64_t>(0, input.disk_bytes_available);
    for (auto& [key, hold] : record.holds) {
      // Asked again: the answer that carried the command was lost.
      if (hold.start_sent_in == input.sync_number) hold.start_sent_in = 0;
      if (hold.stop_sent_in == input.sync_number) hold.stop_sent_in = 0;
    }
    const bool newest = input.sync_number > record.sync_number;
    if (newest) {
      std::erase_if(record.gone,
                    [&](const auto& entry) { return entry.second + kSyncsUntilForgotten < input.sync_number; });
    }
    for (const AttemptReport& report : input.attempts) {
      if (!Outdated(record, input.sync_number, report)) LH_RETURN_IF_ERROR(ApplyReport(id, report));
    }
    if (newest) {
      record.sync_number = input.sync_number;
      LH_RETURN_IF_ERROR(NoteUnlisted(id, input.attempts, false, input.sync_number));
    }
    if (std::pair(HostBytesMissing(record), DiskBytesMissing(record)) != missing_before) schedule_wanted_ = true;
    return id;
  });
}

// What the worker was believed to hold and does not name.
absl::Status DispatcherCore::NoteUnlisted(const std::string& worker_id, const std::vector<AttemptReport>& listed,
                                          bool new_session, int64_t sync_number) {
  std::vector<Hold> unlisted;
  for (auto& [key, hold] : TouchWorker(worker_id).holds) {
    hold.unlisted = Lists(listed, hold) ? 0 : hold.unlisted + 1;
    if (hold.unlisted > 0) unlisted.push_back(hold);
  }
  for (const Hold& hold : unlisted) {
    if (hold.fenced) {
      EraseHold(hold, worker_id);  // gone, as it was told
      continue;
    }
    if (new_session) {
      LH_RETURN_IF_ERROR(GoneFromWorker(worker_id, hold));
      continue;
    }
    if (hold.confirmed) {
      // Its job has ended, and so has it: a write of it was refused, and its worker let go of it without our word.
      const Job& job = TouchJob(hold.key.job_id).job;
      if (!HasOpenAttempt(job) || job.attempt.number != hold.key.attempt) {
        EraseHold(hold, worker_id);
      } else if (hold.unlisted >= kSyncsUntilGone) {
        LH_RETURN_IF_ERROR(GoneFromWorker(worker_id, hold));
      }
      continue;
    }
    const bool unheard = hold.start_sent_in == 0 || sync_number >= hold.start_sent_in + kSyncsUntilUnheard;
    if (!hold.stop.has_value() || !unheard) continue;
    EraseHold(hold, worker_id);
    JobRecord& record = TouchJob(hold.key.job_id);
    if (HasOpenAttempt(record.job)) LH_RETURN_IF_ERROR(StoppedAttempt(record, "stopped before it began"));
  }
  return absl::OkStatus();
}

// A new session lists every attempt that the agent's folder has, and so does every Sync. One that is not there never
// arrived, or is gone.
absl::Status DispatcherCore::GoneFromWorker(const std::string& worker_id, const Hold& hold) {
  JobRecord& record = TouchJob(hold.key.job_id);
  Job& job = record.job;
  if (!HasOpenAttempt(job) || job.attempt.number != hold.key.attempt) {
    EraseHold(hold, worker_id);
    return absl::OkStatus();
  }
  if (hold.stop.has_value()) {
    EraseHold(hold, worker_id);
    return StoppedAttempt(record, "gone from its worker");
  }
  const bool never_ran = job.state == JobState::kStarting || job.state == JobState::kValidating;
  if (!never_ran) {
    LH_RETURN_IF_ERROR(
        LoseAttempt(record, "worker " + worker_id + " is without attempt " + std::to_string(hold.key.attempt), true));
    EraseHold(hold, worker_id);
    return absl::OkStatus();
  }
  // The same attempt is sent again, under the same epoch and the same plan.
  Hold& kept = TouchWorker(worker_id).holds.at({hold.key.job_id, hold.key.attempt});
  kept.confirmed = false;
  kept.offered = false;
  if (hold.kind != AttemptKind::kTrain || kept.memory_plan_json != nullptr) return absl::OkStatus();
  const Worker& worker = *TouchWorker(worker_id).worker;
  for (const DeviceEntry& device : worker.devices) {
    if (device.id != hold.device_id || device.facts.device_class != job.attempt.device_class) continue;
    const Demand demand = planner_.Evaluate(PlanRequestOf(job), device.facts, job.attempt.plan_point, false);
    if (!demand.fits || demand.host_bytes != hold.host_bytes || demand.device_bytes != hold.device_bytes) break;
    LH_ASSIGN_OR_RETURN(std::string plan, planner_.PlanJson(PlanRequestOf(job), device.facts, job.attempt.plan_point));
    kept.memory_plan_json = std::make_shared<const std::string>(std::move(plan));
    return absl::OkStatus();
  }
  // The worker's device or our planner has changed since: not the job's fault, and not counted.
  LH_RETURN_IF_ERROR(LoseAttempt(record, "its plan cannot be made again on worker " + worker_id, false));
  EraseHold(hold, worker_id);
  return absl::OkStatus();
}

int64_t DispatcherCore::hold_ms() const {
  // Two Syncs at least within a lease, so that one lost answer costs nothing.
  return std::max<int64_t>(1, std::min(options_.sync_hold_ms, options_.lease_ms / 3));
}

bool DispatcherCore::Suspect(const WorkerRecord& record) const {
  const int64_t age_ms = (clock_->BootNanos() - record.last_sync_boot_nanos) / 1'000'000;
  return age_ms > hold_ms() + options_.lease_ms / 4;
}

bool DispatcherCore::Urgent(const std::string& worker_id) const {
  const auto found = workers_.find(worker_id);
  if (found == workers_.end()) return false;
  if (!found->second.acknowledged.empty()) return true;
  if (found->second.leaving && !found->second.leaving_answered) return true;  // it waits for this to end
  for (const auto& [key, hold] : found->second.holds) {
    if (hold.fenced || hold.stop.has_value()) {
      if (hold.stop_sent_in == 0) return true;
    } else if (!hold.confirmed && hold.start_sent_in == 0) {
      return true;
    }
  }
  return false;
}

SyncReply DispatcherCore::MakeLeases(const std::string& worker_id) const {
  SyncReply reply;
  reply.lease_ms = options_.lease_ms;
  const auto found = workers_.find(worker_id);
  if (found == workers_.end()) return reply;
  for (const auto& [key, hold] : found->second.holds) {
    if (!hold.fenced) reply.leases.push_back(hold.key);
  }
  return reply;
}

// Those first that no answer has carried: what is sent again may be on its way already, and must not fill the answer
// for ever.
void DispatcherCore::AddStarts(std::vector<Hold*> holds, int64_t sync_number, SyncReply* reply) const {
  std::stable_partition(holds.begin(), holds.end(), [](const Hold* hold) { return hold->start_sent_in == 0; });
  int64_t sent_bytes = 0;
  for (Hold* hold : holds) {
    const Job& job = jobs_.at(hold->key.job_id).job;
    const int64_t bytes = StartBytes(job, *hold);
    // Not marked as sent: the next Sync is answered at once.
    if (!reply->starts.empty() && sent_bytes + bytes > limits::kMaxStartBytesPerAnswer) continue;
    sent_bytes += bytes;
    StartCommand start;
    start.key = hold->key;
    start.job = job;
    start.kind = hold->kind;
    start.device_id = hold->device_id;
    if (hold->memory_plan_json != nullptr) start.memory_plan_json = *hold->memory_plan_json;
    if (hold->kind == AttemptKind::kTrain) start.resume_from = job.last_checkpoint;
    hold->start_sent_in = sync_number;
    hold->offered = true;
    reply->starts.push_back(std::move(start));
  }
}

SyncReply DispatcherCore::MakeReply(const std::string& worker_id, int64_t sync_number) {
  SyncReply reply = MakeLeases(worker_id);
  const auto found = workers_.find(worker_id);
  if (found == workers_.end()) return reply;
  reply.acknowledged = std::exchange(found->second.acknowledged, {});
  found->second.leaving_answered = found->second.leaving;
  std::vector<Hold*> starts;
  for (auto& [key, hold] : found->second.holds) {
    if (hold.fenced) {
      reply.stops.push_back({hold.key, StopMode::kFenced});
      hold.stop_sent_in = sync_number;
      continue;
    }
    const auto job = jobs_.find(hold.key.job_id);
    if (job == jobs_.end()) continue;
    if (hold.stop.has_value()) {
      reply.stops.push_back({hold.key, *hold.stop});
      hold.stop_sent_in = sync_number;
    } else if (!hold.confirmed) {
      starts.push_back(&hold);
    }
  }
  AddStarts(std::move(starts), sync_number, &reply);
  return reply;
}

}  // namespace longhaul::server
