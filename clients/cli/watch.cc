#include "clients/cli/watch.h"

#include <algorithm>

#include "base/error.h"
#include "base/status_macros.h"
#include "base/units.h"

namespace longhaul::cli {
namespace {

constexpr int64_t kFirstBackoffMs = 100;
constexpr int64_t kMaxBackoffMs = 3'000;

class Watcher {
 public:
  Watcher(Client& client, const WatchOptions& options, WatchSink& sink)
      : client_(client),
        options_(options),
        sink_(sink),
        cursor_(options.after_sequence),
        connected_once_(options.known_reachable) {
    if (options.timeout_ms) deadline_ms_ = NowMs() + *options.timeout_ms;
  }

  absl::StatusOr<v1::Job> Run() {
    int64_t backoff_ms = kFirstBackoffMs;
    while (true) {
      received_ = false;
      const absl::Status status = Stream();
      if (status.ok() && IsTerminal(state_)) return Final();
      if (received_) backoff_ms = kFirstBackoffMs;
      if (deadline_ms_ && (NowMs() >= *deadline_ms_ || absl::IsDeadlineExceeded(status))) return TimedOut();
      if (absl::IsOutOfRange(status) && cursor_) {
        sink_.OnGap();
        cursor_.reset();
        continue;
      }
      // An OK end before the terminal event is a scheduler that shuts down.
      const bool lost = status.ok() || IsConnectionError(status) || absl::IsCancelled(status);
      if (client_.env().stop->stopped()) return client_.Error(grpc::Status::CANCELLED);
      if (!lost || !connected_once_) return status.ok() ? Ended() : status;
      LH_RETURN_IF_ERROR(WaitOut(status, backoff_ms));
      backoff_ms = std::min(backoff_ms * 2, kMaxBackoffMs);
    }
  }

 private:
  int64_t NowMs() const { return client_.env().clock->BootNanos() / kNanosPerMs; }

  static absl::Status Ended() { return absl::UnavailableError("the watch ended before the job did"); }

  absl::Status TimedOut() const {
    if (state_ == v1::JOB_STATE_UNSPECIFIED) {
      return MakeError(absl::StatusCode::kDeadlineExceeded, "WAIT_TIMEOUT",
                       "the timeout was over before the scheduler told the state of " + options_.id + "; it goes on");
    }
    return MakeError(absl::StatusCode::kDeadlineExceeded, "WAIT_TIMEOUT",
                     options_.id + " is still " + v1::JobState_Name(state_) + " after the timeout; it goes on");
  }

  absl::Status WaitOut(const absl::Status& status, int64_t backoff_ms) {
    const absl::Status cause = status.ok() ? Ended() : status;
    if (outage_since_ms_ < 0) {
      outage_since_ms_ = NowMs();
      sink_.OnDisconnected(cause);
    }
    if (NowMs() - outage_since_ms_ > options_.outage_ms) return cause;
    if (deadline_ms_) backoff_ms = std::clamp<int64_t>(*deadline_ms_ - NowMs(), 1, backoff_ms);
    if (client_.env().stop->WaitForMillis(backoff_ms)) return client_.Error(grpc::Status::CANCELLED);
    return absl::OkStatus();
  }

  absl::Status Stream() {
    grpc::ClientContext context;
    if (deadline_ms_) client_.SetDeadline(context, std::max<int64_t>(*deadline_ms_ - NowMs(), 0));
    StopSignal::Scope scope(*client_.env().stop, [&context] { context.TryCancel(); });
    v1::WatchFineTuneJobRequest request;
    request.set_id(options_.id);
    if (cursor_) request.set_after_sequence(*cursor_);
    const auto reader = client_.jobs().WatchFineTuneJob(&context, request);
    v1::WatchFineTuneJobResponse message;
    while (reader->Read(&message)) Take(message);
    return client_.Error(reader->Finish());
  }

  void Take(const v1::WatchFineTuneJobResponse& message) {
    received_ = true;
    connected_once_ = true;
    if (outage_since_ms_ >= 0) {
      outage_since_ms_ = -1;
      sink_.OnReconnected();
    }
    if (message.has_snapshot()) {
      const v1::Snapshot& snapshot = message.snapshot();
      state_ = snapshot.job().state();
      // With a cursor the events up to the snapshot follow; without one the stream goes on from the snapshot.
      if (!cursor_) cursor_ = snapshot.sequence();
      sink_.OnSnapshot(snapshot);
    } else if (message.has_event()) {
      const v1::JobEvent& event = message.event();
      if (cursor_ && event.sequence() <= *cursor_) return;
      cursor_ = event.sequence();
      if (event.state() != v1::JOB_STATE_UNSPECIFIED) state_ = event.state();
      sink_.OnEvent(event);
    } else if (message.has_progress()) {
      sink_.OnProgress(message.progress());
    }
  }

  // The whole job: a watch over a restart has seen only the events.
  absl::StatusOr<v1::Job> Final() {
    v1::GetFineTuneJobRequest request;
    request.set_id(options_.id);
    int64_t backoff_ms = kFirstBackoffMs;
    while (true) {
      auto job = client_.Call(client_.jobs(), &v1::FineTuneService::Stub::GetFineTuneJob, request);
      if (job.ok() || !IsConnectionError(job.status())) return job;
      LH_RETURN_IF_ERROR(WaitOut(job.status(), backoff_ms));
      backoff_ms = std::min(backoff_ms * 2, kMaxBackoffMs);
    }
  }

  Client& client_;
  const WatchOptions& options_;
  WatchSink& sink_;
  std::optional<int64_t> cursor_;
  std::optional<int64_t> deadline_ms_;
  bool connected_once_;
  v1::JobState state_ = v1::JOB_STATE_UNSPECIFIED;
  bool received_ = false;
  int64_t outage_since_ms_ = -1;
};

}  // namespace

bool IsTerminal(v1::JobState state) { return state == v1::SUCCEEDED || state == v1::FAILED || state == v1::CANCELLED; }

absl::StatusOr<v1::Job> WatchToEnd(Client& client, const WatchOptions& options, WatchSink& sink) {
  return Watcher(client, options, sink).Run();
}

ExitCode ExitCodeForState(v1::JobState state) {
  switch (state) {
    case v1::SUCCEEDED:
      return kOk;
    case v1::CANCELLED:
      return kCancelled;
    default:
      return kJobFailed;
  }
}

}  // namespace longhaul::cli
