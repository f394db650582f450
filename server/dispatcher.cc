#include "server/dispatcher.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/dispatcher_core.h"
#include "server/dispatcher_stats.h"

namespace longhaul::server {
namespace {

absl::Status Stopping() {
  return MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "the scheduler is stopping: try again");
}

absl::Status SessionClosed() {
  return MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED",
                   "the session is not open any more: open a new one");
}

// One entry of the mailbox. `apply` runs inside the batch; `finish` after its commit, with the commit's status.
struct Mail {
  std::function<void(DispatcherCore&)> apply;  // null: a question about committed memory, asked in `finish`
  std::function<void(const absl::Status&)> finish;
  std::function<void()> refuse;  // instead of finish once the dispatcher stops; null: finish with Stopping()
  void Refuse() { refuse ? refuse() : finish(Stopping()); }
};

template <class T>
absl::StatusOr<T> Either(const absl::Status& commit, absl::StatusOr<T> result) {
  if (!commit.ok()) return commit;
  return result;
}
absl::Status Either(const absl::Status& commit, absl::Status result) { return commit.ok() ? result : commit; }

}  // namespace

class Dispatcher::Impl {
 public:
  Impl(Options options, Store* store, BlobIndex* blobs, const Clock* clock, EventSink* sink, const Planner* planner)
      : core_(options, store, blobs, clock, planner), clock_(clock), sink_(sink) {}

  absl::Status Start() {
    LH_RETURN_IF_ERROR(core_.Load());
    Publish();
    thread_ = std::jthread([this] { Loop(); });
    return absl::OkStatus();
  }

  void Stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    mail_came_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  void Wake() {
    {
      std::lock_guard lock(mutex_);
      woken_ = true;
    }
    mail_came_.notify_all();
  }

  void Post(Mail mail) {
    {
      std::lock_guard lock(mutex_);
      if (!stopping_) {
        mailbox_.push_back(std::move(mail));
        mail_came_.notify_all();
        return;
      }
    }
    mail.Refuse();
  }

  // Runs `command` in a batch and waits for the commit. R: absl::Status or absl::StatusOr.
  template <class R>
  R Call(std::function<R(DispatcherCore&)> command) {
    LH_CHECK(std::this_thread::get_id() != thread_.get_id(), "the dispatcher's own thread would wait for itself");
    std::optional<R> result;
    std::promise<R> answered;
    Post({[&](DispatcherCore& core) { result.emplace(command(core)); },
          [&](const absl::Status& commit) {
            answered.set_value(result.has_value() ? Either(commit, *std::move(result)) : R(commit));
          },
          nullptr});
    return answered.get_future().get();
  }

  // Asks about committed memory; a default value once stopped.
  template <class R>
  R Ask(std::function<R(const DispatcherCore&)> question) {
    LH_CHECK(std::this_thread::get_id() != thread_.get_id(), "the dispatcher's own thread would wait for itself");
    std::promise<R> answered;
    Post(
        {nullptr, [&](const absl::Status&) { answered.set_value(question(core_)); }, [&] { answered.set_value(R()); }});
    return answered.get_future().get();
  }

  void Sync(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done) {
    struct State {
      SyncInput input;
      std::function<void(absl::StatusOr<SyncReply>)> done;
      std::optional<absl::StatusOr<std::string>> worker_id;
    };
    auto state = std::make_shared<State>(State{std::move(input), std::move(done), std::nullopt});
    Post({[state](DispatcherCore& core) { state->worker_id.emplace(core.Sync(state->input)); },
          [this, state](const absl::Status& commit) {
            if (!commit.ok() || !state->worker_id.has_value()) {
              state->done(commit);
            } else if (!state->worker_id->ok()) {
              state->done(state->worker_id->status());
            } else {
              Park(**state->worker_id, {state->input.session_id, state->input.sync_number, 0, std::move(state->done)});
            }
          },
          nullptr});
  }

  std::shared_ptr<const FleetView> fleet() const {
    std::lock_guard lock(published_mutex_);
    return fleet_;
  }
  std::shared_ptr<const std::map<std::string, int>> positions() const {
    std::lock_guard lock(published_mutex_);
    return positions_;
  }

 private:
  struct Parked {
    std::string session_id;
    int64_t sync_number = 0;
    int64_t deadline_boot_nanos = 0;
    std::function<void(absl::StatusOr<SyncReply>)> done;
  };

  void Loop() {
    while (true) {
      std::vector<Mail> batch;
      {
        std::unique_lock lock(mutex_);
        const int64_t wait_nanos = NextTimer() - clock_->BootNanos();
        const auto due = [this] { return stopping_ || woken_ || !mailbox_.empty(); };
        if (wait_nanos > 0) {
          constexpr int64_t kLongestWaitNanos = int64_t{3600} * 1'000'000'000;
          mail_came_.wait_for(lock, std::chrono::nanoseconds(std::min(wait_nanos, kLongestWaitNanos)), due);
        }
        woken_ = false;
        if (stopping_) break;
        const size_t count = std::min<size_t>(mailbox_.size(), limits::kMaxCommandsPerCommit);
        batch.assign(std::make_move_iterator(mailbox_.begin()), std::make_move_iterator(mailbox_.begin() + count));
        mailbox_.erase(mailbox_.begin(), mailbox_.begin() + static_cast<int64_t>(count));
      }
      RunBatch(&batch);
    }
    Drain();
  }

  void RunBatch(std::vector<Mail>* batch) {
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
    for (Mail& mail : *batch) mail.finish(committed);
    AnswerParked();
  }

  void Tell(const Effect& effect) {
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

  // Copies for Fleet and QueuePosition, which every Create and Get ask for, when they have changed.
  void Publish() {
    const std::pair<uint64_t, uint64_t> version = core_.ViewVersion();
    if (fleet_ != nullptr && version == published_version_) return;
    auto fleet = version.first == published_version_.first && fleet_ != nullptr
                     ? fleet_
                     : std::make_shared<const FleetView>(core_.Fleet());
    auto positions = std::make_shared<const std::map<std::string, int>>(core_.Positions());
    published_version_ = version;
    std::lock_guard lock(published_mutex_);
    fleet_ = std::move(fleet);
    positions_ = std::move(positions);
  }

  // An older Sync of the session is answered now, without commands: those go with the newer one, whose connection is
  // surely alive.
  void Park(const std::string& worker_id, Parked parked) {
    if (!core_.SessionOpen(parked.session_id)) return parked.done(SessionClosed());  // lost later in the same batch
    const auto found = parked_.find(worker_id);
    if (found != parked_.end()) {
      if (found->second.session_id == parked.session_id && found->second.sync_number > parked.sync_number) {
        return parked.done(core_.MakeLeases(worker_id));
      }
      Parked older = std::move(found->second);
      parked_.erase(found);
      if (older.session_id == parked.session_id) {
        older.done(core_.MakeLeases(worker_id));
      } else {
        older.done(SessionClosed());
      }
    }
    parked.deadline_boot_nanos = clock_->BootNanos() + core_.hold_ms() * 1'000'000;
    parked_[worker_id] = std::move(parked);  // AnswerParked looks at it next
  }

  void AnswerParked() {
    for (auto it = parked_.begin(); it != parked_.end();) {
      const bool open = core_.SessionOpen(it->second.session_id);
      const bool due = it->second.deadline_boot_nanos <= clock_->BootNanos();
      if (open && !due && !core_.Urgent(it->first)) {
        ++it;
        continue;
      }
      Parked parked = std::move(it->second);
      const std::string worker_id = it->first;
      it = parked_.erase(it);
      if (open) {
        parked.done(core_.MakeReply(worker_id, parked.sync_number));
      } else {
        parked.done(SessionClosed());
      }
    }
  }

  int64_t NextTimer() const {
    int64_t next = core_.NextTimerBootNanos();
    for (const auto& [worker_id, parked] : parked_) next = std::min(next, parked.deadline_boot_nanos);
    return next;
  }

  void Drain() {
    std::vector<Mail> left;
    {
      std::lock_guard lock(mutex_);
      left.swap(mailbox_);
    }
    for (Mail& mail : left) mail.Refuse();
    for (auto& [worker_id, parked] : parked_) parked.done(Stopping());
    parked_.clear();
  }

  // The dispatcher's thread only.
  DispatcherCore core_;
  const Clock* const clock_;
  EventSink* const sink_;
  std::map<std::string, Parked> parked_;  // by worker
  std::pair<uint64_t, uint64_t> published_version_;

  std::mutex mutex_;  // guards mailbox_, stopping_, woken_
  std::condition_variable mail_came_;
  std::vector<Mail> mailbox_;
  bool stopping_ = false;
  bool woken_ = false;

  mutable std::mutex published_mutex_;  // guards fleet_ and positions_, which the dispatcher's thread alone writes
  std::shared_ptr<const FleetView> fleet_;
  std::shared_ptr<const std::map<std::string, int>> positions_;

  std::jthread thread_;
};

Dispatcher::Dispatcher(Options options, Store* store, BlobIndex* blobs, const Clock* clock, EventSink* sink,
                       const Planner* planner)
    : impl_(std::make_unique<Impl>(options, store, blobs, clock, sink, planner)) {}
Dispatcher::~Dispatcher() { Stop(); }
absl::Status Dispatcher::Start() { return impl_->Start(); }
void Dispatcher::Stop() { impl_->Stop(); }
void Dispatcher::Wake() { impl_->Wake(); }

absl::StatusOr<Job> Dispatcher::Create(CreateInput input) {
  return impl_->Call<absl::StatusOr<Job>>([&](DispatcherCore& core) { return core.Create(std::move(input)); });
}
absl::StatusOr<Job> Dispatcher::Cancel(const std::string& id) {
  return impl_->Call<absl::StatusOr<Job>>([&](DispatcherCore& core) { return core.Cancel(id); });
}
absl::StatusOr<Job> Dispatcher::Pause(const std::string& id) {
  return impl_->Call<absl::StatusOr<Job>>([&](DispatcherCore& core) { return core.Pause(id); });
}
absl::StatusOr<Job> Dispatcher::Resume(const std::string& id) {
  return impl_->Call<absl::StatusOr<Job>>([&](DispatcherCore& core) { return core.Resume(id); });
}
absl::Status Dispatcher::Delete(const std::string& id) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.Delete(id); });
}
absl::StatusOr<Worker> Dispatcher::SetDraining(const std::string& worker_id, bool draining) {
  return impl_->Call<absl::StatusOr<Worker>>(
      [&](DispatcherCore& core) { return core.SetDraining(worker_id, draining); });
}
absl::StatusOr<SessionReply> Dispatcher::OpenSession(SessionInput input) {
  return impl_->Call<absl::StatusOr<SessionReply>>(
      [&](DispatcherCore& core) { return core.OpenSession(std::move(input)); });
}
absl::Status Dispatcher::CommitCheckpoint(const std::string& session_id, const AttemptKey& key, Checkpoint checkpoint) {
  return impl_->Call<absl::Status>(
      [&](DispatcherCore& core) { return core.CommitCheckpoint(session_id, key, std::move(checkpoint)); });
}
absl::Status Dispatcher::CommitArtifact(const std::string& session_id, const AttemptKey& key,
                                        std::vector<NamedBlob> files, std::string result) {
  return impl_->Call<absl::Status>(
      [&](DispatcherCore& core) { return core.CommitArtifact(session_id, key, std::move(files), std::move(result)); });
}
absl::Status Dispatcher::RecordBlobs(std::vector<BlobRef> blobs) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.RecordBlobs(blobs); });
}
absl::StatusOr<int> Dispatcher::CollectBlobs() {
  return impl_->Call<absl::StatusOr<int>>([](DispatcherCore& core) { return core.CollectBlobs(); });
}
absl::Status Dispatcher::ForgetDeletedJobs(std::vector<std::string> ids) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.ForgetDeletedJobs(ids); });
}
absl::Status Dispatcher::CheckFence(const std::string& session_id, const AttemptKey& key) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.CheckFence(session_id, key); });
}
void Dispatcher::Sync(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done) {
  impl_->Sync(std::move(input), std::move(done));
}
std::vector<WorkerView> Dispatcher::Workers() const {
  return impl_->Ask<std::vector<WorkerView>>([](const DispatcherCore& core) { return core.Workers(); });
}
FleetView Dispatcher::Fleet() const {
  const std::shared_ptr<const FleetView> fleet = impl_->fleet();
  return fleet == nullptr ? FleetView() : *fleet;
}
int Dispatcher::QueuePosition(const std::string& id) const {
  const auto positions = impl_->positions();
  if (positions == nullptr) return 0;
  const auto found = positions->find(id);
  return found == positions->end() ? 0 : found->second;
}
DispatcherStats Dispatcher::Stats() const {
  return impl_->Ask<DispatcherStats>([](const DispatcherCore& core) { return core.Stats(); });
}

}  // namespace longhaul::server
