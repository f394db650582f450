#include "server/dispatcher_loop.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul::server {
namespace {

absl::Status Stopping() {
  return MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "the scheduler is stopping: try again");
}

absl::Status SessionClosed() {
  return MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED",
                   "the session is not open any more: open a new one");
}

}  // namespace

void Mail::Refuse() {
  if (refuse) return refuse();
  finish(Stopping());
}

DispatcherLoop::DispatcherLoop(Dispatcher::Options options, Store* store, BlobIndex* blobs, const Clock* clock,
                               EventSink* sink, const Planner* planner)
    : core_(options, store, blobs, clock, planner), clock_(clock), sink_(sink) {}

absl::Status DispatcherLoop::Load() {
  LH_RETURN_IF_ERROR(core_.Load());
  Publish();
  return absl::OkStatus();
}

void DispatcherLoop::Turn(std::vector<Mail>* batch) {
  for (Mail& mail : *batch) {
    if (mail.apply) mail.apply(core_);
  }
  core_.Tick();
  const absl::Status committed = core_.CommitBatch();
  if (committed.ok()) {
    Failpoint("dispatcher_before_publish").IgnoreError();  // armed to crash or to sleep
    for (const Effect& effect : core_.TakeEffects()) Tell(effect);
    Publish();
  }
  for (Mail& mail : *batch) {
    Failpoint("dispatcher_before_answer").IgnoreError();  // these, too
    mail.finish(committed);
  }
  AnswerParked();
  AnswerForecasts();
}

Mail DispatcherLoop::SyncMail(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done) {
  struct State {
    SyncInput input;
    std::function<void(absl::StatusOr<SyncReply>)> done;
    std::optional<absl::StatusOr<std::string>> worker_id;
  };
  auto state = std::make_shared<State>(State{std::move(input), std::move(done), std::nullopt});
  return {[state](DispatcherCore& core) { state->worker_id.emplace(core.Sync(state->input)); },
          [this, state](const absl::Status& commit) {
            if (!commit.ok() || !state->worker_id.has_value()) {
              state->done(commit);
            } else if (!state->worker_id->ok()) {
              state->done(state->worker_id->status());
            } else {
              Park(**state->worker_id, {state->input.session_id, state->input.sync_number, 0, std::move(state->done)});
            }
          },
          nullptr};
}

std::shared_ptr<const FleetView> DispatcherLoop::fleet() const {
  std::lock_guard lock(published_mutex_);
  return fleet_;
}

DispatcherLoop::Told DispatcherLoop::told() const {
  std::lock_guard lock(published_mutex_);
  return told_;
}

void DispatcherLoop::TellWaits(bool at_once) {
  const int64_t begin = clock_->BootNanos();
  if (told_.current || (!at_once && begin < told_.again_boot_nanos)) return;
  std::shared_ptr<const WaitTable> table = core_.TellWaits();
  const int64_t again = AfterTelling(begin);
  std::lock_guard lock(published_mutex_);
  told_ = {std::move(table), true, again};
}

int64_t DispatcherLoop::AfterTelling(int64_t begin_boot_nanos) const {
  const int64_t end = clock_->BootNanos();
  const int64_t counted = std::max<int64_t>(0, end - begin_boot_nanos - limits::kFreeTellingMs * 1'000'000);
  return end + limits::kTellingRest * counted;
}

absl::StatusOr<std::optional<Explanation>> DispatcherLoop::Explain(const std::string& id) {
  TellWaits(told_.table == nullptr);
  auto explanation = core_.ExplainWait(id, *told_.table);
  if (!explanation.ok() || explanation->has_value() || told_.current) return explanation;
  // It came after the last telling, or it does not wait.
  const auto found = core_.jobs().find(id);
  if (found == core_.jobs().end() || !Waits(found->second.job)) return explanation;
  TellWaits(true);
  return core_.ExplainWait(id, *told_.table);
}

void DispatcherLoop::Forecast(Job job, std::function<void(absl::StatusOr<StartForecast>)> done) {
  if (static_cast<int>(forecasts_.size()) >= limits::kMaxForecastsWaiting) {
    return done(
        MakeError(absl::StatusCode::kUnavailable, "TOO_MANY_FORECASTS",
                  std::to_string(limits::kMaxForecastsWaiting) + " others are being told when a job would start"));
  }
  forecasts_.push_back({std::move(job), std::move(done)});
  AnswerForecasts();
}

void DispatcherLoop::AnswerForecasts() {
  while (!forecasts_.empty() && clock_->BootNanos() >= forecast_boot_nanos_) {
    WaitingForecast next = std::move(forecasts_.front());
    forecasts_.pop_front();
    const int64_t begin = clock_->BootNanos();
    absl::StatusOr<StartForecast> forecast = core_.ForecastStart(std::move(next.job));
    forecast_boot_nanos_ = AfterTelling(begin);
    next.done(std::move(forecast));
  }
}

void DispatcherLoop::Tell(const Effect& effect) {
  if (const auto* event = std::get_if<EventEffect>(&effect)) {
    sink_->OnEvent(event->job, event->event);
  } else if (const auto* progress = std::get_if<ProgressEffect>(&effect)) {
    sink_->OnProgress(progress->job_id, progress->point);
  } else if (const auto* deleted = std::get_if<DeletedEffect>(&effect)) {
    sink_->OnJobDeleted(deleted->job_id);
  } else if (const auto* log = std::get_if<LogCompleteEffect>(&effect)) {
    sink_->OnLogComplete(log->job_id, log->attempt);
  }
}

// For Fleet and WaitOf, which every Create and Get ask, when they may have changed.
void DispatcherLoop::Publish() {
  const std::pair<uint64_t, uint64_t> version = core_.ViewVersion();
  if (fleet_ != nullptr && version == published_version_) return;
  auto fleet = version.first == published_version_.first && fleet_ != nullptr
                   ? fleet_
                   : std::make_shared<const FleetView>(core_.Fleet());
  published_version_ = version;
  std::lock_guard lock(published_mutex_);
  fleet_ = std::move(fleet);
  told_.current = false;
}

// An older Sync of the session is answered now, without commands: those go with the newer one, whose connection is
// surely alive.
void DispatcherLoop::Park(const std::string& worker_id, Parked parked) {
  if (!core_.SessionOpen(parked.session_id)) return parked.done(SessionClosed());  // lost later in the same batch
  const auto found = parked_.find(worker_id);
  if (found != parked_.end()) {
    if (found->second.session_id == parked.session_id && found->second.sync_number > parked.sync_number) {
      return parked.done(core_.MakeLeases(worker_id));
    }
    const Parked older = Unpark(found);
    if (older.session_id == parked.session_id) {
      older.done(core_.MakeLeases(worker_id));
    } else {
      older.done(SessionClosed());
    }
  }
  parked.deadline_boot_nanos = clock_->BootNanos() + core_.hold_ms() * 1'000'000;
  deadlines_.insert({parked.deadline_boot_nanos, worker_id});
  parked_[worker_id] = std::move(parked);  // AnswerParked looks at it next
}

DispatcherLoop::Parked DispatcherLoop::Unpark(std::map<std::string, Parked>::iterator at) {
  Parked parked = std::move(at->second);
  deadlines_.erase({parked.deadline_boot_nanos, at->first});
  parked_.erase(at);
  return parked;
}

// Those of whom something has changed, and those that are due: not all, of whom there may be thousands.
void DispatcherLoop::AnswerParked() {
  for (const std::string& worker_id : core_.TakeStirred()) {
    const auto found = parked_.find(worker_id);
    if (found == parked_.end()) continue;
    if (!core_.SessionOpen(found->second.session_id) || core_.Urgent(worker_id)) Answer(worker_id);
  }
  const int64_t now = clock_->BootNanos();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) Answer(std::string(deadlines_.begin()->second));
}

void DispatcherLoop::Answer(const std::string& worker_id) {
  const Parked parked = Unpark(parked_.find(worker_id));
  Failpoint("dispatcher_before_sync").IgnoreError();
  if (core_.SessionOpen(parked.session_id)) {
    parked.done(core_.MakeReply(worker_id, parked.sync_number));
  } else {
    parked.done(SessionClosed());
  }
}

int64_t DispatcherLoop::NextTurnBootNanos() const {
  int64_t next = core_.NextTimerBootNanos();
  if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
  return forecasts_.empty() ? next : std::min(next, forecast_boot_nanos_);
}

void DispatcherLoop::RefuseParked() {
  for (auto& [worker_id, parked] : parked_) parked.done(Stopping());
  parked_.clear();
  deadlines_.clear();
  for (WaitingForecast& forecast : forecasts_) forecast.done(Stopping());
  forecasts_.clear();
}

}  // namespace longhaul::server
