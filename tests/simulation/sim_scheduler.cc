#include "tests/simulation/sim_scheduler.h"

#include <algorithm>
#include <utility>

#include "base/limits.h"

namespace longhaul::simulation {

using namespace server;  // NOLINT: the scheduler's parts are this file's subject

SimScheduler::SimScheduler(Context* context, Backend* backend) : context_(context), backend_(backend) {}

void SimScheduler::Start() {
  if (up()) return;
  absl::Status status = backend_->Reopen();
  if (status.ok()) {
    Dispatcher::Options options = context_->options;
    // Of this run's own counter, so that a trace repeats id for id.
    options.make_id = [this] { return "sim" + std::to_string(1'000'000 + ++ids_); };
    loop_ = std::make_unique<DispatcherLoop>(options, backend_->store(), backend_->blobs(), context_->timeline.clock(),
                                             static_cast<EventSink*>(this), &planner_);
    status = loop_->Load();
  }
  if (!status.ok()) {
    loop_.reset();
    // A disk that fails while it starts; but what is on it must be readable once it does not.
    context_->Note("the scheduler cannot start: " + std::string(status.message()));
    if (absl::IsDataLoss(status)) context_->Violation("the state cannot be read: " + std::string(status.message()));
    context_->timeline.In(1'000 * kMillis, [this] { Start(); });
    return;
  }
  ++generation_;
  start_nanos_ = context_->timeline.now();
  started_ = true;
  published_.clear();
  context_->Note("the scheduler is up");
  armed_nanos_ = 0;
  Arm();
}

void SimScheduler::Crash() {
  if (!up()) return;
  context_->Note("the scheduler dies");
  last_life_ = life();
  loop_.reset();
  mailbox_.clear();
  unread_.clear();
  stills_.clear();
  answers_.clear();
  const int64_t away = context_->draws.Percent(70) ? context_->draws.Between(100, 5'000)
                                                   : context_->draws.Between(0, 2 * context_->options.worker_lost_ms);
  context_->timeline.In(away * kMillis, [this] { Start(); });
}

void SimScheduler::Post(Mail mail) {
  if (!up()) return;
  if (StandsStill() || !unread_.empty()) return unread_.push_back(std::move(mail));
  mailbox_.push_back(std::move(mail));
  Arm();
}

void SimScheduler::StandStill(int64_t nanos) {
  if (!up() || StandsStill()) return;
  const int64_t now = context_->timeline.now();
  context_->Note("the scheduler stands still for " + std::to_string(nanos / kMillis) + " ms");
  stills_.emplace_back(now, now + nanos);
  // Awake again, its dispatcher comes before whoever reads the sockets.
  context_->timeline.In(nanos, [this, generation = generation_] {
    if (up() && generation == generation_) Arm();
  });
  context_->timeline.In(nanos + context_->draws.Between(1, 50) * kMillis, [this, generation = generation_] {
    if (!up() || generation != generation_ || StandsStill()) return;
    for (Mail& mail : std::exchange(unread_, {})) mailbox_.push_back(std::move(mail));
    Arm();
  });
}

void SimScheduler::Answer(std::function<void()> answer) { answers_.push_back(std::move(answer)); }

// One timer for mail, which waits a moment for company, and for what is due by the clock.
void SimScheduler::Arm() {
  const int64_t now = context_->timeline.now();
  int64_t next = std::max(loop_->NextTurnBootNanos(), now);
  if (!mailbox_.empty()) next = std::min(next, now + context_->draws.Between(0, 3) * kMillis);
  if (armed_nanos_ > now && armed_nanos_ <= next) return;
  if (next - now > int64_t{400} * 24 * 3'600'000 * kMillis) return;
  armed_nanos_ = next;
  context_->timeline.At(next, [this, generation = generation_, next] {
    if (!up() || generation != generation_) return;
    if (armed_nanos_ == next) armed_nanos_ = 0;
    if (StandsStill()) return;
    if (mailbox_.empty() && loop_->NextTurnBootNanos() > context_->timeline.now()) return Arm();
    Turn();
  });
}

void SimScheduler::Turn() {
  std::vector<Mail> batch;
  const size_t count = std::min<size_t>(mailbox_.size(), limits::kMaxCommandsPerCommit);
  batch.assign(std::make_move_iterator(mailbox_.begin()), std::make_move_iterator(mailbox_.begin() + count));
  mailbox_.erase(mailbox_.begin(), mailbox_.begin() + static_cast<int64_t>(count));
  ++turns_;
  answers_.clear();
  loop_->Turn(&batch);
  if (backend_->lied()) {
    backend_->LieAboutCommits(0);
    return Crash();  // between the commit and its answers
  }
  if (backend_->power_is_off()) return Crash();
  for (std::function<void()>& answer : std::exchange(answers_, {})) Send(context_, std::move(answer));
  Arm();
}

// Published: dense within a process's life, and committed before.
void SimScheduler::OnEvent(const Job& job, const JobEvent& event) {
  changed_.insert(job.id);
  const auto [at, first] = published_.try_emplace(job.id, event.sequence - 1);
  if (event.sequence != at->second + 1) {
    context_->Violation("event " + std::to_string(event.sequence) + " of " + job.id + " is published after " +
                        std::to_string(at->second));
  }
  at->second = event.sequence;
  const absl::StatusOr<std::vector<JobEvent>> stored = backend_->store()->ListEvents(job.id, event.sequence - 1, 1);
  if ((!stored.ok() || stored->empty()) && !context_->deletions.contains(job.id)) {
    context_->Violation("event " + std::to_string(event.sequence) + " of " + job.id + " is published, not committed");
  }
}

void SimScheduler::OnProgress(const std::string& job_id, const MetricPoint&) { changed_.insert(job_id); }

void SimScheduler::OnJobDeleted(const std::string& job_id) {
  changed_.insert(job_id);
  if (backend_->store()->GetJob(job_id).ok()) context_->Violation(job_id + " is said to be deleted and is there");
}

}  // namespace longhaul::simulation
