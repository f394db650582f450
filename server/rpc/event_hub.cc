#include "server/rpc/event_hub.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"

namespace longhaul::server {
namespace {

constexpr int kReadThreads = 2;

}  // namespace

EventHub::EventHub(int64_t heartbeat_ms) : heartbeat_ms_(heartbeat_ms) {
  for (int i = 0; i < kReadThreads; ++i) threads_.emplace_back([this] { ReadLoop(); });
  threads_.emplace_back([this] { HeartbeatLoop(); });
}

EventHub::~EventHub() { Shutdown(); }

absl::Status EventHub::Subscribe(const std::string& job_id, std::shared_ptr<JobListener> listener) {
  std::lock_guard lock(mutex_);
  if (shutdown_) {
    return MakeError(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "the scheduler is shutting down; try again");
  }
  if (count_ >= limits::kMaxWatchStreams) {
    return MakeError(absl::StatusCode::kResourceExhausted, "TOO_MANY_WATCHERS",
                     "all " + std::to_string(limits::kMaxWatchStreams) + " watch streams are in use");
  }
  listeners_[job_id].push_back(std::move(listener));
  ++count_;
  return absl::OkStatus();
}

void EventHub::Unsubscribe(const std::string& job_id, const JobListener* listener) {
  std::shared_ptr<JobListener> last;  // destroyed after the lock is released
  std::lock_guard lock(mutex_);
  const auto job = listeners_.find(job_id);
  if (job == listeners_.end()) return;
  const auto it =
      std::find_if(job->second.begin(), job->second.end(), [&](const auto& l) { return l.get() == listener; });
  if (it == job->second.end()) return;
  last = std::move(*it);
  job->second.erase(it);
  --count_;
  if (job->second.empty()) listeners_.erase(job);
}

void EventHub::PostRead(std::function<void()> read) {
  {
    std::lock_guard lock(mutex_);
    if (shutdown_) return;
    reads_.push_back(std::move(read));
  }
  reads_wake_.notify_one();
}

EventHub::Listeners EventHub::Of(const std::string& job_id) const {
  std::lock_guard lock(mutex_);
  const auto job = listeners_.find(job_id);
  return job == listeners_.end() ? Listeners{} : job->second;
}

EventHub::Listeners EventHub::All() const {
  std::lock_guard lock(mutex_);
  Listeners all;
  for (const auto& [id, listeners] : listeners_) all.insert(all.end(), listeners.begin(), listeners.end());
  return all;
}

void EventHub::OnEvent(const Job& job, const JobEvent& event) {
  for (const auto& listener : Of(job.id)) listener->OnEvent(event);
}

void EventHub::OnProgress(const std::string& job_id, const MetricPoint& point) {
  for (const auto& listener : Of(job_id)) listener->OnProgress(point);
}

void EventHub::OnJobDeleted(const std::string& job_id) {
  for (const auto& listener : Of(job_id)) listener->OnDeleted();
}

void EventHub::OnLogComplete(const std::string& job_id, int attempt) { OnLogAppended(job_id, attempt); }

void EventHub::OnLogAppended(const std::string& job_id, int attempt) {
  for (const auto& listener : Of(job_id)) listener->OnLog(attempt);
}

void EventHub::Shutdown() {
  {
    std::lock_guard lock(mutex_);
    if (shutdown_) return;
    shutdown_ = true;
    reads_.clear();
  }
  reads_wake_.notify_all();
  ended_.notify_all();
  threads_.clear();  // joins
  for (const auto& listener : All()) listener->OnShutdown();
}

void EventHub::ReadLoop() {
  while (true) {
    std::function<void()> read;
    {
      std::unique_lock lock(mutex_);
      reads_wake_.wait(lock, [this] { return shutdown_ || !reads_.empty(); });
      if (shutdown_) return;
      read = std::move(reads_.front());
      reads_.pop_front();
    }
    read();
  }
}

void EventHub::HeartbeatLoop() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (ended_.wait_for(lock, std::chrono::milliseconds(heartbeat_ms_), [this] { return shutdown_; })) return;
    }
    for (const auto& listener : All()) listener->OnHeartbeat();
  }
}

}  // namespace longhaul::server
