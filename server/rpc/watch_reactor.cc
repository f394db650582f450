#include "server/rpc/watch_reactor.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>

#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "server/rpc/convert.h"
#include "server/rpc/stream_reactor.h"
#include "server/rpc/visibility.h"

namespace longhaul::server {
namespace {

using Response = v1::WatchFineTuneJobResponse;

absl::Status Deleted(const std::string& job_id) {
  return MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "job " + job_id + " was deleted");
}

class WatchReactor final : public StreamReactor<Response>, public JobListener {
 public:
  WatchReactor(const WatchContext* context, StreamCaller caller, std::string job_id,
               std::optional<int64_t> after_sequence)
      : StreamReactor(context->gate, "FineTuneService/WatchFineTuneJob", std::move(caller)),
        context_(context),
        job_id_(std::move(job_id)),
        after_sequence_(after_sequence) {
    context_->gate->stats()->AddWatchStreams(1);
  }
  ~WatchReactor() override { context_->gate->stats()->AddWatchStreams(-1); }

  void Begin() {
    Live();
    // Subscribed before the job is read, so that no event falls between the two.
    if (absl::Status status = context_->hub->Subscribe(job_id_, Self()); !status.ok()) return End(status);
    PostRead(&WatchReactor::ReadSnapshot);
  }

  void OnEvent(const JobEvent& event) override {
    {
      std::lock_guard lock(mutex_);
      live_sequence_ = std::max(live_sequence_, event.sequence);
      if (snapshot_.has_value() || begun_) Keep(event);
    }
    Pump();
  }
  void OnProgress(const MetricPoint& point) override {
    {
      std::lock_guard lock(mutex_);
      progress_ = point;
    }
    Pump();
  }
  void OnHeartbeat() override {
    if (EndedByRecheck()) return;
    {
      std::lock_guard lock(mutex_);
      heartbeat_due_ = true;
    }
    Pump();
  }
  void OnLog(int) override {}
  void OnDeleted() override {
    bool seen = false;
    {
      std::lock_guard lock(mutex_);
      seen = snapshot_.has_value() || begun_;
    }
    End(seen ? Deleted(job_id_) : NoSuchJob(job_id_));
  }
  void OnShutdown() override {
    End(MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN",
                  "the scheduler is shutting down; watch again from the last sequence"));
  }

 private:
  std::shared_ptr<WatchReactor> Self() { return std::static_pointer_cast<WatchReactor>(shared_from_this()); }
  void PostRead(void (WatchReactor::*read)()) {
    context_->hub->PostRead([self = Self(), read] { (self.get()->*read)(); });
  }

  // Under mutex_. Queued only where it continues the queue; whatever else is read from the store.
  void Keep(const JobEvent& event) {
    const int64_t next = cursor_ + static_cast<int64_t>(pending_.size()) + 1;
    if (event.sequence != next || pending_.size() >= limits::kMaxPendingWatchEvents) return;
    pending_.push_back(event);
  }

  bool Next(Response* response) override {
    if (snapshot_.has_value()) {
      *response->mutable_snapshot() = *std::move(snapshot_);
      snapshot_.reset();
      begun_ = true;
      return true;
    }
    if (!begun_) return false;
    if (!pending_.empty()) {
      // The last point of a job that ends would wait for a turn that does not come.
      if (EndsTheJob(pending_.front()) && TakeProgress(response)) return true;
      Failpoint("watch_before_event").IgnoreError();  // armed to crash or to sleep
      TakeEvent(response);
      return true;
    }
    if (terminal_sequence_ > 0 && cursor_ >= terminal_sequence_) {
      end_ = absl::OkStatus();
      return false;
    }
    if (live_sequence_ > cursor_) {
      if (!std::exchange(reading_, true)) PostRead(&WatchReactor::ReadMissed);
      return false;  // progress waits for the events before it
    }
    if (TakeProgress(response)) return true;
    if (std::exchange(heartbeat_due_, false)) {
      *response->mutable_heartbeat()->mutable_time() = ToTimestamp(context_->gate->clock()->WallMicros());
      return true;
    }
    return false;
  }

  static bool EndsTheJob(const JobEvent& event) { return event.type == EventType::kState && IsTerminal(event.state); }

  bool TakeProgress(Response* response) {
    if (!progress_.has_value()) return false;
    *response->mutable_progress() = ToProto(*progress_);
    progress_.reset();
    return true;
  }

  void TakeEvent(Response* response) {
    const JobEvent& event = pending_.front();
    cursor_ = event.sequence;
    if (EndsTheJob(event)) terminal_sequence_ = event.sequence;
    if (event.sequence > snapshot_sequence_) {
      const int64_t lag_micros = context_->gate->clock()->WallMicros() - event.wall_micros;
      context_->gate->stats()->AddWatchLag(static_cast<double>(lag_micros) * 1e-6);
    }
    *response->mutable_event() = ToProto(event);
    pending_.pop_front();
  }

  // Both on one of the hub's reading threads.
  void ReadSnapshot() {
    absl::StatusOr<Job> job = context_->store->GetJob(job_id_);
    if (!job.ok()) return End(job.status());
    if (!caller_.MaySee(job->project)) return End(NoSuchJob(job_id_));
    if (absl::Status status = CheckCursor(*job); !status.ok()) return End(status);
    v1::Snapshot snapshot;
    *snapshot.mutable_job() = context_->show(*job);
    snapshot.set_sequence(job->sequence);
    {
      std::lock_guard lock(mutex_);
      cursor_ = after_sequence_.value_or(job->sequence);
      snapshot_sequence_ = job->sequence;
      live_sequence_ = std::max(live_sequence_, job->sequence);
      if (IsTerminal(job->state)) terminal_sequence_ = job->sequence;
      snapshot_ = std::move(snapshot);
    }
    Pump();
  }

  absl::Status CheckCursor(const Job& job) {
    if (!after_sequence_.has_value()) return absl::OkStatus();
    if (*after_sequence_ < 0 || *after_sequence_ > job.sequence) {
      return InvalidField("after_sequence", "is " + std::to_string(*after_sequence_) + "; must be 0 to " +
                                                std::to_string(job.sequence) + ", the job's last event");
    }
    if (*after_sequence_ == job.sequence) return absl::OkStatus();
    absl::StatusOr<std::vector<JobEvent>> oldest = context_->store->ListEvents(job_id_, *after_sequence_, 1);
    if (!oldest.ok()) return oldest.status();
    if (!oldest->empty() && oldest->front().sequence == *after_sequence_ + 1) return absl::OkStatus();
    return MakeError(absl::StatusCode::kOutOfRange, "EVENTS_COMPACTED",
                     "the events right after " + std::to_string(*after_sequence_) +
                         " are not kept any more; watch without after_sequence");
  }

  void ReadMissed() {
    int64_t after = 0;
    {
      std::lock_guard lock(mutex_);
      after = cursor_;  // constant while reading_: pending_ is empty, and Keep may only append to it
    }
    absl::StatusOr<std::vector<JobEvent>> events =
        context_->store->ListEvents(job_id_, after, limits::kMaxPendingWatchEvents);
    if (events.ok() && events->empty()) return End(Deleted(job_id_));
    if (!events.ok()) return End(events.status());
    {
      std::lock_guard lock(mutex_);
      reading_ = false;
      for (const JobEvent& event : *events) {
        if (event.sequence > cursor_) Keep(event);
      }
    }
    Pump();
  }

  void Detach() override { context_->hub->Unsubscribe(job_id_, this); }

  const WatchContext* context_;
  const std::string job_id_;
  const std::optional<int64_t> after_sequence_;

  // Guarded by mutex_.
  std::optional<v1::Snapshot> snapshot_;  // read, not sent
  bool begun_ = false;                    // the snapshot is sent
  int64_t snapshot_sequence_ = 0;
  int64_t cursor_ = 0;                   // the last event handed to gRPC
  int64_t live_sequence_ = 0;            // the last event known to be committed
  int64_t terminal_sequence_ = 0;        // the stream ends after this one; 0 = not known
  std::deque<JobEvent> pending_;         // cursor_ + 1, cursor_ + 2, ...
  std::optional<MetricPoint> progress_;  // the latest not sent
  bool heartbeat_due_ = false;
  bool reading_ = false;  // ReadMissed is on its way
};

}  // namespace

grpc::ServerWriteReactor<Response>* StartWatch(const WatchContext* context, StreamCaller caller, std::string job_id,
                                               std::optional<int64_t> after_sequence) {
  auto reactor = std::make_shared<WatchReactor>(context, std::move(caller), std::move(job_id), after_sequence);
  WatchReactor* raw = reactor.get();
  raw->Begin();
  return raw;
}

}  // namespace longhaul::server
