#include "worker/agent/session.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/units.h"

namespace longhaul::agent {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// What trying again does not change. Refused credentials are fatal only to an agent that has never got in: later they
// have expired, and their renewal (a new token file, a new certificate) must find the trainers running.
bool IsFatal(const absl::Status& status, bool was_in) {
  const bool refused = absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status);
  const std::string reason = ErrorReason(status);
  return reason == "WORKER_TOO_OLD" || reason == "WORKER_TOO_NEW" || absl::IsInvalidArgument(status) ||
         (refused && !was_in);
}

}  // namespace

Session::Session(uint64_t jitter_key, SessionDelegate* delegate, SchedulerClient* client, const Clock* clock,
                 Mailbox* mailbox)
    : delegate_(delegate),
      client_(client),
      clock_(clock),
      mailbox_(mailbox),
      self_(std::make_shared<Session*>(this)),
      backoff_(jitter_key) {}

void Session::Poll() {
  if (!fatal_.ok() || opening_) return;
  const int64_t now = clock_->BootNanos();
  if (id_.empty()) {
    if (now >= retry_at_nanos_) Open();
    return;
  }
  while (!id_.empty() && static_cast<int>(in_flight_.size()) < kMaxInFlight && now >= NextWakeNanos()) {
    if (!to_repeat_.empty()) {
      const int64_t number = *to_repeat_.begin();
      to_repeat_.erase(to_repeat_.begin());
      Send(number);
    } else {
      Send(next_number_++);
    }
  }
}

int64_t Session::NextWakeNanos() const {
  if (!fatal_.ok() || opening_) return kNever;
  if (id_.empty() || !to_repeat_.empty()) return retry_at_nanos_;
  if (static_cast<int>(in_flight_.size()) >= kMaxInFlight) return kNever;
  if (!in_flight_.empty() && !news_) return kNever;
  return last_sent_nanos_ + limits::kMinSyncIntervalMs * kNanosPerMs;
}

void Session::Open() {
  opening_ = true;
  reopen_.clear();  // this one tells it
  last_open_nanos_ = clock_->BootNanos();
  v1::OpenSessionRequest request;
  delegate_->FillOpen(&request);
  request.set_last_opening(last_opening_);
  Failpoint("agent_before_open").IgnoreError();  // here and below: armed to crash or to sleep
  client_->OpenSession(request, [weak = std::weak_ptr<Session*>(self_), mailbox = mailbox_](auto answer) {
    mailbox->Post([weak, answer = std::move(answer)] {
      if (const auto self = weak.lock()) (*self)->OnOpenAnswer(answer);
    });
  });
}

void Session::OnOpenAnswer(const absl::StatusOr<v1::OpenSessionResponse>& answer) {
  opening_ = false;
  if (!answer.ok()) {
    const std::string since = ErrorMetadata(answer.status(), "opening");
    if (ErrorReason(answer.status()) == "OPENED_SINCE" && since != last_opening_) {
      last_opening_ = since;  // by the agent before us, or by a call whose answer was lost: again at once
    } else if (IsFatal(answer.status(), generation_ > 0)) {
      fatal_ = answer.status();
    } else {
      WaitBeforeRetry(answer.status());
    }
    return;
  }
  ++generation_;
  id_ = answer->session_id();
  last_opening_ = answer->opening();
  hold_ms_ = answer->hold_ms();
  HeedLease(answer->lease_ms());
  next_number_ = 1;
  in_flight_.clear();
  to_repeat_.clear();
  last_sent_nanos_ = 0;
  retry_at_nanos_ = 0;
  complained_ = false;
  delegate_->Log("session " + id_.substr(0, 8) + " with the scheduler is open");
  delegate_->OnOpened(*answer);
  if (!reopen_.empty()) Reopen(std::exchange(reopen_, ""));
}

void Session::Reopen(const std::string& why) {
  if (opening_) {
    reopen_ = why;
  } else if (!id_.empty()) {
    Close("session " + id_.substr(0, 8) + " is opened anew: " + why);
  }
}

void Session::Send(int64_t number) {
  news_ = false;
  const int64_t now = clock_->BootNanos();
  last_sent_nanos_ = now;
  in_flight_[number] = now;
  v1::SyncRequest request;
  request.set_session_id(id_);
  request.set_sync_number(number);
  delegate_->FillSync(&request);
  Failpoint("agent_before_sync").IgnoreError();
  client_->Sync(
      request, hold_ms_ + limits::kSyncAnswerSlackMs,
      [weak = std::weak_ptr<Session*>(self_), mailbox = mailbox_, generation = generation_, number](auto answer) {
        mailbox->Post([weak, generation, number, answer = std::move(answer)] {
          if (const auto self = weak.lock()) (*self)->OnSyncAnswer(generation, number, answer);
        });
      });
}

void Session::OnSyncAnswer(int64_t generation, int64_t number, const absl::StatusOr<v1::SyncResponse>& answer) {
  const auto sent = in_flight_.find(number);
  if (generation != generation_ || sent == in_flight_.end()) return;
  const int64_t sent_nanos = sent->second;
  in_flight_.erase(sent);
  if (answer.ok()) {
    backoff_.Reset();
    HeedLease(answer->lease_ms());
    complained_ = false;
    refused_ = false;
    Failpoint("agent_after_sync").IgnoreError();
    delegate_->OnSynced(number, *answer, sent_nanos);
    return;
  }
  if (ErrorReason(answer.status()) == "SESSION_CLOSED" || answer.status().code() == absl::StatusCode::kNotFound) {
    Close("the scheduler closed session " + id_.substr(0, 8) + ": " + std::string(answer.status().message()));
    taken_ = clock_->BootNanos() - last_open_nanos_ < limits::kSessionTakenMs * kNanosPerMs ? taken_ + 1 : 0;
    if (taken_ == limits::kMaxSessionsTaken) {
      delegate_->Log(
          "its sessions end soon after they are opened: does another agent run with this worker's id? what to "
          "do: give each its own --worker-id and --state-dir");
    }
    return;
  }
  to_repeat_.insert(number);
  news_ = true;  // what it carried is not acknowledged
  WaitBeforeRetry(answer.status());
}

void Session::HeedLease(int64_t lease_ms) {
  if (lease_ms > 0) backoff_.SetLongest(lease_ms / limits::kAsksPerLease);
}

void Session::Close(const std::string& why) {
  delegate_->Log(why);
  ++generation_;
  id_.clear();
  in_flight_.clear();
  to_repeat_.clear();
  // Two agents under one id would take the session from each other as fast as they can.
  retry_at_nanos_ = 0;
  if (clock_->BootNanos() - last_open_nanos_ < 1'000 * kNanosPerMs) {
    retry_at_nanos_ = clock_->BootNanos() + backoff_.NextMs() * kNanosPerMs;
  }
}

void Session::WaitBeforeRetry(const absl::Status& why) {
  const int64_t wait_ms = backoff_.NextMs();
  retry_at_nanos_ = std::max(retry_at_nanos_, clock_->BootNanos() + wait_ms * kNanosPerMs);
  // No outage: what this worker says is refused each time, and its leases run out.
  if (absl::IsInvalidArgument(why)) {
    if (std::exchange(refused_, true)) return;
    delegate_->Log("the scheduler refuses what this worker tells it: " + std::string(why.message()) +
                   "; until it takes it no lease is extended: trainers hold when theirs end, and their jobs go on "
                   "elsewhere; trying again; what to do: run this worker and the scheduler from one release");
    return;
  }
  if (std::exchange(complained_, true)) return;
  const std::string advice = ErrorAdvice(why);
  delegate_->Log("the scheduler does not answer: " + std::string(why.message()) + "; trainers go on, trying again" +
                 (advice.empty() ? "" : "; what to do: " + advice));
}

}  // namespace longhaul::agent
