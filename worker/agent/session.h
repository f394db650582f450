// The agent's standing with the scheduler: opens a session, keeps a Sync parked there, and sends a second one at once
// when there is news, so that news never waits for the parked one's hold time. A Sync that fails is sent again under
// its number, for the scheduler gives a repeated number the same commands; SESSION_CLOSED opens a new session.
//
// All on the core thread; the client's answers come in through the mailbox.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "base/clock.h"
#include "longhaul/v1/worker_service.pb.h"
#include "worker/agent/backoff.h"
#include "worker/agent/mailbox.h"
#include "worker/agent/scheduler_client.h"

namespace longhaul::agent {

// What the session tells and is told. Called on the core thread.
class SessionDelegate {
 public:
  virtual ~SessionDelegate() = default;
  virtual void FillOpen(v1::OpenSessionRequest* request) = 0;
  virtual void OnOpened(const v1::OpenSessionResponse& response) = 0;
  // The same number may be filled again, after a failure; then with what is news by then.
  virtual void FillSync(v1::SyncRequest* request) = 0;
  // `sent_boot_nanos`: when this Sync left, from which its leases count.
  virtual void OnSynced(int64_t sync_number, const v1::SyncResponse& response, int64_t sent_boot_nanos) = 0;
  virtual void Log(const std::string& line) = 0;
};

class Session {
 public:
  // Does not own. All outlive it, and the client gives no answer after the mailbox is gone.
  Session(uint64_t jitter_key, SessionDelegate* delegate, SchedulerClient* client, const Clock* clock,
          Mailbox* mailbox);

  // Sends what is due.
  void Poll();
  // When Poll has something to do next, in BootNanos; INT64_MAX where only an answer can tell.
  int64_t NextWakeNanos() const;
  // There is news: sends a Sync now if the parked one leaves room for it.
  void MarkNews() { news_ = true; }

  // What FillOpen tells has changed: the session is closed and opened anew, with the attempts that run. `why` is
  // logged.
  void Reopen(const std::string& why);

  // "" while there is none.
  const std::string& id() const { return id_; }
  // The scheduler refuses this worker for good (WORKER_TOO_OLD, WORKER_TOO_NEW, credentials); OK otherwise.
  const absl::Status& fatal() const { return fatal_; }

 private:
  static constexpr int kMaxInFlight = 2;

  void Open();
  void OnOpenAnswer(const absl::StatusOr<v1::OpenSessionResponse>& answer);
  void Send(int64_t number);
  void OnSyncAnswer(int64_t generation, int64_t number, const absl::StatusOr<v1::SyncResponse>& answer);
  void Close(const std::string& why);
  void WaitBeforeRetry(const absl::Status& why);
  void HeedLease(int64_t lease_ms);

  SessionDelegate* delegate_;
  SchedulerClient* client_;
  const Clock* clock_;
  Mailbox* mailbox_;
  // Answers hold it weakly, so that one that comes after us finds nobody.
  std::shared_ptr<Session*> self_;
  Backoff backoff_;

  std::string id_;
  std::string last_opening_;  // of this worker that we know of, ours or not; a later one refuses our call
  int64_t generation_ = 0;    // of sessions; an answer to an older one is dropped
  int64_t hold_ms_ = 0;
  bool opening_ = false;
  std::string reopen_;  // why, where the answer to an opening that tells too little is on its way
  bool news_ = false;
  bool complained_ = false;  // about the outage that lasts; said once
  bool refused_ = false;     // that its Syncs are INVALID_ARGUMENT; said once
  int taken_ = 0;            // sessions in a row that the scheduler closed soon after they were opened
  int64_t next_number_ = 1;
  std::map<int64_t, int64_t> in_flight_;  // number -> sent_boot_nanos
  std::set<int64_t> to_repeat_;           // failed numbers, lowest first
  int64_t last_sent_nanos_ = 0;
  int64_t last_open_nanos_ = 0;
  int64_t retry_at_nanos_ = 0;
  absl::Status fatal_;
};

}  // namespace longhaul::agent
