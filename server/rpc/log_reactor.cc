#include "server/rpc/log_reactor.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "server/rpc/stream_reactor.h"
#include "server/rpc/visibility.h"

namespace longhaul::server {
namespace {

using Response = v1::ReadLogsResponse;

class LogReactor final : public StreamReactor<Response>, public JobListener {
 public:
  LogReactor(const LogContext* context, StreamCaller caller, const v1::ReadLogsRequest& request)
      : StreamReactor(context->gate, "FineTuneService/ReadLogs", std::move(caller)),
        context_(context),
        job_id_(request.id()),
        follow_(request.follow()),
        attempt_(request.attempt()),
        offset_(request.offset()) {}

  void Begin() {
    Live();
    if (attempt_ < 0) return End(InvalidField("attempt", "is " + std::to_string(attempt_) + "; must be 0 or more"));
    if (offset_ < 0) return End(InvalidField("offset", "is " + std::to_string(offset_) + "; must be 0 or more"));
    if (absl::Status status = context_->hub->Subscribe(job_id_, Self()); !status.ok()) return End(status);
    PostRead(&LogReactor::ReadAttempt);
  }

  void OnLog(int attempt) override {
    {
      std::lock_guard lock(mutex_);
      if (!ready_ || attempt != attempt_) return;
      grown_ = true;
    }
    Pump();
  }
  void OnEvent(const JobEvent& event) override {
    {
      std::lock_guard lock(mutex_);
      if (event.type == EventType::kState && IsTerminal(event.state)) job_ended_ = true;
      // A later attempt has fenced this one: nothing more comes of it.
      if (!ready_ || event.attempt <= attempt_) return;
      last_look_ = grown_ = true;
    }
    Pump();
  }
  void OnProgress(const MetricPoint&) override {}
  // Where the worker is lost, a log is never marked complete. The rest of it had two heartbeats to arrive.
  void OnHeartbeat() override {
    if (EndedByRecheck()) return;
    {
      std::lock_guard lock(mutex_);
      if (!ready_ || !job_ended_ || ++heartbeats_after_end_ < 2) return;
      last_look_ = grown_ = true;
    }
    Pump();
  }
  void OnDeleted() override {
    bool seen = false;
    {
      std::lock_guard lock(mutex_);
      seen = ready_;
    }
    End(seen ? MakeError(absl::StatusCode::kNotFound, "JOB_NOT_FOUND", "job " + job_id_ + " was deleted")
             : NoSuchJob(job_id_));
  }
  void OnShutdown() override {
    End(MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN",
                  "the scheduler is shutting down; read again from the last offset"));
  }

 private:
  std::shared_ptr<LogReactor> Self() { return std::static_pointer_cast<LogReactor>(shared_from_this()); }
  void PostRead(void (LogReactor::*read)()) {
    context_->hub->PostRead([self = Self(), read] { (self.get()->*read)(); });
  }

  bool Next(Response* response) override {
    if (chunk_.has_value()) {
      *response = *std::move(chunk_);
      chunk_.reset();
      grown_ = true;  // there may be more behind it
      return true;
    }
    if (ready_ && grown_ && !reading_) {
      grown_ = false;
      reading_ = true;
      PostRead(&LogReactor::ReadChunk);
    }
    return false;
  }

  // Both on one of the hub's reading threads.
  void ReadAttempt() {
    absl::StatusOr<Job> job = context_->store->GetJob(job_id_);
    if (!job.ok()) return End(job.status());
    if (!caller_.MaySee(job->project)) return End(NoSuchJob(job_id_));
    if (attempt_ > job->attempts) {
      return End(MakeError(absl::StatusCode::kNotFound, "ATTEMPT_NOT_FOUND",
                           "job " + job_id_ + " has " + std::to_string(job->attempts) +
                               " attempts; there is no attempt " + std::to_string(attempt_)));
    }
    // Nothing has run yet: whoever follows waits for the first attempt.
    const bool nothing = job->attempts == 0 && (IsTerminal(job->state) || !follow_);
    if (nothing) return End(absl::OkStatus());
    {
      std::lock_guard lock(mutex_);
      if (attempt_ == 0) attempt_ = job->attempts == 0 ? 1 : job->attempts;
      job_ended_ = job_ended_ || IsTerminal(job->state);
      const int64_t ended_micros =
          IsTerminal(job->state) ? context_->gate->clock()->WallMicros() - job->end_wall_micros : 0;
      last_look_ = !follow_ || attempt_ < job->attempts || ended_micros > 2'000 * limits::kWatchHeartbeatMs;
      ready_ = grown_ = true;
    }
    Pump();
  }

  void ReadChunk() {
    bool last_look = false;
    {
      std::lock_guard lock(mutex_);
      last_look = last_look_;  // read before the log: what came before the end is in it
    }
    absl::StatusOr<storage::LogStore::Chunk> chunk =
        context_->logs->Read(job_id_, attempt_, offset_, limits::kLogChunkBytes);
    if (!chunk.ok()) return End(chunk.status());
    if (absl::Status armed = Failpoint("log_before_chunk"); !armed.ok()) return End(armed);
    const bool finished = chunk->data.empty() && (chunk->complete || last_look);
    {
      std::lock_guard lock(mutex_);
      reading_ = false;
      if (!chunk->data.empty()) {
        chunk_.emplace();
        chunk_->set_attempt(attempt_);
        chunk_->set_offset(offset_);
        offset_ += static_cast<int64_t>(chunk->data.size());
        chunk_->set_data(std::move(chunk->data));
      }
    }
    if (finished) return End(absl::OkStatus());
    Pump();
  }

  void Detach() override { context_->hub->Unsubscribe(job_id_, this); }

  const LogContext* context_;
  const std::string job_id_;
  const bool follow_;

  // Guarded by mutex_; attempt_ is constant once ready_, offset_ changes only in ReadChunk, one of which runs at a
  // time.
  int attempt_;
  int64_t offset_;
  std::optional<Response> chunk_;  // read, not sent
  bool ready_ = false;             // the attempt is known
  bool grown_ = false;             // there may be something to read
  bool reading_ = false;
  bool last_look_ = false;  // end with what is there
  bool job_ended_ = false;
  int heartbeats_after_end_ = 0;
};

}  // namespace

grpc::ServerWriteReactor<Response>* StartLogStream(const LogContext* context, StreamCaller caller,
                                                   const v1::ReadLogsRequest& request) {
  auto reactor = std::make_shared<LogReactor>(context, std::move(caller), request);
  LogReactor* raw = reactor.get();
  raw->Begin();
  return raw;
}

}  // namespace longhaul::server
