// The dispatcher's thread around DispatcherCore: mailbox, batches, parked Syncs.
#include "server/dispatcher.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {
namespace {

absl::Status ShuttingDown() {
  return MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "the scheduler is shutting down; try again");
}

struct ParkedSync {
  std::string worker_id;
  std::string session_id;
  int64_t sync_number = 0;
  int64_t deadline_boot_nanos = 0;
  std::function<void(absl::StatusOr<SyncReply>)> done;
};

}  // namespace

class Dispatcher::Impl {
 public:
  Impl(Options options, Store* store, BlobIndex* blobs, const Clock* clock, EventSink* sink, const Planner* planner)
      : core_(options, store, blobs, clock, planner), clock_(clock), sink_(sink) {}

  absl::Status Start() {
    {
      std::lock_guard lock(core_mutex_);
      if (absl::Status status = core_.Load(); !status.ok()) return status;
    }
    thread_ = std::jthread([this] { Loop(); });
    return absl::OkStatus();
  }

  void Stop() {
    {
      std::lock_guard lock(mailbox_mutex_);
      if (std::exchange(stopping_, true)) return;
    }
    wake_.notify_all();
    thread_ = std::jthread();
    for (Command& command : mailbox_) command.answer(ShuttingDown());
    for (auto& [session, sync] : parked_) sync.done(ShuttingDown());
    mailbox_.clear();
    parked_.clear();
  }

  template <class Result>
  Result Call(std::function<Result(DispatcherCore&)> body) {
    auto result = std::make_shared<std::optional<Result>>();
    auto promise = std::make_shared<std::promise<Result>>();
    std::future<Result> future = promise->get_future();
    Post({[result, body = std::move(body)](DispatcherCore& core) { *result = body(core); },
          [result, promise](const absl::Status& commit) {
            promise->set_value(commit.ok() ? **result : Result(commit));
          }});
    return future.get();
  }

  void Sync(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done) {
    struct State {
      SyncInput input;
      absl::StatusOr<std::string> worker = absl::UnknownError("");
      std::function<void(absl::StatusOr<SyncReply>)> done;
    };
    auto state = std::make_shared<State>();
    state->input = std::move(input);
    state->done = std::move(done);
    Post({[state](DispatcherCore& core) { state->worker = core.Sync(state->input); },
          [this, state](const absl::Status& commit) {
            if (!commit.ok()) return state->done(commit);
            if (!state->worker.ok()) return state->done(state->worker.status());
            Park({*state->worker, state->input.session_id, state->input.sync_number,
                  clock_->BootNanos() + core_.hold_ms() * 1'000'000, std::move(state->done)});
          }});
  }

  void Wake() {
    {
      std::lock_guard lock(mailbox_mutex_);
      woken_ = true;
    }
    wake_.notify_all();
  }

  template <class F>
  auto View(F read) {
    std::lock_guard lock(core_mutex_);
    return read(core_);
  }

 private:
  struct Command {
    std::function<void(DispatcherCore&)> apply;
    std::function<void(const absl::Status&)> answer;  // after the commit, with its status
  };

  void Post(Command command) {
    {
      std::lock_guard lock(mailbox_mutex_);
      if (!stopping_) {
        mailbox_.push_back(std::move(command));
        wake_.notify_all();
        return;
      }
    }
    command.answer(ShuttingDown());
  }

  void Park(ParkedSync sync) {
    const auto older = parked_.find(sync.session_id);
    if (older != parked_.end()) {
      ParkedSync answered = std::move(older->second);
      parked_.erase(older);
      Answer(answered);
    }
    const std::string session = sync.session_id;
    parked_.emplace(session, std::move(sync));
  }

  void Answer(ParkedSync& sync) {
    absl::StatusOr<SyncReply> reply =
        MakeError(absl::StatusCode::kFailedPrecondition, "SESSION_CLOSED", "a newer session of the worker is open");
    {
      std::lock_guard lock(core_mutex_);
      if (core_.SessionOpen(sync.session_id)) reply = core_.MakeReply(sync.worker_id, sync.sync_number);
    }
    sync.done(std::move(reply));
  }

  bool Due(const ParkedSync& sync) {
    std::lock_guard lock(core_mutex_);
    return !core_.SessionOpen(sync.session_id) || core_.Urgent(sync.worker_id) ||
           clock_->BootNanos() >= sync.deadline_boot_nanos;
  }

  std::vector<Command> Wait() {
    int64_t next = 0;
    {
      std::lock_guard lock(core_mutex_);
      next = core_.NextTimerBootNanos();
    }
    for (const auto& [session, sync] : parked_) next = std::min(next, sync.deadline_boot_nanos);
    const int64_t wait_nanos = std::clamp<int64_t>(next - clock_->BootNanos(), 0, 3'600'000'000'000);
    std::unique_lock lock(mailbox_mutex_);
    wake_.wait_for(lock, std::chrono::nanoseconds(wait_nanos),
                   [this] { return stopping_ || woken_ || !mailbox_.empty(); });
    woken_ = false;
    std::vector<Command> batch;
    while (!mailbox_.empty() && batch.size() < limits::kMaxCommandsPerCommit) {
      batch.push_back(std::move(mailbox_.front()));
      mailbox_.pop_front();
    }
    return batch;
  }

  void Loop() {
    while (true) {
      std::vector<Command> batch = Wait();
      {
        std::lock_guard lock(mailbox_mutex_);
        if (stopping_ && batch.empty()) return;
      }
      absl::Status commit;
      std::vector<Effect> effects;
      {
        std::lock_guard lock(core_mutex_);
        for (Command& command : batch) command.apply(core_);
        core_.Tick();
        commit = core_.CommitBatch();
        effects = core_.TakeEffects();
      }
      for (const Effect& effect : effects) Publish(effect);
      for (Command& command : batch) command.answer(commit);
      for (auto it = parked_.begin(); it != parked_.end();) {
        if (!Due(it->second)) {
          ++it;
          continue;
        }
        ParkedSync sync = std::move(it->second);
        it = parked_.erase(it);
        Answer(sync);
      }
    }
  }

  void Publish(const Effect& effect) {
    if (const auto* event = std::get_if<EventEffect>(&effect)) sink_->OnEvent(event->job, event->event);
    if (const auto* progress = std::get_if<ProgressEffect>(&effect))
      sink_->OnProgress(progress->job_id, progress->point);
    if (const auto* deleted = std::get_if<DeletedEffect>(&effect)) sink_->OnJobDeleted(deleted->job_id);
    if (const auto* log = std::get_if<LogCompleteEffect>(&effect)) sink_->OnLogComplete(log->job_id, log->attempt);
  }

  std::mutex core_mutex_;  // guards core_
  DispatcherCore core_;
  const Clock* clock_;
  EventSink* sink_;
  std::mutex mailbox_mutex_;  // guards mailbox_, stopping_, woken_
  std::condition_variable wake_;
  std::deque<Command> mailbox_;
  bool stopping_ = false;
  bool woken_ = false;
  std::map<std::string, ParkedSync> parked_;  // by session; thread only
  std::jthread thread_;
};

Dispatcher::Dispatcher(Options options, Store* store, BlobIndex* blobs, const Clock* clock, EventSink* sink,
                       const Planner* planner)
    : impl_(std::make_unique<Impl>(options, store, blobs, clock, sink, planner)) {}
Dispatcher::~Dispatcher() { Stop(); }
absl::Status Dispatcher::Start() { return impl_->Start(); }
void Dispatcher::Stop() { impl_->Stop(); }

using JobResult = absl::StatusOr<Job>;
JobResult Dispatcher::Create(CreateInput input) {
  return impl_->Call<JobResult>([input](DispatcherCore& core) { return core.Create(input); });
}
JobResult Dispatcher::Cancel(const std::string& id) {
  return impl_->Call<JobResult>([id](DispatcherCore& core) { return core.Cancel(id); });
}
JobResult Dispatcher::Pause(const std::string& id) {
  return impl_->Call<JobResult>([id](DispatcherCore& core) { return core.Pause(id); });
}
JobResult Dispatcher::Resume(const std::string& id) {
  return impl_->Call<JobResult>([id](DispatcherCore& core) { return core.Resume(id); });
}
absl::Status Dispatcher::Delete(const std::string& id) {
  return impl_->Call<absl::Status>([id](DispatcherCore& core) { return core.Delete(id); });
}
absl::StatusOr<Worker> Dispatcher::SetDraining(const std::string& worker_id, bool draining) {
  return impl_->Call<absl::StatusOr<Worker>>(
      [=](DispatcherCore& core) { return core.SetDraining(worker_id, draining); });
}
absl::StatusOr<SessionReply> Dispatcher::OpenSession(SessionInput input) {
  return impl_->Call<absl::StatusOr<SessionReply>>([input](DispatcherCore& core) { return core.OpenSession(input); });
}
absl::Status Dispatcher::CommitCheckpoint(const std::string& session_id, const AttemptKey& key, Checkpoint checkpoint) {
  return impl_->Call<absl::Status>(
      [=](DispatcherCore& core) { return core.CommitCheckpoint(session_id, key, checkpoint); });
}
absl::Status Dispatcher::CommitArtifact(const std::string& session_id, const AttemptKey& key,
                                        std::vector<NamedBlob> files, std::string result) {
  return impl_->Call<absl::Status>(
      [=](DispatcherCore& core) { return core.CommitArtifact(session_id, key, files, result); });
}
absl::Status Dispatcher::RecordBlobs(std::vector<BlobRef> blobs) {
  return impl_->Call<absl::Status>([blobs](DispatcherCore& core) { return core.RecordBlobs(blobs); });
}
absl::StatusOr<int> Dispatcher::CollectBlobs() {
  return impl_->Call<absl::StatusOr<int>>([](DispatcherCore& core) { return core.CollectBlobs(); });
}
absl::Status Dispatcher::CheckFence(const std::string& session_id, const AttemptKey& key) {
  return impl_->Call<absl::Status>([=](DispatcherCore& core) { return core.CheckFence(session_id, key); });
}
void Dispatcher::Sync(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done) {
  impl_->Sync(std::move(input), std::move(done));
}
void Dispatcher::Wake() { impl_->Wake(); }
std::vector<WorkerView> Dispatcher::Workers() const {
  return impl_->View([](DispatcherCore& core) { return core.Workers(); });
}
FleetView Dispatcher::Fleet() const {
  return impl_->View([](DispatcherCore& core) { return core.Fleet(); });
}
int Dispatcher::QueuePosition(const std::string& id) const {
  return impl_->View([&](DispatcherCore& core) {
    const auto positions = core.Positions();
    const auto it = positions.find(id);
    return it == positions.end() ? 0 : it->second;
  });
}
DispatcherStats Dispatcher::Stats() const {
  return impl_->View([](DispatcherCore& core) { return core.Stats(); });
}

}  // namespace longhaul::server
