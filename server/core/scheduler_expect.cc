// SchedulerPass: when those who wait may start, as far as anybody can tell. Told only.
#include <algorithm>
#include <cmath>

#include "base/limits.h"
#include "server/core/scheduler_pass.h"

namespace longhaul::server {

using scheduling::Entry;
using scheduling::Group;
using scheduling::Option;
using scheduling::WorkerState;

// How busy each class is with what runs, and what projects with a quota hold.
void SchedulerPass::CountBacklog() {
  for (const scheduling::Project& project : projects_) quota_lines_.emplace_back(project.quota, now_.boot_micros);
  for (const WorkerState* state : fleet_.workers) {
    for (size_t i = 0; i < state->releases.size(); ++i) {
      const scheduling::Release& running = state->releases[i];
      const int project = state->running_projects[i];
      if (project >= 0 && state->slot.running[i].kind == AttemptKind::kTrain) {
        HoldQuota(project, running.need, running.end_boot_micros);
      }
      if (running.device < 0 || running.end_boot_micros == kNeverMicros) continue;
      const size_t device_class =
          static_cast<size_t>(fleet_.device_class[static_cast<size_t>(state->first_device + running.device)]);
      const scheduling::ResourceSum& capacity = fleet_.class_capacity[device_class];
      const auto part = [&](size_t resource, int64_t taken) {
        return capacity[resource] > 0 ? static_cast<double>(taken) / static_cast<double>(capacity[resource]) : 0.0;
      };
      const double fraction = std::max(
          {part(0, running.need.device_bytes), part(1, running.need.host_bytes), part(3, running.need.cpu_threads)});
      const double left = static_cast<double>(running.end_boot_micros - now_.boot_micros) / 1e6;
      backlog_seconds_[device_class] += std::max(0.0, left) * fraction;
    }
  }
}

// Only of projects that have one.
void SchedulerPass::HoldQuota(int project, const Need& need, int64_t end) {
  if (!telling_ || projects_[static_cast<size_t>(project)].quota == Quota()) return;
  quota_lines_[static_cast<size_t>(project)].Take(need, end);
}

// With a reservation its start. Else as if the class of devices were a fluid that takes the jobs before this one in
// turn, each for its predicted seconds times the part of the class that it takes; and not before the project's quota
// has room.
int64_t SchedulerPass::Expect(const Entry& entry, const Group& group, int verdict, int reservation) {
  const Reason reason = result_.verdicts[static_cast<size_t>(verdict)].reason;
  if (group.hopeless.reason != Reason::kNone) return 0;
  if (group.demands == nullptr) return ExpectValidation(entry, group);
  if (group.options.empty()) return 0;
  const Option& option = group.options.front();
  const size_t device_class = static_cast<size_t>(option.device_class);
  const int64_t duration = DurationMicros(entry, option, option.smallest);
  int64_t start = now_.boot_micros + std::llround(backlog_seconds_[device_class] * 1e6);
  if (reservation >= 0) {
    start = result_.reservations[static_cast<size_t>(reservation)].start_boot_micros;
    reserved_until_[device_class] = std::max(reserved_until_[device_class], start);
  } else {
    start = std::max(start, reserved_until_[device_class]);
  }
  if (reason != Reason::kBackoff) {  // who is in backoff has no place in the line of its project yet
    const Need need = NeedOf(option.Smallest());
    const int64_t room = quota_lines_[static_cast<size_t>(entry.project)].Earliest(need);
    if (room == kNeverMicros) return 0;
    start = std::max(start, room);
    HoldQuota(entry.project, need, start + duration);
  }
  // Who waits for a quota keeps nobody else from the devices.
  if (reason != Reason::kWaitingForQuota) {
    double& fraction = StateOf(entry.group).fraction;
    if (fraction < 0) fraction = FractionOf(option);
    backlog_seconds_[device_class] += static_cast<double>(duration) / 1e6 * fraction;
  }
  return std::max(now_.ToWall(start), scheduling::BackoffEnd(entry.not_before_wall_micros, now_.wall_micros));
}

// The first moment that some worker has room for it, and behind it the validations of the same model, as many at once
// as their workers have CPU threads.
int64_t SchedulerPass::ExpectValidation(const Entry& entry, const Group& group) {
  GroupState& state = StateOf(entry.group);
  if (state.validation_boot_micros < 0) FirstValidation(group, &state);
  if (state.validation_boot_micros == kNeverMicros) return 0;
  double& backlog_seconds = validation_backlog_seconds_[static_cast<size_t>(group.digest)];
  const int64_t start = state.validation_boot_micros + std::llround(backlog_seconds * 1e6);
  backlog_seconds += static_cast<double>(limits::kValidateSeconds) / state.validation_slots;
  return std::max(now_.ToWall(start), scheduling::BackoffEnd(entry.not_before_wall_micros, now_.wall_micros));
}

void SchedulerPass::FirstValidation(const Group& group, GroupState* state) {
  state->validation_boot_micros = kNeverMicros;
  state->validation_slots = 0;
  const int64_t duration = limits::kValidateSeconds * 1'000'000;
  for (const int w : fleet_.digests[static_cast<size_t>(group.digest)].workers) {
    if (told_looks_ >= limits::kMaxDeviceLooksPerPass) return;
    ++told_looks_;
    if (fleet_.takes[static_cast<size_t>(w)] == 0 || w == group.avoid) continue;
    const WorkerState& worker = *fleet_.workers[static_cast<size_t>(w)];
    const int slots = std::max(1, worker.slot.worker->cpu_threads_total);
    state->validation_slots += slots;
    int64_t at = timeline_.Earliest(w, -1, group.validation, duration);
    if (at == kNeverMicros) continue;
    if (free_.validations[static_cast<size_t>(w)] >= slots) {
      // By end; what this pass has started itself is not among them.
      const std::vector<RunningAttempt>& running = worker.slot.running;
      const auto first = std::find_if(running.begin(), running.end(), [](const RunningAttempt& attempt) {
        return attempt.kind == AttemptKind::kValidate;
      });
      at = std::max(at, first == running.end() ? now_.boot_micros + duration : first->end_boot_micros);
    }
    state->validation_boot_micros = std::min(state->validation_boot_micros, at);
  }
}

// Of the class's capacity that one job takes.
double SchedulerPass::FractionOf(const Option& option) const {
  const Demand& demand = option.Smallest();
  const scheduling::ResourceSum wanted = {demand.device_bytes, demand.host_bytes, demand.disk_bytes,
                                          demand.cpu_threads};
  const scheduling::ResourceSum& capacity = fleet_.class_capacity[static_cast<size_t>(option.device_class)];
  double fraction = 0;
  for (size_t r = 0; r < wanted.size(); ++r) {
    if (wanted[r] <= 0) continue;
    fraction =
        std::max(fraction, capacity[r] > 0 ? static_cast<double>(wanted[r]) / static_cast<double>(capacity[r]) : 1.0);
  }
  return std::min(fraction, 1.0);
}

}  // namespace longhaul::server
