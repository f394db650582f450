#include "server/http/metrics.h"

#include <sys/wait.h>

#include <cstdio>
#include <set>

#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

// Every family has a sample.
MetricsInput FullInput() {
  MetricsInput input;
  input.version = "0.1.0";
  DispatcherStats& stats = input.dispatcher;
  stats.jobs_by_state[static_cast<size_t>(JobState::kRunning)] = 3;
  stats.waiting_by_reason[Reason::kWaitingForHostRam] = 2;
  stats.created_total = 7;
  stats.finished_total[{JobState::kFailed, Reason::kInvalidDataset}] = 1;
  stats.attempts_ended_total[{AttemptOutcome::kLost, Reason::kWorkerLost}] = 1;
  stats.recoveries_total[Reason::kWorkerLost] = 1;
  stats.queue_wait_seconds.Add(0.2);
  stats.queue_wait_seconds.Add(1e9);
  WorkerStats worker;
  worker.worker_id = "w\"1\\\n";
  worker.online = true;
  worker.host_bytes_total = int64_t{8} << 30;
  worker.host_estimate_error_ratio = -0.01;
  worker.devices.push_back({"cpu-0", "cpu-avx2-2t", 1, 2, 3});
  stats.workers.push_back(worker);
  RequestStats requests;
  requests.CountUnary("FineTuneService/GetFineTuneJob", "OK", 0.004);
  requests.CountCall("FineTuneService/WatchFineTuneJob", "NOT_FOUND");
  requests.AddWatchLag(0.02);
  requests.AddWatchStreams(2);
  requests.CountAuthFailure("TOKEN_EXPIRED");
  requests.CountRateLimited();
  input.tls = TlsReloader::Counts{2, 1, 1'800'000'000'000'000};
  input.requests = requests.Read();
  input.sizes = {100, 200, 300};
  return input;
}

TEST(MetricsTest, ShowsTheFigures) {
  const std::string text = RenderMetrics(FullInput());
  for (const char* line :
       {"longhaul_jobs{state=\"RUNNING\"} 3\n", "longhaul_jobs_waiting{reason=\"WAITING_FOR_HOST_RAM\"} 2\n",
        "longhaul_jobs_created_total 7\n",
        "longhaul_jobs_finished_total{state=\"FAILED\",reason=\"INVALID_DATASET\"} 1\n",
        "longhaul_queue_wait_seconds_bucket{le=\"0.5\"} 1\n", "longhaul_queue_wait_seconds_bucket{le=\"+Inf\"} 2\n",
        "longhaul_estimate_error_ratio{worker=\"w\\\"1\\\\\\n\",memory=\"host\"} -0.01\n",
        "longhaul_worker_up{worker=\"w\\\"1\\\\\\n\"} 1\n",
        "longhaul_grpc_requests_total{method=\"FineTuneService/GetFineTuneJob\",code=\"OK\"} 1\n",
        "longhaul_grpc_request_seconds_bucket{method=\"FineTuneService/GetFineTuneJob\",le=\"0.005\"} 1\n",
        "longhaul_watch_streams 2\n", "longhaul_auth_failures_total{cause=\"TOKEN_EXPIRED\"} 1\n",
        "longhaul_rate_limited_total 1\n", "longhaul_tls_certificate_expiry_timestamp_seconds 1800000000\n",
        "longhaul_tls_certificate_reloads_total 2\n", "longhaul_tls_certificate_reload_failures_total 1\n",
        "longhaul_db_wal_bytes 200\n", "longhaul_blob_bytes 300\n", "longhaul_build_info{version=\"0.1.0\"} 1\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "in\n" << text;
  }
}

TEST(MetricsTest, NoNameTwiceAndNoJobLabel) {
  std::set<std::string> names;
  for (const auto& family : MetricFamilies(FullInput())) {
    EXPECT_TRUE(names.insert(family.name).second) << family.name;
    EXPECT_FALSE(family.help.empty());
    EXPECT_FALSE(family.metric.empty()) << family.name;
    for (const auto& metric : family.metric) {
      for (const auto& label : metric.label) EXPECT_TRUE(label.name != "job" && label.name != "job_id") << family.name;
    }
  }
}

TEST(MetricsTest, PromtoolHasNothingToSay) {
  FILE* promtool = ::popen("promtool check metrics", "w");
  ASSERT_NE(promtool, nullptr);
  const std::string text = RenderMetrics(FullInput());
  EXPECT_EQ(std::fwrite(text.data(), 1, text.size(), promtool), text.size());
  const int status = ::pclose(promtool);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "promtool (package prometheus) is absent or objects";
}

TEST(RequestStatsTest, HistogramsAreCumulative) {
  SecondsHistogram histogram;
  for (const double seconds : {0.0005, 0.003, 100.0}) histogram.Add(seconds);
  EXPECT_EQ(histogram.cumulative.front(), 1u);
  EXPECT_EQ(histogram.cumulative.back(), 2u);
  EXPECT_EQ(histogram.count, 3u);
}

}  // namespace
}  // namespace longhaul::server
