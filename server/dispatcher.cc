#include "server/dispatcher.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "server/dispatcher_command.h"
#include "server/dispatcher_core.h"
#include "server/dispatcher_loop.h"
#include "server/dispatcher_stats.h"
#include "spdlog/spdlog.h"

namespace longhaul::server {
namespace {

template <class T>
absl::StatusOr<T> Either(const absl::Status& commit, absl::StatusOr<T> result) {
  if (!commit.ok()) return commit;
  return result;
}
absl::Status Either(const absl::Status& commit, absl::Status result) { return commit.ok() ? result : commit; }

bool HasCheckpointOf(const DispatcherCore& core, const AttemptKey& key) {
  const auto found = core.jobs().find(key.job_id);
  if (found == core.jobs().end()) return false;
  const std::optional<Checkpoint>& last = found->second.job.last_checkpoint;
  return last.has_value() && last->attempt == key.attempt;
}

}  // namespace

class Dispatcher::Impl {
 public:
  Impl(Options options, Store* store, BlobIndex* blobs, const Clock* clock, EventSink* sink, const Planner* planner)
      : loop_(options, store, blobs, clock, sink, planner), store_(store), blobs_(blobs), clock_(clock) {}

  absl::Status Start() {
    LH_RETURN_IF_ERROR(loop_.Load());
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
  R Call(std::function<R(DispatcherCore&)> command, Audit* audit = nullptr) {
    LH_CHECK(std::this_thread::get_id() != thread_.get_id(), "the dispatcher's own thread would wait for itself");
    std::optional<R> result;
    std::promise<R> answered;
    Post({[&](DispatcherCore& core) {
            result.emplace(command(core));
            if (audit != nullptr) AddAudit(core, *result, audit);
          },
          [&](const absl::Status& commit) {
            if (audit != nullptr) audit->recorded = result.has_value() && commit.ok();
            answered.set_value(result.has_value() ? Either(commit, *std::move(result)) : R(commit));
          },
          nullptr});
    return answered.get_future().get();
  }

  // In the command's own batch: where the record cannot be written, nothing of the batch is done.
  template <class R>
  void AddAudit(DispatcherCore& core, const R& result, Audit* audit) {
    if constexpr (std::is_same_v<R, absl::StatusOr<Job>>) {
      if (result.ok()) audit->record.target = result->id;
    }
    if (audit->skip) return;
    if (!StatusOf(result).ok() && audit->take_refused_row != nullptr && !audit->take_refused_row()) return;
    SetOutcome(StatusOf(result), clock_->WallMicros(), &audit->record);
    core.AddAudit(audit->record).IgnoreError();
  }

  // Files are listed here, on the caller's thread.
  absl::StatusOr<int> CollectBlobs(const std::stop_token& stop) {
    constexpr size_t kMost = limits::kMaxBlobsCollectedPerCommit;
    const int folder = next_folder_++ % kBlobFolders;
    LH_ASSIGN_OR_RETURN(std::vector<BlobRef> unknown, UnknownBlobs(blobs_, store_, folder));
    for (int removed = 0;;) {
      const size_t rest = unknown.size() - std::min(unknown.size(), kMost);
      const std::vector<BlobRef> batch(unknown.begin() + static_cast<int64_t>(rest), unknown.end());
      unknown.resize(rest);
      LH_ASSIGN_OR_RETURN(const int step,
                          Call<absl::StatusOr<int>>([&](DispatcherCore& core) { return core.CollectBlobs(batch); }));
      removed += step;
      const bool more = step == limits::kMaxBlobsCollectedPerCommit || !unknown.empty();
      if (!more || stop.stop_requested()) return removed;
    }
  }

  // Asks about committed memory; a default value once stopped.
  template <class R>
  R Ask(std::function<R(const DispatcherCore&)> question) {
    LH_CHECK(std::this_thread::get_id() != thread_.get_id(), "the dispatcher's own thread would wait for itself");
    std::promise<R> answered;
    Post({nullptr, [&](const absl::Status&) { answered.set_value(question(loop_.core())); },
          [&] { answered.set_value(R()); }});
    return answered.get_future().get();
  }

  // Waits until `ask`, which runs on the dispatcher's thread, or what it left there says `done`.
  template <class R>
  R Later(const std::function<void(std::function<void(R)> done)>& ask) {
    LH_CHECK(std::this_thread::get_id() != thread_.get_id(), "the dispatcher's own thread would wait for itself");
    std::promise<R> answered;
    const auto done = [&answered](R result) { answered.set_value(std::move(result)); };
    Post({nullptr, [&](const absl::Status&) { ask(done); },
          [&] {
            answered.set_value(
                MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "the scheduler is stopping: try again"));
          }});
    return answered.get_future().get();
  }

  void Sync(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done) {
    Post(loop_.SyncMail(std::move(input), std::move(done)));
  }

  std::shared_ptr<const FleetView> fleet() const { return loop_.fleet(); }

  std::shared_ptr<const WaitTable> Waits() {
    LH_CHECK(std::this_thread::get_id() != thread_.get_id(), "the dispatcher's own thread would wait for itself");
    const DispatcherLoop::Told told = loop_.told();
    if (told.current || clock_->BootNanos() < told.again_boot_nanos) return told.table;
    // Shared: who asks may have gone.
    auto answered = std::make_shared<std::promise<void>>();
    std::future<void> answer = answered->get_future();
    Post({nullptr,
          [this, answered](const absl::Status&) {
            loop_.TellWaits(false);
            answered->set_value();
          },
          [answered] { answered->set_value(); }});
    answer.wait_for(std::chrono::milliseconds(limits::kMaxTellingWaitMs));
    return loop_.told().table;
  }

  // These two after the commit of their turn: they tell of what is durable.
  absl::StatusOr<std::optional<Explanation>> Explain(const std::string& id) {
    using Answer = absl::StatusOr<std::optional<Explanation>>;
    return Later<Answer>([&](const std::function<void(Answer)>& done) { loop_.Explain(id, done); });
  }
  absl::StatusOr<StartForecast> Forecast(Job job, const std::function<bool()>& cancelled) {
    using Answer = absl::StatusOr<StartForecast>;
    return Later<Answer>(
        [&](const std::function<void(Answer)>& done) { loop_.Forecast(std::move(job), cancelled, done); });
  }

  DispatcherStats Stats() {
    return Ask<DispatcherStats>([this](const DispatcherCore& core) {
      loop_.TellWaits(true);
      return core.Stats();
    });
  }

 private:
  void Loop() {
    while (true) {
      std::vector<Mail> batch;
      {
        std::unique_lock lock(mutex_);
        const int64_t wait_nanos = loop_.NextTurnBootNanos() - clock_->BootNanos();
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
      NoteCommit(loop_.Turn(&batch));
    }
    Drain();
  }

  // A store that is away fails every batch: a line now and then.
  void NoteCommit(const std::string& failure) {
    const int64_t now = clock_->BootNanos();
    if (failure.empty() || now < next_failure_line_boot_nanos_) return;
    next_failure_line_boot_nanos_ = now + limits::kServerFaultLineMs * 1'000'000;
    spdlog::error("a commit failed: {}", failure);
  }

  void Drain() {
    std::vector<Mail> left;
    {
      std::lock_guard lock(mutex_);
      left.swap(mailbox_);
    }
    for (Mail& mail : left) mail.Refuse();
    loop_.RefuseParked();
  }

  DispatcherLoop loop_;  // turned by the dispatcher's thread only
  Store* const store_;
  BlobIndex* const blobs_;
  const Clock* const clock_;
  std::atomic<unsigned> next_folder_ = 0;  // that CollectBlobs lists

  std::mutex mutex_;  // guards mailbox_, stopping_, woken_
  std::condition_variable mail_came_;
  std::vector<Mail> mailbox_;
  bool stopping_ = false;
  bool woken_ = false;

  int64_t next_failure_line_boot_nanos_ = 0;  // of its thread alone
  std::jthread thread_;
};

Dispatcher::Dispatcher(Options options, Store* store, BlobIndex* blobs, const Clock* clock, EventSink* sink,
                       const Planner* planner)
    : impl_(std::make_unique<Impl>(options, store, blobs, clock, sink, planner)) {}
Dispatcher::~Dispatcher() { Stop(); }
absl::Status Dispatcher::Start() { return impl_->Start(); }
void Dispatcher::Stop() { impl_->Stop(); }
void Dispatcher::Wake() { impl_->Wake(); }

absl::StatusOr<Job> Dispatcher::Create(CreateInput input, Audit* audit) {
  return impl_->Call<absl::StatusOr<Job>>([&](DispatcherCore& core) { return core.Create(std::move(input)); }, audit);
}
absl::StatusOr<Job> Dispatcher::Cancel(const std::string& id, Audit* audit) {
  return impl_->Call<absl::StatusOr<Job>>([&](DispatcherCore& core) { return core.Cancel(id); }, audit);
}
absl::StatusOr<Job> Dispatcher::Pause(const std::string& id, Audit* audit) {
  return impl_->Call<absl::StatusOr<Job>>([&](DispatcherCore& core) { return core.Pause(id); }, audit);
}
absl::StatusOr<Job> Dispatcher::Resume(const std::string& id, Audit* audit) {
  return impl_->Call<absl::StatusOr<Job>>([&](DispatcherCore& core) { return core.Resume(id); }, audit);
}
absl::Status Dispatcher::Delete(const std::string& id, Audit* audit) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.Delete(id); }, audit);
}
absl::Status Dispatcher::SetDraining(const std::string& worker_id, bool draining, Audit* audit) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.SetDraining(worker_id, draining); }, audit);
}
absl::StatusOr<SessionReply> Dispatcher::OpenSession(SessionInput input, Audit* audit) {
  return impl_->Call<absl::StatusOr<SessionReply>>(
      [&](DispatcherCore& core) { return core.OpenSession(std::move(input)); }, audit);
}
absl::Status Dispatcher::CommitCheckpoint(const std::string& session_id, const AttemptKey& key, Checkpoint checkpoint,
                                          Audit* audit) {
  return impl_->Call<absl::Status>(
      [&](DispatcherCore& core) {
        const bool later = HasCheckpointOf(core, key);
        absl::Status committed = core.CommitCheckpoint(session_id, key, std::move(checkpoint));
        if (audit != nullptr) audit->skip = later && committed.ok();
        return committed;
      },
      audit);
}
absl::Status Dispatcher::CommitArtifact(const std::string& session_id, const AttemptKey& key,
                                        std::vector<NamedBlob> files, std::string result, Audit* audit) {
  return impl_->Call<absl::Status>(
      [&](DispatcherCore& core) { return core.CommitArtifact(session_id, key, std::move(files), std::move(result)); },
      audit);
}
absl::Status Dispatcher::RecordBlobs(std::vector<BlobRef> blobs, const std::string& project, Audit* audit) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.RecordBlobs(blobs, project); }, audit);
}
absl::Status Dispatcher::RecordAudit(const AuditRecord& record) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.AddAudit(record); });
}
absl::StatusOr<int> Dispatcher::CollectBlobs(const std::stop_token& stop) { return impl_->CollectBlobs(stop); }
absl::Status Dispatcher::ForgetDeletedJobs(std::vector<std::string> ids) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.ForgetDeletedJobs(ids); });
}
absl::Status Dispatcher::CheckFence(const std::string& session_id, const AttemptKey& key) {
  return impl_->Call<absl::Status>([&](DispatcherCore& core) { return core.CheckFence(session_id, key); });
}
void Dispatcher::Sync(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done) {
  impl_->Sync(std::move(input), std::move(done));
}
std::vector<WorkerView> Dispatcher::Workers(const std::string& only) const {
  return impl_->Ask<std::vector<WorkerView>>([&](const DispatcherCore& core) { return core.Workers(only); });
}
std::shared_ptr<const FleetView> Dispatcher::Fleet() const {
  std::shared_ptr<const FleetView> fleet = impl_->fleet();
  return fleet == nullptr ? std::make_shared<const FleetView>() : fleet;
}
std::vector<std::optional<WaitInfo>> Dispatcher::WaitsOf(const std::vector<Job>& jobs) const {
  std::vector<std::optional<WaitInfo>> answers(jobs.size());
  if (std::none_of(jobs.begin(), jobs.end(), [](const Job& job) { return Waits(job); })) return answers;
  const auto waits = impl_->Waits();
  for (size_t i = 0; i < jobs.size() && waits != nullptr; ++i) {
    if (Waits(jobs[i])) answers[i] = waits->Find(jobs[i].create_number);
  }
  return answers;
}
std::optional<WaitInfo> Dispatcher::WaitOf(const Job& job) const { return WaitsOf({job}).front(); }
absl::StatusOr<std::optional<Explanation>> Dispatcher::Explain(const std::string& id) { return impl_->Explain(id); }
absl::StatusOr<StartForecast> Dispatcher::Forecast(Job job, const std::function<bool()>& cancelled) {
  return impl_->Forecast(std::move(job), cancelled);
}
DispatcherStats Dispatcher::Stats() const { return impl_->Stats(); }

}  // namespace longhaul::server
