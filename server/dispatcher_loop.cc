#include "server/dispatcher_loop.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace longhaul::server {
namespace {

absl::Status Stopping() {
  return MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "the scheduler is stopping: try again");
}

absl::Status SessionClosed() {
  return MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED",
                   "the session is not open any more: open a new one");
}

absl::Status Cancelled() {
  return MakeError(absl::StatusCode::kCancelled, "CANCELLED", "the caller does not wait for the answer any more");
}

absl::Status TooManyForecasts() {
  return MakeError(absl::StatusCode::kUnavailable, "TOO_MANY_FORECASTS",
                   "others are being told when a job would start: at most " +
                       std::to_string(limits::kMaxForecastsWaiting) + " wait, for at most " +
                       std::to_string(limits::kMaxForecastWaitMs) + " ms");
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
  listened_boot_nanos_ = clock_->BootNanos();
  LH_RETURN_IF_ERROR(core_.Load());
  Publish();
  return absl::OkStatus();
}

std::string DispatcherLoop::Turn(std::vector<Mail>* batch) {
  for (Mail& mail : *batch) {
    if (mail.apply) mail.apply(core_);
  }
  NoteDeafness();
  core_.Tick();
  const absl::Status committed = core_.CommitBatch();
  const std::string failure = committed.ok() ? "" : std::string(committed.message());
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
  AnswerExplains();
  AnswerForecasts();
  return failure;
}

// What workers have sent is applied before each Tick, and Ticks are listen_nanos() apart at most. Where they were not,
// the process was stopped, its machine slept or starved, or a commit hung: mail may still wait in our box, or in
// sockets that nobody has read yet.
void DispatcherLoop::NoteDeafness() {
  const int64_t now = clock_->BootNanos();
  const int64_t deaf = now - std::exchange(listened_boot_nanos_, now);
  if (deaf > 2 * core_.listen_nanos()) core_.NoteDeaf(deaf);
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

void DispatcherLoop::Explain(const std::string& id,
                             std::function<void(absl::StatusOr<std::optional<Explanation>>)> done) {
  TellWaits(told_.table == nullptr);
  auto explanation = core_.ExplainWait(id, *told_.table);
  if (!explanation.ok() || explanation->has_value() || told_.current) return done(std::move(explanation));
  // It came after the last telling, or it does not wait.
  const auto found = core_.jobs().find(id);
  if (found == core_.jobs().end() || !Waits(found->second.job)) return done(std::move(explanation));
  const int64_t deadline = clock_->BootNanos() + limits::kMaxForecastWaitMs * kNanosPerMs;
  const bool in_vain = told_.again_boot_nanos > deadline;
  if (in_vain || static_cast<int>(explains_.size()) >= limits::kMaxExplainsWaiting) return done(std::move(explanation));
  explains_.push_back({id, told_.table, deadline, std::move(done)});
}

// One telling for all of them.
void DispatcherLoop::AnswerExplains() {
  if (explains_.empty()) return;
  TellWaits(false);
  const int64_t now = clock_->BootNanos();
  while (!explains_.empty() &&
         (explains_.front().told != told_.table || explains_.front().deadline_boot_nanos <= now)) {
    const WaitingExplain next = std::move(explains_.front());
    explains_.pop_front();
    next.done(core_.ExplainWait(next.job_id, *told_.table));
  }
}

void DispatcherLoop::Forecast(Job job, std::function<bool()> cancelled,
                              std::function<void(absl::StatusOr<StartForecast>)> done) {
  const auto full = [this] { return static_cast<int>(forecasts_.size()) >= limits::kMaxForecastsWaiting; };
  if (full()) DropForecasts([](const WaitingForecast& waiting) { return waiting.cancelled(); }, Cancelled());
  const int64_t deadline = clock_->BootNanos() + limits::kMaxForecastWaitMs * kNanosPerMs;
  if (full() || forecast_boot_nanos_ > deadline) return done(TooManyForecasts());
  forecasts_.push_back({std::move(job), deadline, std::move(cancelled), std::move(done)});
  AnswerForecasts();
}

void DispatcherLoop::AnswerForecasts() {
  while (!forecasts_.empty() && clock_->BootNanos() >= forecast_boot_nanos_) {
    WaitingForecast next = std::move(forecasts_.front());
    forecasts_.pop_front();
    if (next.cancelled()) {
      next.done(Cancelled());
      continue;
    }
    const int64_t begin = clock_->BootNanos();
    absl::StatusOr<StartForecast> forecast = core_.ForecastStart(std::move(next.job));
    forecast_boot_nanos_ = AfterTelling(begin);
    next.done(std::move(forecast));
  }
  if (forecasts_.empty()) return;
  const int64_t now = clock_->BootNanos();
  DropForecasts([now](const WaitingForecast& waiting) { return waiting.deadline_boot_nanos <= now; },
                TooManyForecasts());
}

void DispatcherLoop::DropForecasts(const std::function<bool(const WaitingForecast&)>& which, const absl::Status& why) {
  std::deque<WaitingForecast> kept;
  for (WaitingForecast& waiting : forecasts_) {
    if (which(waiting)) {
      waiting.done(why);
    } else {
      kept.push_back(std::move(waiting));
    }
  }
  forecasts_ = std::move(kept);
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
  if (!core_.workers().empty()) next = std::min(next, listened_boot_nanos_ + core_.listen_nanos());
  if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
  if (!forecasts_.empty()) next = std::min({next, forecast_boot_nanos_, forecasts_.front().deadline_boot_nanos});
  if (!explains_.empty()) next = std::min({next, told_.again_boot_nanos, explains_.front().deadline_boot_nanos});
  return next;
}

void DispatcherLoop::RefuseParked() {
  for (auto& [worker_id, parked] : parked_) parked.done(Stopping());
  parked_.clear();
  deadlines_.clear();
  for (WaitingForecast& forecast : forecasts_) forecast.done(Stopping());
  forecasts_.clear();
  for (WaitingExplain& explain : explains_) explain.done(Stopping());
  explains_.clear();
}

}  // namespace longhaul::server
