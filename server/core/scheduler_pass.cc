#include "server/core/scheduler_pass.h"

#include <algorithm>
#include <tuple>

#include "base/limits.h"

namespace longhaul::server {

using scheduling::Bucket;
using scheduling::Entry;
using scheduling::Group;

namespace {

// Of a worker's, no device's.
Verdict ShortHere(Reason reason, const WorkerSlot& slot, int64_t needed, int64_t free, int64_t total) {
  Verdict verdict;
  verdict.reason = reason;
  verdict.worker = slot.worker;
  verdict.needed = needed;
  verdict.free = free;
  verdict.total = total;
  verdict.others = MissingOf(slot, reason);
  return verdict;
}

}  // namespace

SchedulerPass::SchedulerPass(SchedulerTable* table, PlanTime now, bool telling)
    : table_(*table),
      fleet_(table->fleet()),
      now_(now),
      telling_(telling),
      free_(fleet_.free),
      timeline_(fleet_, free_, now.boot_micros),
      group_states_(table->groups()),
      closed_(table->groups(), 0),
      misfits_(fleet_.pools.size()),
      projects_(table->projects()),
      reserved_of_(projects_.size()),
      kept_quota_(projects_.size(), -1),
      ready_(fleet_.class_capacity.size(), 0),
      stopped_(fleet_.workers.size()),
      backlog_seconds_(fleet_.class_capacity.size(), 0),
      reserved_until_(fleet_.class_capacity.size(), 0),
      validation_backlog_seconds_(fleet_.digests.size(), 0) {
  result_.time = now;
}

PlanResult SchedulerPass::Run() {
  if (telling_) CountBacklog();
  const std::vector<const Bucket*> buckets = OrderedBuckets();
  if (telling_) result_.waits.reserve(table_.size());
  for (size_t begin = 0; begin < buckets.size();) {
    size_t end = begin + 1;
    const auto share = [&](size_t i) { return projects_[static_cast<size_t>(buckets[i]->project)].share; };
    while (end < buckets.size() && buckets[end]->priority == buckets[begin]->priority && share(end) == share(begin)) {
      ++end;
    }
    RunTier({buckets.begin() + static_cast<int64_t>(begin), buckets.begin() + static_cast<int64_t>(end)});
    begin = end;
  }
  if (static_cast<int>(result_.starts.size()) >= limits::kMaxStartsPerPass) {
    result_.look_again_boot_micros = now_.boot_micros;
  }
  result_.waiting = static_cast<int>(table_.size() - result_.starts.size());
  return std::move(result_);
}

std::vector<const Bucket*> SchedulerPass::OrderedBuckets() const {
  std::vector<const Bucket*> buckets;
  for (const Bucket& bucket : table_.buckets()) {
    if (!bucket.entries.empty()) buckets.push_back(&bucket);
  }
  std::sort(buckets.begin(), buckets.end(), [&](const Bucket* a, const Bucket* b) {
    if (a->priority != b->priority) return a->priority > b->priority;
    const scheduling::Project& x = projects_[static_cast<size_t>(a->project)];
    const scheduling::Project& y = projects_[static_cast<size_t>(b->project)];
    return std::tie(x.share, x.name) < std::tie(y.share, y.name);
  });
  return buckets;
}

// Buckets of one class and one share: their jobs by create_number.
void SchedulerPass::RunTier(const std::vector<const Bucket*>& tier) {
  if (tier.size() == 1) {
    for (const Entry& entry : tier.front()->entries) Consider(entry);
    return;
  }
  std::vector<const Entry*> merged;
  for (const Bucket* bucket : tier) {
    const auto middle = static_cast<int64_t>(merged.size());
    for (const Entry& entry : bucket->entries) merged.push_back(&entry);
    std::inplace_merge(merged.begin(), merged.begin() + middle, merged.end(),
                       [](const Entry* a, const Entry* b) { return a->create_number < b->create_number; });
  }
  for (const Entry* entry : merged) Consider(*entry);
}

bool SchedulerPass::MayReserve(const GroupState& state) const {
  return state.reservable && static_cast<int>(result_.reservations.size()) < limits::kMaxReservations;
}

// What a project holds only grows during a pass, and so does what is reserved: where its quota left an option out and
// the others had no place, none of its jobs of the group finds one.
bool SchedulerPass::MayReserve(const Entry& entry) {
  return MayReserve(StateOf(entry.group)) && !unreservable_.contains({entry.project, entry.group});
}

// Whether nothing that could be decided of the entry is left: true of most of a long queue.
bool SchedulerPass::Closed(const Entry& entry) {
  uint8_t& closed = closed_[static_cast<size_t>(entry.group)];
  if (closed != 0) return true;
  const GroupState& state = StateOf(entry.group);
  if (state.refused >= 0 && !MayReserve(state)) closed = 1;
  return closed != 0;
}

void SchedulerPass::Consider(const Entry& entry) {
  const int64_t backoff_end = scheduling::BackoffEnd(entry.not_before_wall_micros, now_.wall_micros);
  if (backoff_end > now_.wall_micros) {
    const int64_t at = now_.boot_micros + (backoff_end - now_.wall_micros);
    result_.look_again_boot_micros = std::min(result_.look_again_boot_micros, at);
    AddWait(entry, table_.Compile(entry.group), BackoffVerdict(backoff_end), -1);
    return;
  }
  if (!telling_ && Closed(entry)) return;
  const Group& group = table_.Compile(entry.group);
  if (OverQuotaEverywhere(entry, group)) {
    AddWait(entry, group, QuotaVerdict(entry, group), -1);
    return;
  }
  GroupState& state = StateOf(entry.group);
  if (group.hopeless.reason != Reason::kNone && state.refused < 0) {
    state.refused = AddVerdict(group.hopeless);
    state.reservable = false;
  }
  if (state.refused >= 0 && !MayReserve(entry)) {
    AddWait(entry, group, state.refused, -1);
  } else if (static_cast<int>(result_.starts.size()) >= limits::kMaxStartsPerPass) {
    if (behind_starts_verdict_ < 0) {
      behind_starts_verdict_ = TextVerdict(Reason::kBehindHigherPriority, "others before it are being started");
    }
    AddWait(entry, group, behind_starts_verdict_, -1);
  } else if (group.demands != nullptr) {
    ConsiderTrain(entry, group);
  } else {
    ConsiderValidation(entry, group);
  }
}

bool SchedulerPass::HasQuota(int project) const { return projects_[static_cast<size_t>(project)].quota != Quota(); }

// Whether devices were looked at for the group in this pass; for a project with a quota, which may leave some of them
// out, for its own jobs of the group.
bool SchedulerPass::Tried(const Entry& entry) {
  if (!HasQuota(entry.project)) return StateOf(entry.group).tried;
  return tried_with_quota_.contains({entry.project, entry.group});
}

void SchedulerPass::NoteTried(const Entry& entry) {
  if (Tried(entry)) return;
  ++tried_;
  if (!HasQuota(entry.project)) {
    StateOf(entry.group).tried = true;
  } else {
    tried_with_quota_.insert({entry.project, entry.group});
  }
}

void SchedulerPass::ConsiderTrain(const Entry& entry, const Group& group) {
  GroupState& state = StateOf(entry.group);
  int verdict = state.refused;
  uint8_t& closed = closed_[static_cast<size_t>(entry.group)];
  const bool deep = tried_ >= limits::kMaxSchedulingDepth && !Tried(entry);
  if (verdict < 0 && (closed != 0 || deep || looks_ >= limits::kMaxDeviceLooksPerPass)) {
    closed = 1;
    if (depth_verdict_ < 0) {
      depth_verdict_ =
          TextVerdict(Reason::kBehindHigherPriority, "more kinds of jobs are before it than a pass tries, " +
                                                         std::to_string(limits::kMaxSchedulingDepth));
    }
    AddWait(entry, group, depth_verdict_, -1);
    return;
  }
  if (verdict < 0) verdict = TryStart(entry, group);
  if (verdict < 0) return;
  int reservation = -1;
  if (MayReserve(entry)) {
    bool left_out = false;
    reservation = Reserve(entry, group, &left_out);
    if (reservation < 0 && left_out) unreservable_.insert({entry.project, entry.group});
    if (reservation < 0 && !left_out) state.reservable = false;
  }
  AddWait(entry, group, verdict, reservation);
}

void SchedulerPass::ConsiderValidation(const Entry& entry, const Group& group) {
  GroupState& state = StateOf(entry.group);
  const Need& need = group.validation;
  const int64_t end = now_.boot_micros + limits::kValidateSeconds * 1'000'000;
  Verdict nearest;
  for (const int w : fleet_.digests[static_cast<size_t>(group.digest)].workers) {
    if (fleet_.takes[static_cast<size_t>(w)] == 0 || w == group.avoid) continue;
    const WorkerSlot& slot = fleet_.workers[static_cast<size_t>(w)]->slot;
    const std::shared_ptr<const Worker>& worker = slot.worker;
    const int running = free_.validations[static_cast<size_t>(w)];
    const Need free = timeline_.FreeNow(w, -1);
    if (running >= std::max(1, worker->cpu_threads_total)) {
      if (nearest.reason == Reason::kNone) {
        nearest.reason = Reason::kWaitingForValidation;
        nearest.text =
            "worker " + worker->id + " runs " + std::to_string(running) + " validations already, one per CPU thread";
      }
    } else if (need.host_bytes > free.host_bytes) {
      nearest = ShortHere(Reason::kWaitingForHostRam, slot, need.host_bytes, free.host_bytes, worker->host_bytes_total);
    } else if (need.disk_bytes > free.disk_bytes) {
      nearest = ShortHere(Reason::kWaitingForDisk, slot, need.disk_bytes, free.disk_bytes, worker->disk_bytes_total);
    } else if (need.attempts > free.attempts) {
      nearest =
          ShortHere(Reason::kWaitingForAttempts, slot, need.attempts, free.attempts, limits::kMaxAttemptsPerWorker);
    } else if (const int delayed = timeline_.Delayed(w, -1, need, end); delayed >= 0) {
      const int verdict = DelayVerdict(delayed);
      if (telling_) nearest = result_.verdicts[static_cast<size_t>(verdict)];
    } else {
      ++free_.validations[static_cast<size_t>(w)];
      Take({w, -1}, need, end);
      Start start;
      start.job_id = entry.job->id;
      start.kind = AttemptKind::kValidate;
      start.worker_id = worker->id;
      start.demand.fits = true;
      start.demand.host_bytes = need.host_bytes;
      start.demand.disk_bytes = need.disk_bytes;
      result_.starts.push_back(std::move(start));
      return;
    }
  }
  state.reservable = false;
  state.refused = AddVerdict(std::move(nearest));
  AddWait(entry, group, state.refused, -1);
}

void SchedulerPass::AddWait(const Entry& entry, const Group& group, int verdict, int reservation) {
  if (!telling_) return;
  Wait wait;
  wait.create_number = entry.create_number;
  wait.verdict = verdict;
  wait.reservation = reservation;
  wait.expected_wall_micros = Expect(entry, group, verdict, reservation);
  result_.waits.push_back(wait);
}

// Of no meaning where nothing is told; never negative.
int SchedulerPass::AddVerdict(Verdict verdict) {
  if (!telling_) return 0;
  result_.verdicts.push_back(std::move(verdict));
  return static_cast<int>(result_.verdicts.size()) - 1;
}

int SchedulerPass::TextVerdict(Reason reason, std::string text) {
  Verdict verdict;
  verdict.reason = reason;
  verdict.text = std::move(text);
  return AddVerdict(std::move(verdict));
}

int SchedulerPass::BackoffVerdict(int64_t until_wall_micros) {
  if (!telling_) return 0;
  Verdict verdict;
  verdict.reason = Reason::kBackoff;
  verdict.until_wall_micros = until_wall_micros;
  return AddVerdict(std::move(verdict));
}

}  // namespace longhaul::server
