// Brings what the dispatcher publishes to whoever watches a job. The hub keeps nothing: a listener that falls behind
// reads the events that it missed from the store. Thread-safe. Owns two threads for listeners' reads of the store and
// one for the heartbeat. Listeners are called without the hub's lock; they must not block.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "base/limits.h"
#include "server/dispatcher.h"

namespace longhaul::server {

class JobListener {
 public:
  virtual ~JobListener() = default;
  virtual void OnEvent(const JobEvent& event) = 0;  // in order, committed
  virtual void OnProgress(const MetricPoint& point) = 0;
  virtual void OnLog(int attempt) = 0;  // grown or complete
  virtual void OnDeleted() = 0;
  virtual void OnHeartbeat() = 0;
  virtual void OnShutdown() = 0;  // last call; end with UNAVAILABLE
};

class EventHub final : public EventSink {
 public:
  explicit EventHub(int64_t heartbeat_ms = limits::kWatchHeartbeatMs);
  ~EventHub() override;

  // RESOURCE_EXHAUSTED TOO_MANY_WATCHERS past limits::kMaxWatchStreams, UNAVAILABLE SHUTTING_DOWN after Shutdown.
  // From the return on, nothing published of the job is missed.
  absl::Status Subscribe(const std::string& job_id, std::shared_ptr<JobListener> listener);
  void Unsubscribe(const std::string& job_id, const JobListener* listener);

  // Runs `read` on a thread that may block on the store. Dropped after Shutdown.
  void PostRead(std::function<void()> read);

  // An agent appended to an attempt's log.
  void OnLogAppended(const std::string& job_id, int attempt);

  // Tells every listener, then joins the threads. Further calls do nothing.
  void Shutdown();

  void OnEvent(const Job& job, const JobEvent& event) override;
  void OnProgress(const std::string& job_id, const MetricPoint& point) override;
  void OnJobDeleted(const std::string& job_id) override;
  void OnLogComplete(const std::string& job_id, int attempt) override;

 private:
  using Listeners = std::vector<std::shared_ptr<JobListener>>;

  Listeners Of(const std::string& job_id) const;
  Listeners All() const;
  void ReadLoop();
  void HeartbeatLoop();

  const int64_t heartbeat_ms_;
  mutable std::mutex mutex_;  // guards everything below but the threads
  std::map<std::string, Listeners> listeners_;
  int count_ = 0;
  std::deque<std::function<void()>> reads_;
  bool shutdown_ = false;
  std::condition_variable reads_wake_;  // reads_ grew, or shutdown_
  std::condition_variable ended_;       // shutdown_
  std::vector<std::jthread> threads_;
};

}  // namespace longhaul::server
