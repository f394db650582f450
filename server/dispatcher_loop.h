// The dispatcher without its thread: what one turn does with the mails of a batch. Dispatcher turns it on its thread;
// the simulator turns it by hand, on a clock of its own. One thread at a time, but for fleet() and told().
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/dispatcher.h"
#include "server/dispatcher_core.h"

namespace longhaul::server {

// One entry of the mailbox. `apply` runs inside the batch; `finish` after its commit, with the commit's status.
struct Mail {
  std::function<void(DispatcherCore&)> apply;  // null: a question about committed memory, asked in `finish`
  std::function<void(const absl::Status&)> finish;
  std::function<void()> refuse;  // instead of finish once the dispatcher stops; null: finish with SHUTTING_DOWN
  void Refuse();
};

class DispatcherLoop {
 public:
  DispatcherLoop(Dispatcher::Options options, Store* store, BlobIndex* blobs, const Clock* clock, EventSink* sink,
                 const Planner* planner);

  absl::Status Load();
  // Applies the mails and what is due, commits once, and only then tells the sink, publishes and answers, in order.
  // Returns why nothing was committed; "" where it was.
  std::string Turn(std::vector<Mail>* batch);
  // A Sync whose answer is parked; it belongs into a batch like any other mail.
  Mail SyncMail(SyncInput input, std::function<void(absl::StatusOr<SyncReply>)> done);
  // When Turn has something to do without mail.
  int64_t NextTurnBootNanos() const;
  // The end: answers everything parked UNAVAILABLE.
  void RefuseParked();

  DispatcherCore& core() { return core_; }
  const DispatcherCore& core() const { return core_; }
  std::shared_ptr<const FleetView> fleet() const;
  // Why and until when jobs wait, as it was last told.
  struct Told {
    std::shared_ptr<const WaitTable> table;  // null: never
    bool current = false;                    // there has been no pass since
    int64_t again_boot_nanos = 0;            // not to be told anew before then
  };
  Told told() const;
  // Tells anew where a pass has been since; `at_once`: without regard to again_boot_nanos. Between turns, or in
  // `finish`.
  void TellWaits(bool at_once);
  // By what was last told, or told anew where that may be. Of a job that came since: when tellings may take the time
  // again, and empty where that is not within limits::kMaxForecastWaitMs. `done` runs on the thread that turns, at once
  // or in a later turn. As TellWaits.
  void Explain(const std::string& id, std::function<void(absl::StatusOr<std::optional<Explanation>>)> done);
  // The same, in turn. `cancelled`, asked on the thread that turns: nobody waits for the answer any more.
  void Forecast(Job job, std::function<bool()> cancelled, std::function<void(absl::StatusOr<StartForecast>)> done);

 private:
  struct Parked {
    std::string session_id;
    int64_t sync_number = 0;
    int64_t deadline_boot_nanos = 0;
    std::function<void(absl::StatusOr<SyncReply>)> done;
  };

  struct WaitingForecast {
    Job job;
    int64_t deadline_boot_nanos = 0;
    std::function<bool()> cancelled;
    std::function<void(absl::StatusOr<StartForecast>)> done;
  };

  struct WaitingExplain {
    std::string job_id;
    std::shared_ptr<const WaitTable> told;  // which did not know of the job
    int64_t deadline_boot_nanos = 0;
    std::function<void(absl::StatusOr<std::optional<Explanation>>)> done;
  };

  // When the next one may be after one from `begin` until now.
  int64_t AfterTelling(int64_t begin_boot_nanos) const;
  void NoteDeafness();
  void AnswerForecasts();
  void DropForecasts(const std::function<bool(const WaitingForecast&)>& which, const absl::Status& why);
  void AnswerExplains();
  void Tell(const Effect& effect);
  void Publish();
  void Park(const std::string& worker_id, Parked parked);
  void AnswerParked();
  void Answer(const std::string& worker_id);
  Parked Unpark(std::map<std::string, Parked>::iterator at);

  DispatcherCore core_;
  const Clock* const clock_;
  EventSink* const sink_;
  std::map<std::string, Parked> parked_;                 // by worker
  std::set<std::pair<int64_t, std::string>> deadlines_;  // of parked_: when, worker
  std::deque<WaitingForecast> forecasts_;                // the first's deadline is the first
  std::deque<WaitingExplain> explains_;                  // the same
  int64_t listened_boot_nanos_ = 0;                      // until then mail was applied: the last Tick
  int64_t forecast_boot_nanos_ = 0;                      // none before then
  std::pair<uint64_t, uint64_t> published_version_;

  mutable std::mutex published_mutex_;  // guards fleet_ and told_, which the turning thread alone writes
  std::shared_ptr<const FleetView> fleet_;
  Told told_;
};

}  // namespace longhaul::server
