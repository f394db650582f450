#include "server/http/page.h"

#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

constexpr char kScript[] = "<script>alert('x')</script>\"";

TEST(PageTest, EscapesEverythingFromOutside) {
  EXPECT_EQ(EscapeHtml("a & b < c > \"d\" 'e'"), "a &amp; b &lt; c &gt; &quot;d&quot; &#39;e&#39;");
  PageInput input;
  PageJob shown;
  shown.job.id = shown.job.suffix = shown.job.model = shown.job.reason_detail = kScript;
  shown.job.state = JobState::kFailed;
  shown.job.failure.message = kScript;
  shown.job.attempt.number = 1;
  shown.job.attempt.worker_id = kScript;
  shown.progress = kScript;
  input.jobs.push_back(shown);
  shown.job.state = JobState::kQueued;
  input.jobs.push_back(shown);
  Worker worker;
  worker.id = worker.host_name = kScript;
  worker.devices.push_back({kScript, {}});
  worker.devices.back().facts.device_class = kScript;
  worker.models.push_back({});
  worker.models.back().name = kScript;
  WorkerView view;
  view.worker = std::make_shared<const Worker>(worker);
  input.workers.push_back(view);
  input.version = kScript;
  const std::string page = RenderPage(input);
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;"), std::string::npos);
  for (const char* outside : {"src=", "http://", "https://"})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
}

TEST(PageTest, ShowsJobsAndWorkers) {
  PageInput input;
  EXPECT_NE(RenderPage(input).find("No jobs yet"), std::string::npos);
  PageJob running;
  running.job.id = "ftjob-abc";
  running.job.state = JobState::kRunning;
  running.progress = "step 3 of 60, loss 2.5000, 240 tokens/s";
  input.jobs.push_back(running);
  Worker worker;
  worker.id = "worker-1";
  worker.host_bytes_total = int64_t{4} << 30;
  WorkerView view;
  view.worker = std::make_shared<const Worker>(worker);
  view.online = true;
  view.host_bytes_reserved = int64_t{1} << 30;
  input.workers.push_back(view);
  const std::string page = RenderPage(input);
  for (const char* text : {"ftjob-abc", "RUNNING", "step 3 of 60", "worker-1", "online", "1.00 GiB of 4.00 GiB"}) {
    EXPECT_NE(page.find(text), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace longhaul::server
