#include "server/rpc/event_hub.h"

#include <future>
#include <mutex>

#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

struct Recorder final : JobListener {
  void OnEvent(const JobEvent& event) override { Add("event " + std::to_string(event.sequence)); }
  void OnProgress(const MetricPoint& point) override { Add("progress " + std::to_string(point.step)); }
  void OnLog(int attempt) override { Add("log " + std::to_string(attempt)); }
  void OnDeleted() override { Add("deleted"); }
  void OnHeartbeat() override {
    bool expected = false;
    if (beaten.compare_exchange_strong(expected, true)) heartbeat.set_value();
  }
  void OnShutdown() override { Add("shutdown"); }
  void Add(const std::string& what) {
    std::lock_guard lock(mutex);
    seen.push_back(what);
  }
  std::mutex mutex;
  std::vector<std::string> seen;
  std::atomic<bool> beaten{false};
  std::promise<void> heartbeat;
};

Job JobOf(const std::string& id) {
  Job job;
  job.id = id;
  return job;
}

JobEvent EventOf(int64_t sequence) {
  JobEvent event;
  event.sequence = sequence;
  return event;
}

TEST(EventHubTest, TellsTheListenersOfAJobAndNobodyElse) {
  EventHub hub(1'000'000);
  const auto a = std::make_shared<Recorder>();
  const auto b = std::make_shared<Recorder>();
  ASSERT_TRUE(hub.Subscribe("a", a).ok());
  ASSERT_TRUE(hub.Subscribe("b", b).ok());
  hub.OnEvent(JobOf("a"), EventOf(1));
  MetricPoint point;
  point.step = 7;
  hub.OnProgress("a", point);
  hub.OnLogComplete("b", 2);
  hub.OnJobDeleted("a");
  EXPECT_EQ(a->seen, (std::vector<std::string>{"event 1", "progress 7", "deleted"}));
  EXPECT_EQ(b->seen, (std::vector<std::string>{"log 2"}));
  hub.Unsubscribe("a", a.get());
  hub.OnEvent(JobOf("a"), EventOf(2));
  EXPECT_EQ(a->seen.size(), 3u);
  EXPECT_EQ(a.use_count(), 1);
}

TEST(EventHubTest, ReadsRunElsewhereAndHeartbeatsCome) {
  EventHub hub(1);
  const auto a = std::make_shared<Recorder>();
  ASSERT_TRUE(hub.Subscribe("a", a).ok());
  std::promise<std::thread::id> where;
  hub.PostRead([&] { where.set_value(std::this_thread::get_id()); });
  EXPECT_NE(where.get_future().get(), std::this_thread::get_id());
  a->heartbeat.get_future().wait();
}

TEST(EventHubTest, ShutdownIsTheLastWord) {
  EventHub hub(1'000'000);
  const auto a = std::make_shared<Recorder>();
  ASSERT_TRUE(hub.Subscribe("a", a).ok());
  hub.Shutdown();
  hub.Shutdown();
  EXPECT_EQ(a->seen, (std::vector<std::string>{"shutdown"}));
  EXPECT_EQ(hub.Subscribe("a", a).code(), absl::StatusCode::kUnavailable);
  hub.PostRead([] { FAIL() << "a read after the end"; });
}

TEST(EventHubTest, LimitsListeners) {
  EventHub hub(1'000'000);
  const auto a = std::make_shared<Recorder>();
  for (int i = 0; i < limits::kMaxWatchStreams; ++i) ASSERT_TRUE(hub.Subscribe("a", a).ok());
  EXPECT_EQ(hub.Subscribe("a", a).code(), absl::StatusCode::kResourceExhausted);
  hub.Unsubscribe("a", a.get());
  EXPECT_TRUE(hub.Subscribe("a", a).ok());
}

}  // namespace
}  // namespace longhaul::server
